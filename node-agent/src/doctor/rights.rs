//! What the API server lets whom do.

use serde_json::{Value, json};

use super::api::{Cluster, NoAnswer};
use super::finding::Finding;
use crate::ca_protocol::{AGENT, BUNDLE, CONTROLLER};
use crate::controller::store::SECRET;

/// A right: verb, group, resource, in Warren's namespace or not, and the object's name if it is about one.
type Right = (&'static str, &'static str, &'static str, bool, &'static str);

/// What `kubectl apply -k` needs.
const INSTALLER: [Right; 7] = [
    ("create", "", "namespaces", false, ""),
    ("create", "apps", "daemonsets", true, ""),
    ("create", "apps", "deployments", true, ""),
    ("create", "policy", "poddisruptionbudgets", true, ""),
    ("create", "rbac.authorization.k8s.io", "clusterroles", false, ""),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings", false, ""),
    ("create", "admissionregistration.k8s.io", "validatingadmissionpolicies", false, ""),
];
/// Without these an agent serves no world, or no identity.
const AGENTS: [Right; 8] = [
    ("watch", "", "pods", false, ""),
    ("watch", "", "namespaces", false, ""),
    ("watch", "", "services", false, ""),
    ("watch", "discovery.k8s.io", "endpointslices", false, ""),
    ("watch", "security.istio.io", "authorizationpolicies", false, ""),
    ("watch", "security.istio.io", "peerauthentications", false, ""),
    ("get", "", "configmaps", true, BUNDLE),
    ("get", "apps", "daemonsets", true, AGENT),
];
/// Without these a controller signs nothing.
const CONTROLLERS: [Right; 5] = [
    ("create", "authentication.k8s.io", "tokenreviews", false, ""),
    ("get", "", "pods", false, ""),
    ("update", "", "secrets", true, SECRET),
    ("update", "", "configmaps", true, BUNDLE),
    ("update", "coordination.k8s.io", "leases", true, CONTROLLER),
];
const OWN: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const OTHERS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Asks for all of them.
pub(super) async fn check(cluster: &Cluster, namespace: &str) -> Vec<Finding> {
    let mut findings =
        vec![all("rights", cluster, namespace, None, &INSTALLER, "apply as a cluster administrator").await];
    let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{AGENT}");
    if matches!(cluster.get(&accounts).await, Ok(Some(_))) {
        let cure = "kubectl apply -k deploy/ puts Warren's own roles back; what else takes rights away (a webhook \
                    authorizer)?";
        for (check, account, rights) in
            [("agent-rights", AGENT, &AGENTS[..]), ("controller-rights", CONTROLLER, &CONTROLLERS[..])]
        {
            let user = format!("system:serviceaccount:{namespace}:{account}");
            findings.push(all(check, cluster, namespace, Some(&user), rights, cure).await);
        }
    }
    findings
}

async fn all(
    check: &'static str,
    cluster: &Cluster,
    namespace: &str,
    user: Option<&str>,
    rights: &[Right],
    cure: &str,
) -> Finding {
    let who = user.unwrap_or("whoever runs this");
    match lacking(cluster, namespace, user, rights).await {
        Ok(lacking) if lacking.is_empty() => Finding::ok(check, format!("{who} may do what is needed")),
        Ok(lacking) => Finding::error(check, format!("{who} may not {}", lacking.join(", ")), cure),
        Err(why) => Finding::skipped(check, why.to_string()),
    }
}

async fn lacking(
    cluster: &Cluster,
    namespace: &str,
    user: Option<&str>,
    rights: &[Right],
) -> Result<Vec<String>, NoAnswer> {
    let mut lacking = Vec::new();
    for right in rights {
        let path = if user.is_some() { OTHERS } else { OWN };
        let answer = cluster.review(path, &review(right, namespace, user)).await?;
        if answer["status"]["allowed"] != true {
            let (verb, _, resource, _, name) = right;
            lacking.push(if name.is_empty() {
                format!("{verb} {resource}")
            } else {
                format!("{verb} {resource} {name}")
            });
        }
    }
    Ok(lacking)
}

fn review(&(verb, group, resource, namespaced, name): &Right, namespace: &str, user: Option<&str>) -> Value {
    let mut attributes = json!({"verb": verb, "group": group, "resource": resource});
    if namespaced {
        attributes["namespace"] = json!(namespace);
    }
    if !name.is_empty() {
        attributes["name"] = json!(name);
    }
    let mut spec = json!({"resourceAttributes": attributes});
    let kind = if user.is_some() { "SubjectAccessReview" } else { "SelfSubjectAccessReview" };
    if let Some(user) = user {
        spec["user"] = json!(user);
    }
    json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_asks_for_one_right() {
        let asked = review(&AGENTS[6], "warren-system", Some("u"));
        assert_eq!((&asked["kind"], &asked["spec"]["user"]), (&json!("SubjectAccessReview"), &json!("u")));
        let attributes = &asked["spec"]["resourceAttributes"];
        assert_eq!((&attributes["name"], &attributes["namespace"]), (&json!(BUNDLE), &json!("warren-system")));
        let own = review(&INSTALLER[0], "warren-system", None);
        assert!(own["spec"]["user"].is_null() && own["spec"]["resourceAttributes"]["namespace"].is_null());
    }
}
