//! What a pod's owner is told by Kubernetes events.

use std::time::Duration;

use serde_json::{Value, json};
use warren_test_support::api_server::{self, ApiServer};
use warren_test_support::{Lab, eventually};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_pod_that_is_refused_has_an_event_that_says_why() {
    let Ok(bin) = api_server::binaries().map_err(|why| eprintln!("SKIPPED: {why}")) else { return };
    let lab = Lab::new(1);
    let api = ApiServer::start(bin, lab.node(0), lab.dir().join("api"));
    api.namespace("prod", &json!({"warren.dev/mode": "ambient"}));
    let mut agent = lab.agent(0).kubernetes(&api.agent_config()).launch();
    agent.wait_ready();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node-wide", "namespace": "prod"},
        "spec": {"nodeName": lab.node_name(0), "hostNetwork": true, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "none"}]}});
    api.apply(&pod.to_string());
    let events = || -> Vec<Value> {
        let text = api.kubectl(&["get", "events", "-n", "prod", "-o", "json"], "");
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    let event = eventually("an event", SOON, || {
        events().into_iter().find(|event| event["involvedObject"]["name"] == "node-wide")
    });
    assert_eq!((event["reason"].as_str(), event["type"].as_str()), (Some("WarrenRefused"), Some("Warning")));
    assert!(event["message"].as_str().unwrap().contains("network"), "{event}");
    assert_eq!(event["source"]["host"], lab.node_name(0));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(events().len(), 1, "it is said once");
}
