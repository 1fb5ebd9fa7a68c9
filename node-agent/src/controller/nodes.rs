//! What the agents say of themselves: which roots they trust, and who signed what their pods use.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde::Deserialize;
use warren_mesh::identity::TrustNotes;

use super::rotation::NodeTrust;
use crate::ca_protocol::AGENT;

/// Path of all MeshNodes.
const MESH_NODES: &str = "/apis/warren.dev/v1alpha1/meshnodes";

#[derive(Deserialize)]
struct List {
    items: Vec<MeshNode>,
}

#[derive(Deserialize)]
struct MeshNode {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Spec {
    identity: Option<Identity>,
}

#[derive(Deserialize)]
struct Identity {
    bundle: String,
    #[serde(default)]
    issuers: Vec<String>,
}

/// Every node with an agent, or with something that an agent said: one that is cut off counts as long as its node has
/// not been deleted.
pub(crate) async fn nodes(client: &kube::Client, namespace: &str) -> Result<Vec<NodeTrust>, kube::Error> {
    let request = http::Request::get(MESH_NODES).body(Vec::new()).map_err(kube::Error::HttpError)?;
    let list: List = client.request(request).await?;
    let mut all: BTreeMap<String, Option<TrustNotes>> = BTreeMap::new();
    for MeshNode { metadata, spec } in list.items {
        let notes = spec.identity.map(|one| TrustNotes { bundle: one.bundle, issuers: one.issuers });
        all.insert(metadata.name, notes);
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
