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

/// What an agent says of its node.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MeshNode {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Debug, Clone, Deserialize)]
struct Owner {
    kind: String,
    uid: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    #[serde(default)]
    capabilities: Vec<String>,
    identity: Option<Identity>,
}

#[derive(Debug, Clone, Deserialize)]
struct Identity {
    bundle: String,
    #[serde(default)]
    issuers: Vec<String>,
}

impl MeshNode {
    /// The node's name.
    pub(crate) fn name(&self) -> &str {
        &self.metadata.name
    }

    /// The node's UID: an object of a node that was deleted may be there for a while.
    pub(crate) fn node_uid(&self) -> Option<&str> {
        self.metadata.owner_references.iter().find(|owner| owner.kind == "Node").map(|owner| owner.uid.as_str())
    }

    /// Whether its agent takes connections.
    pub(crate) fn serves(&self) -> bool {
        self.spec.capabilities.iter().any(|one| one == "hbone")
    }
}

/// Everything that agents say.
pub(crate) async fn mesh_nodes(client: &kube::Client) -> Result<Vec<MeshNode>, kube::Error> {
    let request = http::Request::get(MESH_NODES).body(Vec::new()).map_err(kube::Error::HttpError)?;
    Ok(client.request::<List>(request).await?.items)
}

/// Every node with an agent, or with something that an agent said: one that is cut off counts as long as its node has
/// not been deleted.
pub(crate) async fn nodes(client: &kube::Client, namespace: &str) -> Result<Vec<NodeTrust>, kube::Error> {
    let mut all: BTreeMap<String, Option<TrustNotes>> = BTreeMap::new();
    for MeshNode { metadata, spec } in mesh_nodes(client).await? {
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
