//! What the API server knows of a pod, and the identity that follows. Nothing of this comes from the agent that asks.

use k8s_openapi::api::core::v1::Pod;
use warren_core::identity::{SpiffeId, TrustDomain};

use super::refusal::Refusal;

const MIRROR: &str = "kubernetes.io/config.mirror";

/// The identity of a pod that runs on `node`, if it may have one. `uid` is the pod that the agent means: one of the same
/// name may have come in between.
pub(crate) fn identity(
    pod: &Pod,
    uid: &str,
    node: &str,
    system: &str,
    trust_domain: &TrustDomain,
) -> Result<SpiffeId, Refusal> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let name = meta.name.as_deref().unwrap_or_default();
    if uid.is_empty() || meta.uid.as_deref() != Some(uid) {
        return Err(Refusal::UnknownPod(format!("{namespace}/{name} of UID {uid}")));
    }
    let spec = pod.spec.as_ref();
    let runs_on = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if runs_on.is_empty() || runs_on != node {
        return Err(Refusal::OtherNode(if runs_on.is_empty() { "no node yet" } else { "another node" }.to_owned()));
    }
    if namespace == system {
        return Err(Refusal::SystemNamespace(system.to_owned()));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(Refusal::Finished);
    }
    if meta.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR)) {
        return Err(Refusal::Mirror);
    }
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        return Err(Refusal::HostNetwork);
    }
    let account = spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default();
    if account.is_empty() {
        return Err(Refusal::NoServiceAccount);
    }
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
        .parse()
        .map_err(|_| Refusal::UnknownPod(format!("{namespace}/{name} with a name that is no identity")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judge(change: impl FnOnce(&mut Value)) -> Result<String, &'static str> {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": "web-1", "uid": "u1"},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": []},
            "status": {"phase": "Running"},
        });
        change(&mut pod);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let domain = "cluster.local".parse().unwrap();
        identity(&pod, "u1", "n1", "warren-system", &domain)
            .map(|id| id.to_string())
            .map_err(|refusal| refusal.reason())
    }

    #[test]
    fn a_pod_of_the_node_gets_the_identity_of_its_account() {
        assert_eq!(judge(|_| ()).as_deref(), Ok("spiffe://cluster.local/ns/shop/sa/web"));
        assert!(judge(|pod| pod["status"]["phase"] = "Pending".into()).is_ok(), "SVIDs come before the first process");
    }

    #[test]
    fn what_is_no_pod_of_the_node_gets_none() {
        assert_eq!(judge(|pod| pod["metadata"]["uid"] = "u2".into()), Err("unknown_pod"));
        assert_eq!(judge(|pod| pod["spec"]["nodeName"] = "n2".into()), Err("other_node"));
        assert_eq!(judge(|pod| pod["spec"]["nodeName"] = Value::Null), Err("other_node"));
        assert_eq!(judge(|pod| pod["status"]["phase"] = "Succeeded".into()), Err("finished"));
        assert_eq!(judge(|pod| pod["status"]["phase"] = "Failed".into()), Err("finished"));
        assert_eq!(judge(|pod| pod["metadata"]["annotations"] = json!({MIRROR: "x"})), Err("mirror"));
        assert_eq!(judge(|pod| pod["spec"]["serviceAccountName"] = Value::Null), Err("no_service_account"));
        assert_eq!(judge(|pod| pod["spec"]["hostNetwork"] = true.into()), Err("host_network"));
        assert_eq!(judge(|pod| pod["metadata"]["namespace"] = "warren-system".into()), Err("system_namespace"));
    }
}
