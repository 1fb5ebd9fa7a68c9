//! A cluster, by its API server.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::api::{Cluster, NoAnswer};
use super::finding::Finding;
use super::policies;
use super::rights;
use crate::ca_protocol::{AGENT, CONTROLLER};

/// What SVIDs begin before they are made, and more than clocks that follow a server ever differ.
const SKEW_WARNING: Duration = Duration::from_secs(5);
const SKEW_ERROR: Duration = Duration::from_secs(60);

/// Looks at everything that the API server tells.
pub(crate) async fn check_cluster(cluster: &Cluster, namespace: &str) -> Vec<Finding> {
    let mut findings = server(cluster).await;
    if findings.iter().any(|one| one.check == "api-server" && one.cure.is_some()) {
        return findings;
    }
    findings.push(installed(cluster, namespace).await);
    findings.extend(rights::check(cluster, namespace).await);
    findings.push(cilium(cluster).await);
    findings.extend(policies::check(cluster).await);
    findings
}

/// What a check says that could not be made.
pub(super) fn unless(check: &'static str, found: Result<Finding, NoAnswer>) -> Finding {
    found.unwrap_or_else(|why| Finding::skipped(check, why.to_string()))
}

async fn server(cluster: &Cluster) -> Vec<Finding> {
    let before = SystemTime::now();
    match cluster.version().await {
        Err(error) => {
            let cure = "is the kubeconfig right (--kubeconfig, KUBECONFIG), and the server up?";
            vec![Finding::error("api-server", error.to_string(), cure)]
        }
        Ok(answer) => {
            let version = answer.value["gitVersion"].as_str().unwrap_or("unknown");
            let server = Finding::ok("api-server", format!("Kubernetes {version}"));
            vec![server, clock(answer.date, before, SystemTime::now())]
        }
    }
}

/// The server's clock against this machine's, which was between `before` and `after` when the server looked at its own.
fn clock(server: Option<SystemTime>, before: SystemTime, after: SystemTime) -> Finding {
    let Some(server) = server else { return Finding::skipped("clock", "the API server does not tell its time") };
    // The header has whole seconds.
    let ahead = server.duration_since(after).unwrap_or_default();
    let behind = before.duration_since(server + Duration::from_secs(1)).unwrap_or_default();
    let skew = ahead.max(behind);
    let text = format!("this machine's clock and the API server's differ by {} s", skew.as_secs());
    let cure = "let both follow a time server (chrony, systemd-timesyncd): SVIDs are refused before they begin and after \
                they end";
    if skew > SKEW_ERROR {
        Finding::error("clock", text, cure)
    } else if skew > SKEW_WARNING {
        Finding::warning("clock", text, cure)
    } else {
        Finding::ok("clock", text)
    }
}

async fn installed(cluster: &Cluster, namespace: &str) -> Finding {
    unless("install", state(cluster, namespace).await)
}

async fn state(cluster: &Cluster, namespace: &str) -> Result<Finding, NoAnswer> {
    let of = |kind: &str, name: &str| format!("/apis/apps/v1/namespaces/{namespace}/{kind}/{name}");
    let agents = cluster.get(&of("daemonsets", AGENT)).await?;
    let controllers = cluster.get(&of("deployments", CONTROLLER)).await?;
    let count = |object: &Value, field: &str| object["status"][field].as_u64().unwrap_or(0);
    Ok(match (agents, controllers) {
        (None, None) => Finding::ok("install", format!("Warren is not installed in {namespace}")),
        (Some(agents), Some(controllers)) => {
            let (ready, wanted) = (count(&agents, "numberReady"), count(&agents, "desiredNumberScheduled"));
            let signing = count(&controllers, "readyReplicas");
            let text = format!("{ready} of {wanted} agents are ready, and {signing} controllers");
            if signing == 0 {
                let cure =
                    format!("kubectl -n {namespace} logs deploy/{CONTROLLER}: no pod gets an identity until then");
                Finding::error("install", text, cure)
            } else if ready < wanted {
                let cure = format!("kubectl -n {namespace} get pods -o wide, and the logs of those that are not ready");
                Finding::warning("install", text, cure)
            } else {
                Finding::ok("install", text)
            }
        }
        _ => Finding::error("install", "half of an install is there", "kubectl apply -k deploy/, or warren uninstall"),
    })
}

async fn cilium(cluster: &Cluster) -> Finding {
    let path = "/api/v1/namespaces/kube-system/configmaps/cilium-config";
    let found = cluster.get(path).await;
    unless("cilium", found.map(|config| config.map_or_else(no_cilium, |config| judge_cilium(&config["data"]))))
}

fn no_cilium() -> Finding {
    Finding::ok("cilium", "no Cilium is in kube-system")
}

fn judge_cilium(data: &Value) -> Finding {
    let is = |key: &str| data[key] == "true";
    let balances = is("bpf-lb-sock") || ["true", "strict"].iter().any(|value| data["kube-proxy-replacement"] == *value);
    if balances && !is("bpf-lb-sock-hostns-only") {
        return Finding::error(
            "cilium",
            "Cilium's socket load balancer rewrites pods' connections before Warren sees them, so that policies see \
             endpoints instead of Services",
            "set socketLB.hostNamespaceOnly=true (bpf-lb-sock-hostns-only: \"true\") and restart Cilium's agents",
        );
    }
    if data["cni-exclusive"] != "false" {
        return Finding::error(
            "cilium",
            "Cilium renames other plugins' configurations, so that pods would start without Warren's",
            "set cni.exclusive=false (cni-exclusive: \"false\") and restart Cilium's agents",
        );
    }
    Finding::ok("cilium", "Cilium leaves pods' connections and others' CNI configurations alone")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn clocks_may_differ_by_what_the_answer_took() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        let level = |server| clock(Some(at(server)), at(100), at(103)).level;
        assert_eq!([level(99), level(103), level(108)], [Level::Ok; 3]);
        assert_eq!([level(110), level(90)], [Level::Warning; 2]);
        assert_eq!([level(30), level(170)], [Level::Error; 2]);
        assert_eq!(clock(None, at(0), at(0)).level, Level::Skipped);
    }

    #[test]
    fn cilium_must_leave_pods_and_configurations_alone() {
        let level = |data: Value| judge_cilium(&data).level;
        assert_eq!(level(json!({"bpf-lb-sock": "true", "cni-exclusive": "false"})), Level::Error);
        assert_eq!(level(json!({"kube-proxy-replacement": "true", "cni-exclusive": "false"})), Level::Error);
        assert_eq!(level(json!({"kube-proxy-replacement": "false"})), Level::Error, "exclusive is the default");
        let alone = json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true", "cni-exclusive": "false"});
        assert_eq!(level(alone), Level::Ok);
    }
}
