//! Joining, leaving, observing and refusing by label, of pods that a runtime made.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use warren_test_support::client::{assert_echo, connect, ping_pong, wait_cut};
use warren_test_support::command::{self, warren_bin};
use warren_test_support::{Agent, Server, eventually};

use super::Node;
use super::chain::{Sandbox, at, object, set_namespace};
use crate::fixture::any;

#[track_caller]
fn connections(agent: &Agent, options: &[&str]) -> Vec<Value> {
    let mut command = Command::new(warren_bin());
    command.args(["connections", "--json", "--socket"]).arg(agent.run_dir().join("agent.sock")).args(options);
    let output = command::output(&mut command);
    assert!(output.status.success(), "{}", command::text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn running_pods_join_and_leave_without_breaking_connections() {
    let mut pods = None;
    let mut node = Node::start(&json!({}), |lab| {
        set_namespace(lab, "moving", "");
        pods = Some((Sandbox::new(lab, "moving", "app", ""), lab.pod(0, "peer")));
    });
    let (app, peer) = pods.unwrap();
    let _echo = Server::echo(&peer.ns, any(9090));
    node.chain.add(&app).expect("ADD");
    // What joins later has to be known to the agent: here by its manifest, on Kubernetes by looking for it.
    let set = |node: &mut Node, mode: &str| {
        let text = object(&app, &node.lab.node_name(0), &format!("warren.dev/mode: {mode}"));
        let place = format!(
            "annotations: {{warren.dev/netns: {}, warren.dev/ips: {}}}, ",
            app.ns.path().display(),
            "10.50.0.2"
        );
        node.lab.manifest.set("pod moving/app", &text.replacen("labels:", &format!("{place}labels:"), 1));
        node.apply();
    };
    let mut old = connect(&app.ns, peer.at(9090)).unwrap();
    assert_eq!(ping_pong(&mut old, b"before").unwrap(), b"before");
    set(&mut node, "observe");
    let observed = node.agent.wait_status("it is observed, with an identity", |status| {
        status["pods"].as_array().unwrap().iter().any(|pod| pod["state"] == "observed" && pod["svid"].is_object())
    });
    assert!(observed.to_string().contains("/ns/moving/sa/app"));
    assert!(!app.ns.check("ip", &["rule"]).contains("fwmark"), "observed is not captured");
    set(&mut node, "ambient");
    assert_eq!(node.agent.pod("app")["state"], "enrolled");
    assert!(node.agent.pod("app")["svid"].is_object(), "the identity it had goes on");
    assert_eq!(ping_pong(&mut old, b"joined").unwrap(), b"joined");
    let listed = connections(&node.agent, &["--clear-text"]);
    assert!(listed.iter().any(|one| one["transport"] == "pre-enrolment"), "{listed:?}");
    assert_echo(&app.ns, node.server.at(8080), b"captured now");
    let mut within = connect(&app.ns, peer.at(9090)).unwrap();
    assert_eq!(ping_pong(&mut within, b"in").unwrap(), b"in");
    connections(&node.agent, &["--clear-text", "--cut"]);
    wait_cut(&mut old, Duration::from_secs(5));
    assert_eq!(ping_pong(&mut within, b"spared").unwrap(), b"spared");
    eventually("none is left", Duration::from_secs(5), || {
        connections(&node.agent, &["--clear-text"]).is_empty().then_some(())
    });
    set(&mut node, "none");
    let event = node.agent.wait_audit("its leaving is audited", |event| event["event"] == "enrolment");
    assert_eq!((&event["action"], &event["pod"]), (&json!("left"), &json!("app")));
    assert_eq!(event["reason"], "a label says none");
    assert_eq!(node.agent.metric("warren_pods_left_total", &[]), 1.0);
}

#[test]
fn a_pod_whose_labels_contradict_each_other_does_not_start() {
    let mut pods = Vec::new();
    let both = "warren.dev/mode: ambient, istio.io/dataplane-mode: none";
    let mut node = Node::start(&json!({}), |lab| {
        set_namespace(lab, "torn", both);
        pods = vec![
            Sandbox::new(lab, "plain", "torn", both),
            Sandbox::new(lab, "torn", "torn-too", ""),
            Sandbox::new(lab, "torn", "clear", "warren.dev/mode: ambient"),
        ];
    });
    for pod in &pods[..2] {
        let refusal = node.chain.add(pod).unwrap_err();
        assert_eq!(refusal.code, 100, "{refusal:?}");
        assert!(refusal.text.contains("contradict"), "{refusal:?}");
        assert_eq!(node.agent.pod(&pod.name)["state"], "refused");
    }
    // One that runs is left as it is, also by the next agent.
    let ips = node.chain.add(&pods[2]).expect("the pod's own word is clear");
    assert_echo(&pods[2].ns, node.server.at(8080), b"in");
    let text = object(&pods[2], &node.lab.node_name(0), both);
    node.lab.manifest.set("pod torn/clear", &text);
    node.apply();
    assert_echo(&pods[2].ns, node.server.at(8080), b"still in");
    node.agent.stop();
    node.agent.start();
    assert_echo(&pods[2].ns, node.server.at(8080), b"in with the next agent");
    node.lab.manifest.set("pod torn/clear", &text.replace(both, "warren.dev/mode: ambient"));
    node.apply();
    assert_eq!(node.agent.metric("warren_uncovered_pods", &["reason=\"pod_labels\""]), 1.0);
    assert_eq!(node.agent.metric("warren_uncovered_pods", &["reason=\"namespace_labels\""]), 1.0);
    assert_eq!(node.agent.metric("warren_uncovered_pods", &["reason=\"not_enrolled\""]), 0.0);
    let _echo = Server::echo(&pods[2].ns, at(ips[0], 7070));
    assert_echo(&node.server.ns, at(ips[0], 7070), b"and is reached");
}

#[test]
fn pods_that_cannot_be_captured_are_reported_and_start() {
    let mut pod = None;
    let node = Node::start(&json!({}), |lab| {
        let sandbox = Sandbox::new(lab, "shop", "boxed", "");
        let node = lab.node_name(0);
        let boxed = object(&sandbox, &node, "").replace("spec: {", "spec: {runtimeClassName: kata, ");
        lab.manifest.set("pod shop/boxed", &boxed);
        let host = boxed.replace("boxed", "host").replace("runtimeClassName: kata", "hostNetwork: true");
        lab.manifest.set("pod shop/host", &host);
        pod = Some(sandbox);
    });
    let boxed = pod.unwrap();
    node.chain.add(&boxed).expect("it starts");
    for (name, reason) in [("boxed", "sandboxed"), ("host", "host_network")] {
        let status = node.agent.pod(name);
        assert_eq!((&status["state"], &status["error"]["step"]), (&json!("refused"), &json!(reason)));
        let label = format!("reason=\"{reason}\"");
        assert_eq!(node.agent.metric("warren_uncovered_pods", &[&label]), 1.0);
    }
    assert!(!boxed.ns.check("ip", &["rule"]).contains("fwmark"), "not half captured");
}
