//! `warren uninstall`: nodes first, then objects. Policies, labels and others' CRDs stay, and so do the authority's keys
//! unless they are not wanted any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::{Method, Request};
use serde_json::{Value, json};

use crate::ca_protocol::{AGENT, BUNDLE, CONTROLLER};
use crate::cli::UninstallArgs;
use crate::controller::store::SECRET;
use crate::exit::{Exit, Fatal, chain};
use crate::kube_client::{connect_as_kubectl, is_status};

/// What every object of an install is labelled with.
const OURS: &str = "app.kubernetes.io/part-of=warren";
/// How often the API server is asked whether something is gone.
const LOOK: Duration = Duration::from_secs(1);
/// Kinds of the namespace, in the order in which they go.
const NAMESPACED: [&str; 6] = [
    "/apis/apps/v1/namespaces/NS/deployments",
    "/apis/policy/v1/namespaces/NS/poddisruptionbudgets",
    "/api/v1/namespaces/NS/services",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/NS/rolebindings",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/NS/roles",
    "/api/v1/namespaces/NS/serviceaccounts",
];
/// Kinds of the cluster.
const CLUSTER: [&str; 4] = [
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
];
const MESH_NODES: &str = "/apis/warren.dev/v1alpha1/meshnodes";
const MESH_NODE_CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/meshnodes.warren.dev";

/// Removes Warren from a cluster.
pub(crate) async fn run(args: UninstallArgs) -> Result<(), Fatal> {
    let client = connect_as_kubectl(args.api.kubeconfig.as_deref())
        .await
        .map_err(|error| Fatal::new(Exit::Usage, "--kubeconfig", &error))?;
    let cluster = Cluster { client, namespace: args.namespace.clone() };
    let unclean = cluster.end_agents(args.wait).await?;
    cluster.delete_objects().await?;
    if args.purge {
        cluster.delete(MESH_NODE_CRD).await?;
        cluster.delete(&format!("/api/v1/namespaces/{}", args.namespace)).await?;
    } else {
        println!(
            "kept: namespace {} with Secret {SECRET} and ConfigMap {BUNDLE}: a later install goes on with the same \
             roots; --purge deletes them",
            args.namespace
        );
    }
    println!("kept: policies, labels, and the CRDs of policies");
    if unclean.is_empty() {
        return Ok(());
    }
    let nodes = unclean.into_iter().collect::<Vec<_>>().join(", ");
    let message = format!(
        "no agent has cleaned these nodes: {nodes}. Captured pods there are cut off: run `warren doctor --clean-node \
         --node NODE` on each, or restart it"
    );
    Err(Fatal { exit: Exit::CleanupIncomplete, message })
}

struct Cluster {
    client: kube::Client,
    namespace: String,
}

impl Cluster {
    /// Ends the agents, each of which cleans its node because its DaemonSet is being deleted. The nodes that none has
    /// cleaned.
    async fn end_agents(&self, wait: Duration) -> Result<BTreeSet<String>, Fatal> {
        let set = format!("/apis/apps/v1/namespaces/{}/daemonsets/{AGENT}", self.namespace);
        // Who does not run cannot clean, and by its MeshNode a node says until it is clean that it is not.
        let idle = self.agents(|pod| !is_running(pod)).await?;
        if self.delete_with(&set, &json!({"propagationPolicy": "Foreground"})).await? {
            println!("agents are told to clean their nodes …");
        }
        let until = Instant::now() + wait;
        while self.get(&set).await?.is_some() {
            if Instant::now() > until {
                let nodes = self.agents(|_| true).await?.into_iter().collect::<Vec<_>>().join(", ");
                let message = format!(
                    "the agents of these nodes have not ended within {}: {nodes}. Nothing else was deleted: they clean \
                     their nodes when these come back; delete the Node objects of those that never will, and run this \
                     again",
                    humantime::format_duration(wait)
                );
                return Err(Fatal { exit: Exit::CleanupIncomplete, message });
            }
            tokio::time::sleep(LOOK).await;
        }
        let left = self.list(MESH_NODES, "").await?;
        let mut unclean: BTreeSet<String> = left.iter().filter_map(name).collect();
        unclean.extend(idle);
        for node in left.iter().filter_map(name) {
            self.delete(&format!("{MESH_NODES}/{node}")).await?;
        }
        Ok(unclean)
    }

    /// The nodes of agents' pods.
    async fn agents(&self, which: impl Fn(&Value) -> bool) -> Result<BTreeSet<String>, Fatal> {
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let pods = self.list(&pods, &format!("app.kubernetes.io/name={AGENT}")).await?;
        let nodes = pods.iter().filter(|pod| which(pod)).filter_map(|pod| pod["spec"]["nodeName"].as_str());
        Ok(nodes.map(str::to_owned).collect())
    }

    async fn delete_objects(&self) -> Result<(), Fatal> {
        for kind in NAMESPACED.map(|path| path.replace("NS", &self.namespace)) {
            self.delete_ours(&kind).await?;
        }
        for kind in CLUSTER {
            self.delete_ours(kind).await?;
        }
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/{CONTROLLER}", self.namespace);
        self.delete(&lease).await.map(drop)
    }

    /// Deletes the objects of a kind that bear both our label and a name of ours.
    async fn delete_ours(&self, kind: &str) -> Result<(), Fatal> {
        for object in self.list(kind, OURS).await?.iter().filter_map(name).filter(|name| name.starts_with("warren-")) {
            self.delete(&format!("{kind}/{object}")).await?;
        }
        Ok(())
    }

    /// Deletes an object and says so; whether it was there.
    async fn delete(&self, path: &str) -> Result<bool, Fatal> {
        self.delete_with(path, &json!({"propagationPolicy": "Background"})).await
    }

    async fn delete_with(&self, path: &str, options: &Value) -> Result<bool, Fatal> {
        let there = self.ask(Method::DELETE, path, options.to_string().into_bytes()).await?.is_some();
        if there {
            let (kind, object) = path.rsplit_once('/').unwrap_or(("", path));
            println!("deleted {}/{object}", kind.rsplit('/').next().unwrap_or_default());
        }
        Ok(there)
    }

    async fn get(&self, path: &str) -> Result<Option<Value>, Fatal> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    /// The objects of a kind; none if the cluster lacks the kind.
    async fn list(&self, kind: &str, labels: &str) -> Result<Vec<Value>, Fatal> {
        let labels = labels.replace('=', "%3D").replace('/', "%2F");
        let listed = self.get(&format!("{kind}?labelSelector={labels}")).await?;
        Ok(listed.and_then(|list| list["items"].as_array().cloned()).unwrap_or_default())
    }

    /// `None` is a 404.
    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Option<Value>, Fatal> {
        let failed = |error: &dyn std::fmt::Display| Fatal {
            exit: Exit::World,
            message: format!("{method} {path}: {error}; nothing after this was deleted"),
        };
        let request = Request::builder().method(method.clone()).uri(path);
        let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body);
        match self.client.request::<Value>(request.map_err(|error| failed(&error))?).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_status(&error, 404) => Ok(None),
            Err(error) => Err(failed(&chain(&error))),
        }
    }
}

fn name(object: &Value) -> Option<String> {
    object["metadata"]["name"].as_str().map(str::to_owned)
}

/// Whether the agent itself runs, so that it hears that it is to end.
fn is_running(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses.into_iter().flatten().any(|status| status["state"]["running"].is_object())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_or_crashes_cleans_nothing() {
        let pod = |state: Value| json!({"status": {"containerStatuses": [{"state": state}]}});
        assert!(is_running(&pod(json!({"running": {"startedAt": "x"}}))));
        assert!(!is_running(&pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}))));
        assert!(!is_running(&json!({"status": {"phase": "Pending"}})));
    }
}
