//! Who takes tunnels: what agents say of their nodes to a real API server, and what others make of it.

use std::time::Duration;

use serde_json::{Value, json};
use warren_test_support::api_server::{self, ApiServer};
use warren_test_support::client::{assert_echo, assert_refused, exchange};
use warren_test_support::command;
use warren_test_support::controller::{SYSTEM, agent_token, prepare};
use warren_test_support::pod_process::PodProcess;
use warren_test_support::{Agent, Lab, Pod, Server, eventually};

use crate::fixture::any;
use crate::kubernetes::install_crds;

const SOON: Duration = Duration::from_secs(60);
const FENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/admission/meshnode-policy.yaml");
/// The API server's own audience.
const AUDIENCE: &str = "https://kubernetes.default.svc";
const COUNTER: &str = "warren_incapable_destination_total";

/// An API server with Warren's kinds and accounts; what tells of a skipped test if there is none.
fn start_api(lab: &Lab) -> Option<ApiServer> {
    let bin = api_server::binaries().map_err(|why| eprintln!("SKIPPED: {why}")).ok()?;
    let api = ApiServer::start(bin, lab.node(0), lab.dir().join("api"));
    prepare(&api);
    install_crds(&api);
    Some(api)
}

fn mesh_node(name: &str, capabilities: &[&str]) -> String {
    json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": name},
        "spec": {"format": 1, "agentVersion": "test", "capabilities": capabilities}})
    .to_string()
}

/// Lets the fence come into force, which takes the API server a moment.
#[track_caller]
fn raise_fence(api: &ApiServer) {
    api.kubectl(&["apply", "-f", FENCE], "");
    eventually("the fence is in force", SOON, || {
        let tried = api.kubectl_as(&stranger(api), &["create", "--dry-run=server", "-f", "-"], &mesh_node("x", &[]));
        (!tried.status.success()).then_some(())
    });
}

/// A token of another account, on a node.
fn stranger(api: &ApiServer) -> String {
    agent_token(api, "one", "other", AUDIENCE)
}

#[test]
fn an_agent_writes_the_object_of_its_own_node_and_of_no_other() {
    let lab = Lab::new(1);
    let Some(api) = start_api(&lab) else { return };
    let [one, two] = ["one", "two"].map(|node| agent_token(&api, node, "warren-agent", AUDIENCE));
    let unbound = api.kubectl(&["create", "token", "warren-agent", "-n", SYSTEM], "").trim().to_owned();
    raise_fence(&api);
    let admin = "the-admins-token".to_owned();
    let other = stranger(&api);
    let attempt = |token: &String, arguments: &[&str], input: &str| {
        let output = api.kubectl_as(token, arguments, input);
        let text = command::text(&output);
        if output.status.success() {
            return Ok(());
        }
        // Not for another reason.
        assert!(text.contains("ValidatingAdmissionPolicy 'warren-meshnodes'"), "{arguments:?}: {text}");
        Err(text)
    };
    let create = ["create", "-f", "-"];
    let object = mesh_node("one", &["hbone"]);
    for token in [&two, &unbound, &other, &admin] {
        let refused = attempt(token, &create, &object).unwrap_err();
        assert!(refused.contains("is created by the agent of that node only"), "{refused}");
    }
    attempt(&one, &create, &object).unwrap();
    let say = ["patch", "meshnode", "one", "--type=merge", "-p", r#"{"spec":{"capabilities":[]}}"#];
    for token in [&two, &unbound, &other, &admin] {
        let refused = attempt(token, &say, "").unwrap_err();
        assert!(refused.contains("changed by the agent of that node only"), "{refused}");
    }
    attempt(&one, &say, "").unwrap();
    // An owner reference that is taken away would let the object outlive its node.
    let label = ["label", "meshnode", "one", "a=b"];
    attempt(&two, &label, "").unwrap_err();
    attempt(&admin, &label, "").unwrap();
    let delete = ["delete", "meshnode", "one"];
    let refused = attempt(&two, &delete, "").unwrap_err();
    assert!(refused.contains("deletes no MeshNode but that of its own node"), "{refused}");
    let all = ["delete", "--raw", "/apis/warren.dev/v1alpha1/meshnodes"];
    attempt(&two, &all, "").unwrap_err();
    attempt(&one, &delete, "").unwrap();
    attempt(&one, &create, &object).unwrap();
    attempt(&admin, &delete, "").unwrap();
    // What the schema does not know is not kept, and kubectl says so.
    let misspelt = object.replace("capabilities", "capabilites");
    let refused = api.kubectl_as(&one, &create, &misspelt);
    assert!(command::text(&refused).contains("unknown field"), "{}", command::text(&refused));
}

/// A node's MeshNode as the API server has it; null if there is none.
fn published(api: &ApiServer, node: &str) -> Value {
    let text = api.kubectl(&["get", "meshnode", node, "--ignore-not-found", "-o", "json"], "");
    serde_json::from_str(&text).unwrap_or_default()
}

#[track_caller]
fn wait_published(api: &ApiServer, node: &str) -> Value {
    eventually("a MeshNode", SOON, || Some(published(api, node)).filter(|object| !object.is_null()))
}

#[test]
fn an_agent_says_that_its_node_takes_tunnels_once_a_world_is_in_force_and_says_it_again_when_it_is_gone() {
    let lab = Lab::new(1);
    let node = lab.node_name(0);
    let Some(api) = start_api(&lab) else { return };
    api.write_token("expired");
    raise_fence(&api);
    let agent = lab.agent(0).kubernetes(&api.agent_config()).launch();
    let socket = agent.run_dir().join("agent.sock");
    eventually("a status socket", SOON, || socket.exists().then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(published(&api, &node), Value::Null, "no world is in force");
    api.write_token(&agent_token(&api, &node, "warren-agent", AUDIENCE));
    let mut agent = agent;
    agent.wait_ready();
    // With the Node that the object is to go with it comes, and not before.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((published(&api, &node), agent.metric("warren_mesh_node_published", &[])), (Value::Null, 0.0));
    let uid = api.node(&node);
    let object = wait_published(&api, &node);
    let spec = &object["spec"];
    assert_eq!((&spec["format"], &spec["capabilities"]), (&json!(1), &json!(["hbone"])));
    assert!(!spec["agentVersion"].as_str().unwrap().is_empty());
    let owners = object["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!(
        (&owners[0]["kind"], &owners[0]["name"], &owners[0]["uid"]),
        (&"Node".into(), &node.as_str().into(), &uid.as_str().into())
    );
    eventually("the gauge", SOON, || (agent.metric("warren_mesh_node_published", &[]) == 1.0).then_some(()));
    // What is as it should be is not written.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(published(&api, &node)["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"]);
    // The Node is another one now: the object is made anew, and goes with that.
    api.kubectl(&["delete", "node", &node], "");
    api.kubectl(&["delete", "meshnode", &node], "");
    let uid = api.node(&node);
    assert_eq!(wait_published(&api, &node)["metadata"]["ownerReferences"][0]["uid"], uid.as_str());
    // Capture stays when an agent stops, and so does what it said.
    agent.stop();
    assert_ne!(published(&api, &node), Value::Null);
}

/// Two nodes: `client` on the first, with an agent in the cluster; `server` on the second, which has none yet. Fields
/// drop in this order.
struct Migration {
    near: Agent,
    _client: PodProcess,
    api: ApiServer,
    client: Pod,
    server: Pod,
    lab: Lab,
}

impl Migration {
    #[track_caller]
    fn start(fate: &str) -> Option<Self> {
        let mut lab = Lab::new(2);
        let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
        let api = start_api(&lab)?;
        api.namespace("prod", &json!({"warren.dev/mode": "ambient"}));
        api.node(&lab.node_name(0));
        let [uid, _] = [&client, &server].map(|pod| {
            let ips: Vec<String> = pod.document.ips.iter().map(ToString::to_string).collect();
            api.pod("prod", &pod.document.name, &pod.document.node, &ips)
        });
        let process = PodProcess::start(lab.id(), &uid, &client.ns);
        let near = lab.agent(0).kubernetes(&api.agent_config()).flag("--incapable-destination", fate).start();
        let this = Self { near, _client: process, api, client, server, lab };
        this.near.wait_status("the client is in", |status| {
            status["pods"].as_array().unwrap().iter().any(|pod| pod["state"] == "enrolled")
        });
        Some(this)
    }

    fn counted(&self, verdict: &str) -> f64 {
        let verdict = format!("verdict=\"{verdict}\"");
        let labels = ["source=\"prod/client\"", "destination=\"server\"", "destination_port=\"8080\"", &verdict];
        self.near.metric(COUNTER, &labels)
    }

    /// Waits until connections go in mutual TLS, or not in it.
    #[track_caller]
    fn wait_carried(&self, mtls: bool) {
        eventually(if mtls { "mutual TLS" } else { "clear text" }, SOON, || {
            let before = self.near.audit().len();
            exchange(&self.client.ns, self.server.at(8080), b"?").ok()?;
            let event = eventually("its event", SOON, || {
                let events = self.near.audit();
                events.iter().skip(before).find(|event| event["event"] == "connection").cloned()
            });
            (event["mtls"] == mtls).then_some(())
        });
    }
}

#[test]
fn a_pod_on_a_node_without_an_agent_is_refused_until_its_node_says_that_it_takes_tunnels() {
    let Some(cluster) = Migration::start("refuse") else { return };
    let _echo = Server::echo(&cluster.server.ns, any(8080));
    assert_refused(&cluster.client.ns, cluster.server.at(8080), b"secret");
    let event = cluster.near.wait_audit("the refusal", |event| event["decision"] == "DENY");
    assert!(event["reason"].as_str().unwrap().contains("no agent says that it takes tunnels on its node"), "{event:#}");
    assert_eq!((&event["destination"]["pod"], &event["route"]), (&"server".into(), &"none".into()));
    assert_eq!((cluster.counted("refused"), cluster.counted("pass")), (1.0, 0.0));
    assert_eq!(cluster.near.metric("warren_unauthorized_connections_total", &["destination=\"server\""]), 1.0);
    // An agent is not relied on before it is known.
    cluster.lab.manifest.write();
    let far = cluster.lab.agent(1).start();
    assert_refused(&cluster.client.ns, cluster.server.at(8080), b"secret");
    let name = cluster.lab.node_name(1);
    cluster.api.apply(&mesh_node(&name, &["hbone"]));
    cluster.wait_carried(true);
    far.wait_audit("mutual TLS", |event| event["mtls"] == true);
    // What stands in the object counts, not that there is one.
    cluster.api.apply(&mesh_node(&name, &["something-else"]));
    eventually("refused again", SOON, || {
        exchange(&cluster.client.ns, cluster.server.at(8080), b"secret").is_err().then_some(())
    });
}

#[test]
fn during_a_migration_such_a_pod_is_reached_in_clear_and_counted_and_in_mutual_tls_as_soon_as_it_can_be() {
    let Some(cluster) = Migration::start("plain") else { return };
    let _echo = Server::echo(&cluster.server.ns, any(8080));
    assert_echo(&cluster.client.ns, cluster.server.at(8080), b"hello");
    let event = cluster.near.wait_audit("clear text", |event| event["decision"] == "ALLOW");
    assert!(event["reason"].as_str().unwrap().contains("--incapable-destination plain"), "{event:#}");
    assert_eq!((&event["route"], &event["mtls"]), (&"plain".into(), &false.into()));
    assert_eq!((cluster.counted("refused"), cluster.counted("pass")), (0.0, 1.0));
    cluster.lab.manifest.write();
    let far = cluster.lab.agent(1).start();
    cluster.wait_carried(false);
    let name = cluster.lab.node_name(1);
    cluster.api.apply(&mesh_node(&name, &["hbone"]));
    cluster.wait_carried(true);
    let passed = cluster.counted("pass");
    assert_echo(&cluster.client.ns, cluster.server.at(8080), b"hello");
    assert_eq!(cluster.counted("pass"), passed);
    far.wait_audit("mutual TLS", |event| event["mtls"] == true);
    // And is taken off it.
    cluster.api.kubectl(&["delete", "meshnode", &name], "");
    cluster.wait_carried(false);
}
