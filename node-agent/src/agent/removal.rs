//! What becomes of capture when the agent is told to end. It stays, so that nothing leaves in clear until the next agent
//! comes, unless the API server has said that none will come: its DaemonSet, or the namespace of that, is gone or being
//! deleted. No answer, and no permission to ask, say nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api as ObjectApi;
use serde_json::Value;
use tokio::time::timeout;
use warren_core::world::Kind;

use crate::config::{Config, WorldSource};
use crate::exit::chain;
use crate::kube_client::{connect, is_status};
use crate::traces::Traces;
use crate::world_kube::{Api, WatchError, Watched};

/// How long the API server may take to say what becomes of the DaemonSet: kubelet kills whoever lingers.
const ANSWER: Duration = Duration::from_secs(4);
/// How long it may take to delete this node's MeshNode.
const DELETE: Duration = Duration::from_secs(3);
/// Longest silence of a watch; the server sends a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// Between two watches, also failed ones.
const PAUSE: Duration = Duration::from_secs(5);
const NAMESPACES: Watched =
    Watched { kind: Kind::Namespace, group: "", version: "v1", plural: "namespaces", optional: false };

/// What is known of the agent's own removal.
#[derive(Clone)]
pub(super) struct Removal(Option<Known>);

#[derive(Clone)]
struct Known {
    kubeconfig: Option<PathBuf>,
    namespace: String,
    daemon_set: String,
    node: String,
    /// The namespace is being deleted. Watched, because with it go the account and the rights by which the agent could
    /// ask when it is told to end; and nobody can take that deletion back.
    namespace_goes: Arc<AtomicBool>,
}

impl Removal {
    /// Begins to watch the agent's namespace, if the agent is of a DaemonSet.
    pub(super) fn start(config: &Config) -> Self {
        let (WorldSource::Kubernetes { kubeconfig, .. }, Some(daemon_set)) = (&config.world, &config.daemon_set) else {
            return Self(None);
        };
        let known = Known {
            kubeconfig: kubeconfig.clone(),
            namespace: config.system_namespace.clone(),
            daemon_set: daemon_set.clone(),
            node: config.node.clone(),
            namespace_goes: Arc::default(),
        };
        tokio::task::spawn_local(known.clone().watch());
        Self(Some(known))
    }

    /// Why no agent will follow this one; `None` if that is not proven.
    pub(super) async fn proven(&self) -> Option<String> {
        let known = self.0.as_ref()?;
        if known.namespace_goes.load(Ordering::Relaxed) {
            return Some(format!("namespace {} is being deleted", known.namespace));
        }
        match timeout(ANSWER, known.ask()).await {
            Ok(Ok(proof)) => proof,
            Ok(Err(error)) => {
                tracing::warn!(error, "whether the DaemonSet is being deleted is not known; capture stays");
                None
            }
            Err(_) => {
                tracing::warn!("the API server does not say whether the DaemonSet is being deleted; capture stays");
                None
            }
        }
    }

    /// Removes what is left of the agent, and last its MeshNode, which tells that its node is clean.
    pub(super) async fn finish(&self, traces: &Traces) {
        let report = match traces.remove() {
            Ok(report) => report,
            Err(error) => return tracing::error!(error = chain(&error), "this node is not clean"),
        };
        for left in &report.left {
            tracing::error!(left, "not removed; `warren doctor --clean-node` tries again");
        }
        tracing::info!(removed = report.removed.len(), left = report.left.len(), "capture is taken away");
        if let (Some(known), true) = (&self.0, report.left.is_empty()) {
            match timeout(DELETE, known.delete_mesh_node()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error, "MeshNode not deleted"),
                Err(_) => tracing::warn!("MeshNode not deleted: the API server does not answer"),
            }
        }
    }
}

impl Known {
    /// Asks for the DaemonSet; an answer that says neither that it goes nor that it stays is an error.
    async fn ask(&self) -> Result<Option<String>, String> {
        let client = connect(self.kubeconfig.as_deref()).await.map_err(|error| error.to_string())?;
        let sets: ObjectApi<DaemonSet> = ObjectApi::namespaced(client, &self.namespace);
        let name = format!("DaemonSet {}/{}", self.namespace, self.daemon_set);
        match sets.get(&self.daemon_set).await {
            Ok(set) if set.metadata.deletion_timestamp.is_some() => Ok(Some(format!("{name} is being deleted"))),
            Ok(_) => Ok(None),
            Err(error) if is_gone(&error, &self.daemon_set) => Ok(Some(format!("{name} is gone"))),
            Err(error) => Err(chain(&error)),
        }
    }

    async fn delete_mesh_node(&self) -> Result<(), String> {
        let client = connect(self.kubeconfig.as_deref()).await.map_err(|error| error.to_string())?;
        let path = format!("/apis/warren.dev/v1alpha1/meshnodes/{}", self.node);
        let request = http::Request::delete(path).body(Vec::new()).map_err(|error| error.to_string())?;
        match client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(error) if is_status(&error, 404) => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }

    async fn watch(self) {
        let mut complained = false;
        loop {
            if let Err(error) = self.watch_once().await {
                // The world's own watches say the same of the API server, and louder.
                if !std::mem::replace(&mut complained, true) {
                    tracing::info!(%error, "the watch of the agent's own namespace was interrupted");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn watch_once(&self) -> Result<(), WatchError> {
        let api = Api::connect(self.kubeconfig.as_ref()).await?;
        let query = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds=300&fieldSelector=metadata.name%3D{}",
            self.namespace
        );
        let mut lines = api.lines(NAMESPACES, &query).await?;
        while let Some(line) = lines.next(SILENCE).await? {
            if let Some(goes) = goes(&line, &self.namespace) {
                self.namespace_goes.store(goes, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// A 404 that speaks of this very object: one alone may come from anything in between.
fn is_gone(error: &kube::Error, name: &str) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let details = status.details.as_ref();
    status.code == 404
        && status.reason == "NotFound"
        && details.is_some_and(|details| details.name == name && details.kind == "daemonsets")
}

/// What an event of a watch says of the namespace's end; `None` if nothing.
fn goes(line: &[u8], namespace: &str) -> Option<bool> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let metadata = &event["object"]["metadata"];
    if event["object"]["kind"] != "Namespace" || metadata["name"] != namespace {
        return None;
    }
    match event["type"].as_str()? {
        "ADDED" | "MODIFIED" => Some(metadata["deletionTimestamp"].is_string()),
        "DELETED" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: &str, name: &str, more: &str) -> Option<bool> {
        let object = format!(r#"{{"kind":"Namespace","metadata":{{"name":"{name}"{more}}}}}"#);
        goes(format!(r#"{{"type":"{kind}","object":{object}}}"#).as_bytes(), "warren-system")
    }

    #[test]
    fn only_the_namespaces_own_end_is_one() {
        let going = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
        assert_eq!(said("ADDED", "warren-system", ""), Some(false));
        assert_eq!(said("MODIFIED", "warren-system", going), Some(true));
        assert_eq!(said("DELETED", "warren-system", ""), Some(true));
        assert_eq!(said("DELETED", "other", ""), None);
        assert_eq!(said("BOOKMARK", "warren-system", going), None);
        assert_eq!(goes(br#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#, "warren-system"), None);
        assert_eq!(goes(b"nonsense", "warren-system"), None);
    }

    #[test]
    fn only_a_404_of_the_object_itself_says_that_it_is_gone() {
        let error = |body: &str| kube::Error::Api(Box::new(serde_json::from_str(body).unwrap()));
        let status = |code: u16, reason: &str, name: &str| {
            error(&format!(
                r#"{{"status":"Failure","message":"m","reason":"{reason}","code":{code},
                    "details":{{"name":"{name}","group":"apps","kind":"daemonsets"}}}}"#
            ))
        };
        assert!(is_gone(&status(404, "NotFound", "warren-agent"), "warren-agent"));
        assert!(!is_gone(&status(403, "Forbidden", "warren-agent"), "warren-agent"));
        assert!(!is_gone(&status(401, "Unauthorized", "warren-agent"), "warren-agent"));
        assert!(!is_gone(&status(404, "NotFound", "other"), "warren-agent"));
        let proxy = error(r#"{"status":"Failure","message":"404 page not found","reason":"Failed","code":404}"#);
        assert!(!is_gone(&proxy, "warren-agent"));
    }
}
