//! What the agents say of themselves: which roots they trust, and who signed what their pods use.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use warren_mesh::identity::TrustNotes;

use super::rotation::NodeTrust;
use crate::ca_protocol::AGENT;
use crate::mesh_node::MeshNode;

/// Everything that agents say.
pub(crate) async fn mesh_nodes(client: &kube::Client) -> Result<Vec<MeshNode>, kube::Error> {
    Ok(Api::<MeshNode>::all(client.clone()).list(&ListParams::default()).await?.items)
}

/// Every node with an agent, or with something that an agent said: one that is cut off counts as long as its node has
/// not been deleted.
pub(crate) async fn nodes(client: &kube::Client, namespace: &str) -> Result<Vec<NodeTrust>, kube::Error> {
    let mut all: BTreeMap<String, Option<TrustNotes>> = BTreeMap::new();
    for node in mesh_nodes(client).await? {
        let name = node.name().to_owned();
        let notes = node.spec.identity.map(|one| TrustNotes { bundle: one.bundle, issuers: one.issuers });
        all.insert(name, notes);
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let agents = pods.list(&ListParams::default().labels(&format!("app.kubernetes.io/name={AGENT}"))).await?;
    for agent in agents.items {
        let finished =
            agent.status.and_then(|status| status.phase).is_some_and(|at| at == "Failed" || at == "Succeeded");
        if let Some(node) = agent.spec.and_then(|spec| spec.node_name)
            && !finished
        {
            all.entry(node).or_insert(None);
        }
    }
    Ok(all.into_iter().map(|(node, notes)| NodeTrust { node, notes }).collect())
}
