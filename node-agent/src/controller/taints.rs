//! New nodes take pods when their agent serves: whoever registers nodes gives them a taint, which the leading controller
//! takes away. Agents themselves may not write nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::custody::SharedStanding;
use super::nodes::mesh_nodes;
use crate::exit::chain;
use crate::kube_client::is_status;
use crate::mesh_node::MeshNode;

/// Key of the taint; its effect is for who registers the node to choose.
pub(crate) const START_UP: &str = "warren.dev/agent-not-ready";
/// How often the agents' words are read.
const LOOK: Duration = Duration::from_secs(3);

/// Takes taints away while this replica leads.
pub(crate) async fn run(client: kube::Client, standing: SharedStanding) {
    let nodes: Api<Node> = Api::all(client.clone());
    // Nodes by name and UID: one that is made again has its taint again.
    let mut clear: BTreeSet<(String, String)> = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        if !standing.get().leads {
            clear.clear();
            continue;
        }
        let Ok(said) = mesh_nodes(&client).await else { continue };
        let serving: Vec<(String, String)> = said.iter().filter(|one| one.serves()).filter_map(named).collect();
        clear.retain(|one| serving.contains(one));
        for (name, uid) in serving {
            let known = (name.clone(), uid.clone());
            if clear.contains(&known) {
                continue;
            }
            match untaint(&nodes, &name, &uid).await {
                Ok(true) => {
                    clear.insert(known);
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(node = name, error = chain(&error), "its start-up taint stays"),
            }
        }
    }
}

fn named(one: &MeshNode) -> Option<(String, String)> {
    Some((one.name().to_owned(), one.node_uid()?.to_owned()))
}

/// Whether a node is without the taint now. One of another UID is not the one whose agent serves.
async fn untaint(nodes: &Api<Node>, name: &str, uid: &str) -> Result<bool, kube::Error> {
    let Some(node) = nodes.get_opt(name).await? else { return Ok(false) };
    if node.metadata.uid.as_deref() != Some(uid) {
        return Ok(false);
    }
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let kept: Vec<_> = taints.iter().filter(|taint| taint.key != START_UP).collect();
    if kept.len() == taints.len() {
        return Ok(true);
    }
    let version = node.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": kept}});
    match nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(node = name, "its agent serves: the start-up taint is gone");
            Ok(true)
        }
        // Somebody else wrote the node in between.
        Err(error) if is_status(&error, 409) => Ok(false),
        Err(error) => Err(error),
    }
}
