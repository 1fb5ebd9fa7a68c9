//! The world from an API server: a real one with its etcd, and a named fake for what a real one does not answer.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use warren_test_support::api_server::{self, ApiServer, TOKEN};
use warren_test_support::client::{assert_echo, exchange};
use warren_test_support::fake_api::{FakeApi, Manner};
use warren_test_support::pod_process::PodProcess;
use warren_test_support::{Agent, Lab, Pod, Server, eventually};

use crate::fixture::any;

/// Longer than the longest pause between two attempts of a watch.
const SOON: Duration = Duration::from_secs(60);
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");

/// One node with the API server and two pods, which only the API server tells of. Fields drop in this order.
struct Cluster {
    agent: Agent,
    api: ApiServer,
    processes: Vec<PodProcess>,
    client: Pod,
    server: Pod,
    lab: Lab,
}

/// The folder with the API server, or a word why the test does nothing.
fn programs() -> Option<std::path::PathBuf> {
    api_server::binaries().map_err(|why| eprintln!("SKIPPED: {why}")).ok()
}

impl Cluster {
    /// Starts it; the agent is started last, and not waited for.
    #[track_caller]
    fn start(prepare: impl FnOnce(&ApiServer)) -> Option<Self> {
        Self::start_with(&[], prepare)
    }

    /// The same with flags for the agent.
    #[track_caller]
    fn start_with(flags: &[(&str, &str)], prepare: impl FnOnce(&ApiServer)) -> Option<Self> {
        let bin = programs()?;
        let mut lab = Lab::new(1);
        let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
        let api = ApiServer::start(bin, lab.node(0), lab.dir().join("api"));
        api.namespace("prod", &json!({"warren.dev/mode": "ambient"}));
        prepare(&api);
        let agent = lab.agent(0).kubernetes(&api.agent_config());
        let agent = flags.iter().fold(agent, |agent, (flag, value)| agent.flag(flag, value)).launch();
        let mut this = Self { agent, api, processes: Vec::new(), client, server, lab };
        for name in ["client", "server"] {
            this.run_pod(name);
        }
        Some(this)
    }

    /// Tells the API server of a pod that is on the node.
    #[track_caller]
    fn run_pod(&mut self, name: &str) -> String {
        let pod = if name == "client" { &self.client } else { &self.server };
        let ips: Vec<String> = pod.document.ips.iter().map(ToString::to_string).collect();
        let uid = self.api.pod("prod", name, &self.lab.node_name(0), &ips);
        self.processes.push(PodProcess::start(self.lab.id(), &uid, &pod.ns));
        uid
    }

    #[track_caller]
    fn wait_enrolled(&mut self, names: &[&str]) -> Value {
        self.agent.wait_ready();
        eventually("pods enrolled", SOON, || {
            let status = self.agent.status();
            let pods = status["pods"].as_array().unwrap();
            let enrolled = pods.iter().filter(|pod| pod["state"] == "enrolled");
            let mut enrolled: Vec<&str> = enrolled.filter_map(|pod| pod["name"].as_str()).collect();
            enrolled.sort_unstable();
            (enrolled == names).then(|| status.clone())
        })
    }

    #[track_caller]
    fn wait_answer(&self, allowed: bool) {
        eventually(if allowed { "allowed" } else { "refused" }, SOON, || {
            (exchange(&self.client.ns, self.server.at(8080), b"?").is_ok() == allowed).then_some(())
        });
    }
}

fn deny(name: &str) -> String {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "prod"},
        "spec": {"selector": {"matchLabels": {"app": "server"}}, "action": "DENY",
            "rules": [{"from": [{"source": {"serviceAccounts": ["prod/client"]}}]}]}})
    .to_string()
}

/// Waits until the agent answers at all.
fn wait_socket(agent: &Agent) {
    let socket = agent.run_dir().join("agent.sock");
    eventually("a status socket", SOON, || socket.exists().then_some(()));
}

pub(crate) fn install_crds(api: &ApiServer) {
    api.kubectl(&["apply", "-f", CRDS], "");
    api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], "");
}

#[test]
fn pods_and_policies_of_a_cluster_come_change_and_go() {
    let Some(mut cluster) = Cluster::start(install_crds) else { return };
    let status = cluster.wait_enrolled(&["client", "server"]);
    assert_eq!(cluster.agent.pod("client")["identity"], "spiffe://mesh.test/ns/prod/sa/client");
    let watches = status["world"]["watches"].as_array().unwrap();
    assert!(watches.iter().all(|watch| watch["synced"] == true && watch["standing"] == "watching"), "{watches:#?}");
    assert_eq!(cluster.agent.metric("warren_world_source_missing", &[]), 0.0);
    let _echo = Server::echo(&cluster.server.ns, any(8080));
    assert_echo(&cluster.client.ns, cluster.server.at(8080), b"hello");
    let event = cluster.agent.wait_audit("a connection", |event| event["decision"] == "ALLOW");
    assert_eq!(event["source_identity"], "spiffe://mesh.test/ns/prod/sa/client");
    cluster.api.apply(&deny("no-client"));
    cluster.wait_answer(false);
    cluster.api.kubectl(&["delete", "authorizationpolicy", "-n", "prod", "no-client"], "");
    cluster.wait_answer(true);
    // What a pod's author writes into annotations does not lead the agent anywhere.
    let annotation = "warren.dev/netns=/proc/1/ns/net";
    cluster.api.kubectl(&["annotate", "pod", "-n", "prod", "client", annotation], "");
    cluster.api.kubectl(&["delete", "pod", "-n", "prod", "client", "--force"], "");
    cluster.wait_enrolled(&["server"]);
    assert_eq!(cluster.agent.metric("warren_uncovered_pods", &[]), 0.0);
}

#[test]
fn an_api_server_that_is_gone_and_comes_back_without_its_past_changes_nothing_but_what_changed() {
    let Some(mut cluster) = Cluster::start(install_crds) else { return };
    cluster.api.apply(&deny("no-client"));
    cluster.wait_enrolled(&["client", "server"]);
    let _echo = Server::echo(&cluster.server.ns, any(8080));
    cluster.wait_answer(false);
    let generation = cluster.agent.generation();
    cluster.api.kill_server();
    let status = cluster.agent.wait_status("the fault", |status| !status["world"]["source_error"].is_null());
    assert_eq!((status["ready"].as_bool(), status["world"]["generation"].as_u64()), (Some(true), Some(generation)));
    cluster.wait_answer(false);
    assert!(cluster.agent.metric("warren_world_source_age_seconds", &["kind=\"Pod\""]) > 0.0);
    assert_eq!(cluster.agent.metric("warren_world_source_watching", &[]), 0.0);
    // While the agent does not look: everything changes, and the API server forgets what was before.
    let agent = cluster.agent.pid().to_string();
    warren_test_support::command::run("kill", &["-STOP", &agent]);
    cluster.api.start_server();
    cluster.api.kubectl(&["delete", "authorizationpolicy", "-n", "prod", "no-client"], "");
    cluster.api.kubectl(&["delete", "pod", "-n", "prod", "client", "--force"], "");
    cluster.api.kill_server();
    cluster.api.start_server();
    cluster.api.compact();
    warren_test_support::command::run("kill", &["-CONT", &agent]);
    cluster.wait_enrolled(&["server"]);
    eventually("what was deleted in the gap is gone, and nothing is amiss", SOON, || {
        let status = cluster.agent.status();
        let world = &status["world"];
        (world["source_error"].is_null() && world["objects"].as_array().unwrap().is_empty()).then_some(())
    });
    cluster.run_pod("client");
    cluster.wait_enrolled(&["client", "server"]);
    cluster.wait_answer(true);
}

#[test]
fn kinds_that_a_cluster_lacks_are_told_and_enforced_once_they_come() {
    let Some(mut cluster) = Cluster::start(|_| {}) else { return };
    cluster.wait_enrolled(&["client", "server"]);
    assert_eq!(cluster.agent.metric("warren_world_source_missing", &["kind=\"AuthorizationPolicy\""]), 1.0);
    let _echo = Server::echo(&cluster.server.ns, any(8080));
    cluster.wait_answer(true);
    install_crds(&cluster.api);
    cluster.api.apply(&deny("no-client"));
    cluster.wait_answer(false);
    // Each kind is asked for by itself.
    eventually("no kind is missing", SOON, || {
        (cluster.agent.metric("warren_world_source_missing", &[]) == 0.0).then_some(())
    });
    // A field that the CRD does not know reaches the agent, which refuses the object aloud and lets its pods deny.
    let misspelt = deny("misspelt").replace("\"from\"", "\"form\"").replace("DENY", "ALLOW");
    cluster.api.kubectl(&["delete", "authorizationpolicy", "-n", "prod", "no-client"], "");
    cluster.api.apply(&misspelt);
    let status = cluster.agent.wait_status("the refusal", |status| {
        status["world"]["rejections"].as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains("form"))
    });
    assert_eq!(status["world"]["objects"][0]["accepted"], false);
    cluster.wait_answer(false);
}

#[test]
fn policies_whose_kind_went_away_unseen_stay_in_force_and_that_is_said() {
    let Some(mut cluster) = Cluster::start(install_crds) else { return };
    cluster.api.apply(&deny("no-client"));
    cluster.wait_enrolled(&["client", "server"]);
    let _echo = Server::echo(&cluster.server.ns, any(8080));
    cluster.agent.wait_status("the policy", |status| {
        status["world"]["objects"][0]["object"] == "AuthorizationPolicy prod/no-client"
    });
    cluster.wait_answer(false);
    // While the agent does not look, the kind goes, and the API server forgets that it was there.
    let agent = cluster.agent.pid().to_string();
    warren_test_support::command::run("kill", &["-STOP", &agent]);
    cluster.api.kill_server();
    cluster.api.start_server();
    cluster.api.kubectl(&["delete", "crd", "authorizationpolicies.security.istio.io"], "");
    cluster.api.kill_server();
    cluster.api.start_server();
    cluster.api.compact();
    warren_test_support::command::run("kill", &["-CONT", &agent]);
    eventually("the kind is missing", SOON, || {
        let missing = cluster.agent.metric("warren_world_source_missing", &["kind=\"AuthorizationPolicy\""]);
        (missing == 1.0).then_some(())
    });
    let status = cluster.agent.wait_status("a word about it", |status| {
        status["world"]["source_error"].as_str().is_some_and(|error| error.contains("stays in force"))
    });
    assert_eq!(status["world"]["objects"][0]["object"], "AuthorizationPolicy prod/no-client");
    assert!(exchange(&cluster.client.ns, cluster.server.at(8080), b"?").is_err(), "the policy still denies");
    // The kind comes back without it.
    install_crds(&cluster.api);
    cluster.wait_answer(true);
    cluster.agent.wait_status("nothing is amiss", |status| status["world"]["source_error"].is_null());
}

#[test]
fn a_token_that_is_replaced_is_read_again() {
    let Some(mut cluster) = Cluster::start(|api| api.write_token("expired")) else { return };
    wait_socket(&cluster.agent);
    let status = cluster.agent.wait_status("the fault", |status| {
        status["world"]["source_error"].as_str().is_some_and(|error| error.contains("401"))
    });
    assert_eq!(status["ready"], false);
    let ready = cluster.agent.http("/healthz/ready").unwrap_err().to_string();
    assert!(ready.contains("503"), "{ready}");
    cluster.api.write_token(TOKEN);
    cluster.wait_enrolled(&["client", "server"]);
}

#[test]
fn an_api_server_that_is_gone_without_a_word_is_noticed_before_its_bookmarks_are_missed() {
    let lab = Lab::new(2);
    let kinds = ["Namespace", "Node", "Pod", "Service"].map(|kind| (format!("{}s", kind.to_lowercase()), kind));
    let mut objects: Vec<_> = kinds.iter().map(|(plural, kind)| (plural.as_str(), *kind, Value::Null)).collect();
    objects.push(("endpointslices", "EndpointSlice", Value::Null));
    let _fake = FakeApi::start_at(lab.node(1), "172.31.0.2:8001", &objects);
    let config = lab.dir().join("fake.conf");
    std::fs::write(&config, FakeApi::kubeconfig_for("172.31.0.2:8001")).unwrap();
    let agent = lab.agent(0).kubernetes(Path::new(&config)).start();
    let pods_watch = |status: &Value, standing: &str| {
        let watches = status["world"]["watches"].as_array().unwrap();
        watches.iter().any(|watch| watch["kind"] == "Pod" && watch["standing"] == standing)
    };
    agent.wait_status("it watches", |status| pods_watch(status, "watching"));
    // Nothing arrives at its node any more, and nobody says so: its end of the connection acknowledges nothing.
    lab.node(1).check("ip", &["route", "add", "blackhole", "172.31.0.1/32"]);
    let began = Instant::now();
    eventually("the agent notices", Duration::from_secs(60), || {
        (!pods_watch(&agent.status(), "watching")).then_some(())
    });
    println!("noticed after {:?}", began.elapsed());
}

#[test]
fn an_address_in_a_captured_range_at_which_the_cluster_knows_nothing_is_refused_or_passed_by_configuration() {
    for (fate, passes) in [("refuse", false), ("plain", true)] {
        let flags = [("--captured", "10.10.0.0/16"), ("--unknown-destination", fate)];
        let Some(mut cluster) = Cluster::start_with(&flags, install_crds) else { return };
        cluster.wait_enrolled(&["client", "server"]);
        let stranger = cluster.lab.stranger(0, "stranger");
        let _echo = Server::echo(&stranger.ns, any(8080));
        assert_eq!(exchange(&cluster.client.ns, stranger.at(8080), b"?").is_ok(), passes, "{fate}");
        // Both are the agent's word: the range is captured.
        let event = cluster
            .agent
            .wait_audit("the connection", |event| event["destination"]["address"] == stranger.at(8080).to_string());
        let wanted = if passes { ("ALLOW", "plain") } else { ("DENY", "none") };
        assert_eq!((event["decision"].as_str().unwrap(), event["route"].as_str().unwrap()), wanted, "{event:#}");
    }
}

#[test]
fn nothing_that_an_api_server_says_or_does_not_say_takes_anything_out_of_the_world() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    let node = lab.node_name(0);
    let pod = |pod: &Pod, uid: &str| {
        let ips: Vec<Value> = pod.document.ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        json!({"metadata": {"name": pod.document.name, "namespace": "prod", "uid": uid,
                "labels": {"warren.dev/mode": "ambient", "app": pod.document.name}},
            "spec": {"nodeName": node, "serviceAccountName": pod.document.name},
            "status": {"phase": "Running", "podIPs": ips}})
    };
    let unique = |n: u8| format!("00000000-0000-4000-8000-{:010}{n:02}", std::process::id());
    let uids = [unique(1), unique(2)];
    let policy: Value = serde_json::from_str(&deny("no-client")).unwrap();
    let objects = [
        ("namespaces", "Namespace", Value::Null),
        ("nodes", "Node", Value::Null),
        ("pods", "Pod", pod(&client, &uids[0])),
        ("pods", "Pod", pod(&server, &uids[1])),
        ("services", "Service", Value::Null),
        ("endpointslices", "EndpointSlice", Value::Null),
        ("authorizationpolicies", "AuthorizationPolicy", policy),
        ("peerauthentications", "PeerAuthentication", Value::Null),
    ];
    let fake = FakeApi::start(lab.node(0), &objects);
    let _processes: Vec<PodProcess> =
        [&client, &server].into_iter().zip(&uids).map(|(pod, uid)| PodProcess::start(lab.id(), uid, &pod.ns)).collect();
    let config = lab.dir().join("fake.conf");
    std::fs::write(&config, FakeApi::kubeconfig()).unwrap();
    let agent = lab.agent(0).kubernetes(Path::new(&config)).start();
    let enrolled = |status: &Value| {
        let pods = status["pods"].as_array().unwrap();
        pods.iter().filter(|pod| pod["state"] == "enrolled").count() == 2
    };
    agent.wait_status("both enrolled", enrolled);
    let _echo = Server::echo(&server.ns, any(8080));
    assert!(exchange(&client.ns, server.at(8080), b"?").is_err(), "the policy denies");
    for (manner, word) in [
        (Manner::Broken, "500"),
        (Manner::Html, "nonsense"),
        (Manner::Empty, "nonsense"),
        (Manner::Torn, "reached"),
        (Manner::Unauthorized, "401"),
        (Manner::Silent, ""),
    ] {
        fake.become_(manner);
        let status = eventually(&format!("{manner:?}"), SOON, || {
            let status = agent.status();
            let error = status["world"]["source_error"].as_str();
            error.is_some_and(|error| error.contains(word)).then(|| status.clone())
        });
        assert!(enrolled(&status), "{manner:?}: {status:#}");
        assert!(exchange(&client.ns, server.at(8080), b"?").is_err(), "{manner:?}: the policy still denies");
    }
}
