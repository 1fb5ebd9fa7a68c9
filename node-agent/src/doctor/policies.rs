//! What others want of traffic that enrolment changes: NetworkPolicies, and callers that are in no mesh.

use std::collections::BTreeSet;

use serde_json::Value;

use super::api::{Cluster, NoAnswer};
use super::cluster::unless;
use super::finding::Finding;

/// Where a pod's tunnels arrive.
const TUNNEL: u64 = 15008;
const LABELS: [&str; 2] = ["warren.dev/mode", "istio.io/dataplane-mode"];

/// Looks at what concerns namespaces that are in the mesh, or have pods that are.
pub(super) async fn check(cluster: &Cluster) -> Vec<Finding> {
    let enrolled = match enrolled(cluster).await {
        Ok(enrolled) => enrolled,
        Err(why) => return vec![Finding::skipped("namespaces", why.to_string())],
    };
    if enrolled.is_empty() {
        return vec![Finding::ok("namespaces", "none is labelled for the mesh")];
    }
    let text = format!("in the mesh by their labels: {}", enrolled.iter().cloned().collect::<Vec<_>>().join(", "));
    vec![
        Finding::ok("namespaces", text),
        unless("network-policies", network_policies(cluster, &enrolled).await),
        unless("webhooks", backends(cluster, &enrolled, Caller::Webhooks).await),
        unless("api-services", backends(cluster, &enrolled, Caller::ApiServices).await),
        unless("port-15008", tunnel_port(cluster, &enrolled).await),
    ]
}

async fn enrolled(cluster: &Cluster) -> Result<BTreeSet<String>, NoAnswer> {
    let namespaces = cluster.list("/api/v1/namespaces").await?;
    Ok(namespaces.iter().filter(|one| is_ambient(one)).filter_map(name).collect())
}

fn is_ambient(object: &Value) -> bool {
    LABELS.iter().any(|label| object["metadata"]["labels"][*label] == "ambient")
}

fn name(object: &Value) -> Option<String> {
    object["metadata"]["name"].as_str().map(str::to_owned)
}

fn within(object: &Value, enrolled: &BTreeSet<String>) -> bool {
    object["metadata"]["namespace"].as_str().is_some_and(|namespace| enrolled.contains(namespace))
}

fn full_name(object: &Value) -> String {
    format!("{}/{}", object["metadata"]["namespace"].as_str().unwrap_or(""), name(object).unwrap_or_default())
}

fn listed(objects: &[String]) -> String {
    objects.join(", ")
}

async fn network_policies(cluster: &Cluster, enrolled: &BTreeSet<String>) -> Result<Finding, NoAnswer> {
    let all = cluster.list("/apis/networking.k8s.io/v1/networkpolicies").await?;
    let cut: Vec<String> =
        all.iter().filter(|one| within(one, enrolled) && cuts_tunnels(&one["spec"])).map(full_name).collect();
    if cut.is_empty() {
        return Ok(Finding::ok("network-policies", "none names ports without 15008"));
    }
    Ok(Finding::error(
        "network-policies",
        format!(
            "these let chosen ports pass but not TCP 15008, by which pods of the mesh reach each other: {}",
            listed(&cut)
        ),
        "add port 15008 (TCP) to their rules; who may call whom beyond that is AuthorizationPolicy's",
    ))
}

/// Whether a policy lets something pass, and no tunnel.
fn cuts_tunnels(spec: &Value) -> bool {
    ["ingress", "egress"].iter().any(|direction| {
        let rules = spec[*direction].as_array().map(Vec::as_slice).unwrap_or_default();
        // Without rules nothing is meant to pass.
        !rules.is_empty() && !rules.iter().any(lets_tunnels_pass)
    })
}

fn lets_tunnels_pass(rule: &Value) -> bool {
    let ports = rule["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let passes = |port: &Value| {
        let tcp = port["protocol"].as_str().unwrap_or("TCP") == "TCP";
        let first = port["port"].as_u64();
        let last = port["endPort"].as_u64().or(first);
        // A name is that of a port that the pod declares, which 15008 is not.
        tcp && (port["port"].is_null() || first <= Some(TUNNEL) && Some(TUNNEL) <= last)
    };
    ports.is_empty() || ports.iter().any(passes)
}

/// Who calls pods from outside of every mesh: the API server itself.
#[derive(Clone, Copy)]
enum Caller {
    Webhooks,
    ApiServices,
}

async fn backends(cluster: &Cluster, enrolled: &BTreeSet<String>, caller: Caller) -> Result<Finding, NoAnswer> {
    let (check, services) = match caller {
        Caller::Webhooks => {
            let base = "/apis/admissionregistration.k8s.io/v1";
            let mut all = cluster.list(&format!("{base}/validatingwebhookconfigurations")).await?;
            all.extend(cluster.list(&format!("{base}/mutatingwebhookconfigurations")).await?);
            ("webhooks", all.iter().flat_map(webhook_services).collect::<Vec<_>>())
        }
        Caller::ApiServices => {
            let all = cluster.list("/apis/apiregistration.k8s.io/v1/apiservices").await?;
            let service = |one: &Value| (name(one).unwrap_or_default(), one["spec"]["service"].clone());
            ("api-services", all.iter().map(service).collect())
        }
    };
    let of_mesh = |service: &Value| service["namespace"].as_str().is_some_and(|namespace| enrolled.contains(namespace));
    let found: Vec<String> = services
        .iter()
        .filter(|(_, service)| of_mesh(service))
        .map(|(owner, service)| {
            let text = |field: &str| service[field].as_str().unwrap_or("");
            format!("{owner} (Service {}/{})", text("namespace"), text("name"))
        })
        .collect();
    if found.is_empty() {
        return Ok(Finding::ok(check, "none is served by a pod of the mesh"));
    }
    let text = format!("the API server calls pods of the mesh, in clear: {}", listed(&found));
    let cure = "a PeerAuthentication with portLevelMtls PERMISSIVE for the port of each, or label their pods \
                warren.dev/mode=none";
    if is_strict(cluster, enrolled).await? {
        let text = format!(
            "{text}; a PeerAuthentication says STRICT, so they are unreachable unless their ports are excepted"
        );
        return Ok(Finding::error(check, text, cure));
    }
    Ok(Finding::warning(check, format!("{text}; under STRICT they become unreachable"), cure))
}

fn webhook_services(configuration: &Value) -> Vec<(String, Value)> {
    let webhooks = configuration["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let owner = name(configuration).unwrap_or_default();
    webhooks.iter().map(|one| (owner.clone(), one["clientConfig"]["service"].clone())).collect()
}

async fn is_strict(cluster: &Cluster, enrolled: &BTreeSet<String>) -> Result<bool, NoAnswer> {
    let all = cluster.list("/apis/security.istio.io/v1/peerauthentications").await?;
    let counts = |one: &&Value| within(one, enrolled) || one["metadata"]["namespace"] == "istio-system";
    Ok(all.iter().filter(counts).any(|one| one["spec"]["mtls"]["mode"] == "STRICT"))
}

async fn tunnel_port(cluster: &Cluster, enrolled: &BTreeSet<String>) -> Result<Finding, NoAnswer> {
    let mut found = Vec::new();
    for namespace in enrolled {
        let pods = cluster.list(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
        found.extend(pods.iter().filter(|pod| declares(pod, TUNNEL)).map(|pod| match name(pod) {
            Some(pod) => format!("{namespace}/{pod}"),
            None => namespace.clone(),
        }));
    }
    if found.is_empty() {
        return Ok(Finding::ok("port-15008", "no pod of the mesh wants port 15008 for itself"));
    }
    Ok(Finding::error(
        "port-15008",
        format!("these pods declare port 15008, on which tunnels arrive: {}", listed(&found)),
        "another port for them, or warren.dev/mode=none",
    ))
}

fn declares(pod: &Value, port: u64) -> bool {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    containers.iter().filter_map(|one| one["ports"].as_array()).flatten().any(|one| one["containerPort"] == port)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_cuts_tunnels_if_it_names_other_ports_only() {
        let ingress = |rules: Value| cuts_tunnels(&json!({"ingress": rules}));
        assert!(ingress(json!([{"ports": [{"port": 8080}]}])));
        assert!(ingress(json!([{"ports": [{"port": "http"}]}])));
        assert!(ingress(json!([{"ports": [{"port": 15008, "protocol": "UDP"}]}])));
        assert!(ingress(json!([{"ports": [{"port": 15000, "endPort": 15007}]}])));
        assert!(!ingress(json!([{"ports": [{"port": 8080}, {"port": 15008, "protocol": "TCP"}]}])));
        assert!(!ingress(json!([{"ports": [{"port": 15000, "endPort": 15010}]}])));
        assert!(!ingress(json!([{"ports": [{"protocol": "TCP"}]}])), "every port");
        assert!(!ingress(json!([{"from": [{"podSelector": {}}]}])), "no ports named");
        assert!(!ingress(json!([])), "nothing is meant to pass");
        assert!(cuts_tunnels(&json!({"ingress": [{}], "egress": [{"ports": [{"port": 443}]}]})));
    }

    #[test]
    fn labels_of_both_meshes_count() {
        for label in LABELS {
            assert!(is_ambient(&json!({"metadata": {"labels": {label: "ambient"}}})));
        }
        assert!(!is_ambient(&json!({"metadata": {"labels": {"warren.dev/mode": "none"}}})));
    }

    #[test]
    fn declared_ports_are_found() {
        let pod = json!({"spec": {"containers": [{}, {"ports": [{"containerPort": 15008}]}]}});
        assert!(declares(&pod, 15008) && !declares(&pod, 80));
    }
}
