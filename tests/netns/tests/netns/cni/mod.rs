//! The CNI plugin behind real primary plugins: pods are in before their first process, or do not start.

mod chain;
mod install;
mod labels;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use warren_test_support::client::{assert_echo, assert_refused};
use warren_test_support::{Agent, Lab, Pod, Server, eventually};

use self::chain::{Chain, QUICK, Sandbox, decisions, object, set_namespace, start_agent};
use crate::fixture::any;

/// A node with an agent and a STRICT server: whoever reaches it is captured.
struct Node {
    agent: Agent,
    _echo: Server,
    server: Pod,
    chain: Chain,
    lab: Lab,
}

impl Node {
    #[track_caller]
    fn start(options: &serde_json::Value, prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut lab = Lab::new(1);
        let server = lab.pod(0, "server");
        lab.manifest.set_mtls(Some("server"), "STRICT");
        set_namespace(&mut lab, "shop", "warren.dev/mode: ambient");
        set_namespace(&mut lab, "plain", "");
        prepare(&mut lab);
        lab.manifest.write();
        let echo = Server::echo(&server.ns, any(8080));
        let chain = Chain::new(&lab, options);
        let agent = start_agent(&lab, &[]);
        Self { agent, _echo: echo, server, chain, lab }
    }

    #[track_caller]
    fn apply(&self) {
        self.lab.apply(&[&self.agent]);
    }
}

#[test]
fn a_pod_is_captured_before_its_first_process() {
    let mut web = None;
    let node = Node::start(&json!({}), |lab| web = Some(Sandbox::new(lab, "shop", "web", "")));
    let web = web.unwrap();
    let ips = node.chain.add(&web).expect("ADD");
    // At once: what would be the pod's first process.
    assert_echo(&web.ns, node.server.at(8080), b"first words");
    let status = node.agent.pod("web");
    assert_eq!(status["state"], "enrolled");
    assert_eq!(status["ips"][0], ips[0].to_string(), "its object has no address yet");
    assert!(status["svid"].is_object(), "its SVID was awaited");
    let seen = node.agent.wait_audit("the server's agent saw who it was", |event| {
        event["direction"] == "inbound" && event["decision"] == "ALLOW"
    });
    assert!(seen["source_identity"].as_str().unwrap().ends_with("/ns/shop/sa/web"), "{seen}");
    node.chain.ours("CHECK", &web, &web.result()).expect("CHECK");
    node.chain.del(&web);
    let gone = |status: &serde_json::Value| status["pods"].as_array().unwrap().iter().all(|pod| pod["name"] != "web");
    node.agent.wait_status("a pod whose sandbox is gone is let go", gone);
    assert_eq!(node.chain.ours("CHECK", &web, &web.result()).unwrap_err().code, 103);
}

#[test]
fn a_runtime_that_asks_again_and_a_sandbox_made_anew() {
    let mut web = None;
    let mut node = Node::start(&json!({}), |lab| web = Some(Sandbox::new(lab, "shop", "web", "")));
    let web = web.unwrap();
    let ips = node.chain.add(&web).expect("ADD");
    let again = json!({"ips": [{"address": format!("{}/24", ips[0])}]});
    node.chain.ours("ADD", &web, &again).expect("asked again");
    let without = node.chain.ours("ADD", &web, &json!({"ips": []})).unwrap_err();
    assert!(without.code == 102 && without.text.contains("no address"), "{without:?}");
    // Whatever the agent was told, it still knows when it is back.
    node.agent.stop();
    node.agent.start();
    assert_echo(&web.ns, node.server.at(8080), b"after a restart");
    // A new sandbox of the same pod; the old one goes after the new one has come, as kubelet may do it.
    let mut second = Sandbox::unknown(&node.lab, "shop", "web2");
    (second.name, second.uid) = (web.name.clone(), web.uid.clone());
    node.chain.add(&second).expect("ADD of the new sandbox");
    node.chain.del(&web);
    assert_echo(&second.ns, node.server.at(8080), b"from the new sandbox");
    assert_eq!(node.agent.pod("web")["netns"], second.ns.path().to_str().unwrap());
}

#[test]
fn twenty_pods_at_once() {
    let mut pods = Vec::new();
    let node = Node::start(&json!({}), |lab| {
        pods = (0..20).map(|n| Sandbox::new(lab, "shop", &format!("p{n}"), "")).collect();
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                node.chain.add(pod).expect("ADD");
                assert_echo(&pod.ns, node.server.at(8080), pod.name.as_bytes());
            });
        }
    });
    println!("20 pods, primary plugins included: {:?}", start.elapsed());
    assert!((0..20).all(|n| node.agent.pod(&format!("p{n}"))["state"] == "enrolled"));
}

#[test]
fn without_the_agent_the_decisions_it_left_count() {
    let mut known = Vec::new();
    let mut node = Node::start(&json!({}), |lab| {
        known = vec![Sandbox::new(lab, "shop", "in", ""), Sandbox::new(lab, "plain", "out", "")];
    });
    node.agent.kill9();
    let refused = node.chain.ours("ADD", &known[0], &known[0].result()).unwrap_err();
    assert_eq!(refused.code, 11, "the runtime tries again");
    assert!(refused.text.contains("the agent is away") && refused.text.contains("in the mesh"), "{refused:?}");
    node.chain.add(&known[1]).expect("nobody wants it captured");
    for (namespace, starts) in [("plain", true), ("shop", false), ("unheard", false), ("kube-system", true)] {
        let new = Sandbox::unknown(&node.lab, namespace, "new");
        assert_eq!(node.chain.ours("ADD", &new, &new.result()).is_ok(), starts, "{namespace}");
    }
    for pod in &known {
        let start = Instant::now();
        node.chain.ours("DEL", pod, &serde_json::Value::Null).expect("DEL succeeds");
        assert!(start.elapsed() < QUICK, "{:?}", start.elapsed());
    }
    node.chain.ours("STATUS", &known[0], &serde_json::Value::Null).expect("pods of some namespaces can be added");
    // A node that boots: the file is there and the run directory is not.
    std::fs::remove_file(node.agent.run_dir().join("cni.sock")).unwrap();
    assert!(node.chain.ours("ADD", &known[1], &known[1].result()).is_ok());
    node.agent.start();
    node.chain.add(&known[0]).expect("the agent is back");
    assert_echo(&known[0].ns, node.server.at(8080), b"in the end");
}

#[test]
fn missing_stale_or_damaged_decisions_decide_nothing() {
    let mut out = None;
    let options = json!({"decisionsAge": "2s", "neverEnrol": ["spire"]});
    let mut node = Node::start(&options, |lab| out = Some(Sandbox::new(lab, "plain", "out", "")));
    let out = out.unwrap();
    node.agent.kill9();
    let issuer = Sandbox::unknown(&node.lab, "spire", "server");
    let refused = |why: &str| {
        let refusal = node.chain.ours("ADD", &out, &out.result()).unwrap_err();
        assert!(refusal.code == 11 && refusal.text.contains(why), "{refusal:?}");
        node.chain.ours("ADD", &issuer, &issuer.result()).expect("an issuer's pods always start");
    };
    std::thread::sleep(Duration::from_millis(3100));
    refused("at most is allowed");
    assert_eq!(node.chain.ours("STATUS", &out, &serde_json::Value::Null).unwrap_err().code, 50);
    std::fs::write(decisions(&node.lab), "warren-decisions 1 00\n{}").unwrap();
    refused("damaged");
    std::fs::remove_file(decisions(&node.lab)).unwrap();
    refused("No such file");
}

#[test]
fn what_is_not_done_in_time_names_its_reason() {
    let node = Node::start(&json!({"timeout": "600ms"}), |_| {});
    let stranger = Sandbox::unknown(&node.lab, "shop", "stranger");
    let start = Instant::now();
    let refusal = node.chain.ours("ADD", &stranger, &stranger.result()).unwrap_err();
    assert_eq!(refusal.code, 101, "{refusal:?}");
    assert!(refusal.text.contains("did not reach the agent"), "{refusal:?}");
    assert!((Duration::from_millis(450)..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
    // An agent that hangs is not one that is away.
    let pid = Pid::from_raw(i32::try_from(node.agent.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let refusal = node.chain.ours("ADD", &stranger, &stranger.result()).unwrap_err();
    let start = Instant::now();
    node.chain.ours("DEL", &stranger, &serde_json::Value::Null).expect("DEL succeeds");
    let took = start.elapsed();
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(refusal.code == 101 && refusal.text.contains("did not answer within 600ms"), "{refusal:?}");
    assert!(took < QUICK * 2, "{took:?}");
}

#[test]
fn a_pod_whose_object_comes_late_is_awaited() {
    let mut node = Node::start(&json!({}), |_| {});
    let late = Sandbox::unknown(&node.lab, "shop", "late");
    std::thread::scope(|scope| {
        let added = scope.spawn(|| node.chain.add(&late));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!added.is_finished(), "it waits");
        let text = object(&late, &node.lab.node_name(0), "");
        std::fs::OpenOptions::new()
            .append(true)
            .open(node.lab.manifest.path())
            .and_then(|mut file| std::io::Write::write_all(&mut file, format!("---\n{text}\n").as_bytes()))
            .unwrap();
        added.join().unwrap().expect("ADD");
    });
    assert_echo(&late.ns, node.server.at(8080), b"late");
    node.agent.stop();
}

#[test]
fn pods_outside_the_mesh_are_left_alone() {
    let mut out = None;
    let node = Node::start(&json!({}), |lab| out = Some(Sandbox::new(lab, "plain", "out", "")));
    let out = out.unwrap();
    node.chain.add(&out).expect("ADD");
    assert_refused(&out.ns, node.server.at(8080), b"in clear, to a STRICT pod");
    let rules = out.ns.check("ip", &["rule"]);
    assert!(!rules.contains("fwmark"), "{rules}");
    eventually("its network works", Duration::from_secs(5), || {
        std::process::Command::new("nsenter")
            .arg(format!("--net={}", out.ns.path().display()))
            .args(["ping", "-c1", "-W1", "10.50.0.1"])
            .output()
            .is_ok_and(|output| output.status.success())
            .then_some(())
    });
}
