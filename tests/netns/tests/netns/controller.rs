//! SVIDs from controllers: a real API server, real controllers, real agents.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use warren_test_support::api_server::{self, ApiServer};
use warren_test_support::client::{assert_echo, assert_refused, exchange};
use warren_test_support::command::{self, warren_bin};
use warren_test_support::controller::{Controller, SYSTEM, agent_token, prepare, tell_endpoints};
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::pod_process::PodProcess;
use warren_test_support::{Agent, Lab, Pod, Server, eventually};

use crate::fixture::any;

const SOON: Duration = Duration::from_secs(60);
const FIRST: &str = "192.0.2.10";
const SECOND: &str = "192.0.2.11";

/// One node with API server, controllers, agent and two pods. Fields drop in this order.
struct Mesh {
    agent: Option<Agent>,
    controllers: Vec<Controller>,
    api: ApiServer,
    processes: Vec<PodProcess>,
    client: Pod,
    server: Pod,
    lab: Lab,
}

impl Mesh {
    /// Everything but the agent and the controllers.
    #[track_caller]
    fn bare() -> Option<Self> {
        let bin = api_server::binaries().map_err(|why| eprintln!("SKIPPED: {why}")).ok()?;
        let mut lab = Lab::new(1);
        let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
        let api = ApiServer::start(bin, lab.node(0), lab.dir().join("api"));
        api.namespace("prod", &json!({"warren.dev/mode": "ambient"}));
        prepare(&api);
        Some(Self { agent: None, controllers: Vec::new(), api, processes: Vec::new(), client, server, lab })
    }

    #[track_caller]
    fn with_controllers(ips: &[&str]) -> Option<Self> {
        let mut this = Self::bare()?;
        for ip in ips {
            this.start_controller(ip);
        }
        this.tell();
        Some(this)
    }

    #[track_caller]
    fn start_controller(&mut self, ip: &str) {
        let one = Controller::start(&self.api, self.lab.node(0), self.lab.dir(), ip, TRUST_DOMAIN);
        self.controllers.push(one);
    }

    fn tell(&self) {
        tell_endpoints(&self.api, &self.controllers.iter().collect::<Vec<_>>());
    }

    #[track_caller]
    fn start_agent(&mut self) -> &mut Agent {
        let token = self.token_file(&agent_token(&self.api, &self.lab.node_name(0), "warren-agent", "warren-ca"));
        let agent = self.lab.agent(0).kubernetes(&self.api.agent_config()).controller(&token);
        // Identities are to be proven by TLS, not by the kernel.
        self.agent.insert(agent.flag("--same-node", "tunnel").launch())
    }

    fn token_file(&self, token: &str) -> PathBuf {
        let path = self.lab.dir().join("ca-token");
        fs::write(&path, token).expect("file");
        path
    }

    #[track_caller]
    fn run_pod(&mut self, name: &str) -> String {
        let pod = if name == "client" { &self.client } else { &self.server };
        let ips: Vec<String> = pod.document.ips.iter().map(ToString::to_string).collect();
        let uid = self.api.pod("prod", name, &self.lab.node_name(0), &ips);
        self.processes.push(PodProcess::start(self.lab.id(), &uid, &pod.ns));
        uid
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("it was started")
    }

    /// The pod's entry once it has an SVID.
    #[track_caller]
    fn wait_svid(&self, name: &str) -> Value {
        eventually("an SVID", SOON, || {
            let status = self.agent().status();
            let pods = status["pods"].as_array().unwrap();
            pods.iter().find(|pod| pod["name"] == name && pod["svid"].is_object()).cloned()
        })
    }

    fn warren(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.lab.node(0).path().display())).arg(warren_bin()).args(arguments);
        let output = command::output(&mut command);
        (output.status.success(), command::text(&output))
    }

    /// `warren ca …` of the cluster.
    fn ca(&self, arguments: &[&str]) -> (bool, String) {
        let kubeconfig = self.api.agent_config().display().to_string();
        self.warren(&[&["ca"], arguments, &["--kubeconfig", &kubeconfig, "--trust-domain", TRUST_DOMAIN]].concat())
    }

    fn secret(&self) -> Option<Value> {
        let found =
            self.api.kubectl(&["get", "secret", "-n", SYSTEM, "warren-ca", "--ignore-not-found", "-o", "json"], "");
        serde_json::from_str(&found).ok()
    }

    fn delete_secret(&self) {
        self.api.kubectl(&["delete", "secret", "-n", SYSTEM, "warren-ca"], "");
    }
}

/// A request for an SVID with a new key, as openssl makes it.
fn request(dir: &Path, curve: &[&str], pod: &str, uid: &str) -> Value {
    let (key, csr) = (dir.join("key.pem").display().to_string(), dir.join("csr.pem").display().to_string());
    let common = ["req", "-new", "-nodes", "-subj", "/CN=somebody else", "-keyout", &key, "-out", &csr];
    let names = ["-addext", "subjectAltName=URI:spiffe://mesh.test/ns/kube-system/sa/admin"];
    command::run("openssl", &[&common[..], &names[..], curve].concat());
    json!({"namespace": "prod", "pod": pod, "uid": uid, "request": fs::read_to_string(csr).unwrap()})
}

const P256: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

#[test]
fn pods_get_their_svids_from_whichever_controller_is_there() {
    let Some(mut mesh) = Mesh::with_controllers(&[FIRST, SECOND]) else { return };
    mesh.start_agent();
    let uid = mesh.run_pod("client");
    mesh.run_pod("server");
    let svid = mesh.wait_svid("client");
    mesh.wait_svid("server");
    let _echo = Server::echo(&mesh.server.ns, any(8080));
    assert_echo(&mesh.client.ns, mesh.server.at(8080), b"hello");
    let event = mesh.agent().wait_audit("a connection", |event| event["decision"] == "ALLOW");
    assert_eq!(event["source_identity"], "spiffe://mesh.test/ns/prod/sa/client");
    assert_eq!((event["mtls"].as_bool(), event["authenticated_by"].as_str()), (Some(true), Some("tls")));
    // Who issued it says so: serial, pod, node.
    let events: Vec<Value> = mesh.controllers.iter().flat_map(Controller::audit).collect();
    let issued = events.iter().find(|event| event["pod_uid"] == uid).expect("an event");
    assert_eq!((issued["event"].as_str(), issued["result"].as_str()), (Some("svid"), Some("issued")));
    assert_eq!(issued["identity"], "spiffe://mesh.test/ns/prod/sa/client");
    assert_eq!(issued["node"], mesh.lab.node_name(0));
    assert_eq!(issued["serial"], svid["svid"]["serial"]);
    // A pod's SVID is made anew when an operator wants it, by the replica that is left.
    mesh.controllers[0].kill();
    let socket = mesh.agent().run_dir().join("agent.sock").display().to_string();
    let (done, said) = mesh.warren(&["certs", "renew", "prod/client", "--socket", &socket]);
    assert!(done, "{said}");
    assert_ne!(mesh.wait_svid("client")["svid"]["serial"], svid["svid"]["serial"]);
    let (done, said) = mesh.warren(&["certs", "renew", "prod/nobody", "--socket", &socket]);
    assert!(!done && said.contains("no such pod"), "{said}");
    // Without any controller what is there goes on; what is new waits, and says for what.
    mesh.controllers[1].kill();
    assert_echo(&mesh.client.ns, mesh.server.at(8080), b"still");
    let (done, said) = mesh.warren(&["certs", "renew", "prod/client", "--wait", "4s", "--socket", &socket]);
    assert!(!done && said.contains("controller"), "{said}");
    assert_echo(&mesh.client.ns, mesh.server.at(8080), b"still");
    mesh.controllers[0].run();
    mesh.controllers[0].wait_ready();
    let before = mesh.wait_svid("client")["svid"]["serial"].clone();
    eventually("a new SVID by itself", SOON, || (mesh.wait_svid("client")["svid"]["serial"] != before).then_some(()));
}

#[test]
fn a_node_gets_svids_of_its_own_pods_only() {
    let Some(mut mesh) = Mesh::with_controllers(&[FIRST]) else { return };
    let uid = mesh.run_pod("client");
    let node = mesh.lab.node_name(0);
    let dir = mesh.lab.dir().to_owned();
    let good = request(&dir, &P256, "client", &uid);
    let own = agent_token(&mesh.api, &node, "warren-agent", "warren-ca");
    let controller = &mesh.controllers[0];
    let reason = |token: &str, request: &Value| {
        let (status, said) = controller.ask(token, request);
        assert_ne!(status, 200, "{said}");
        (status, said["reason"].as_str().unwrap_or_default().to_owned())
    };
    // The name in the request is not the one in the SVID.
    let (status, said) = controller.ask(&own, &good);
    assert_eq!(status, 200, "{said}");
    fs::write(dir.join("svid.pem"), said["chain"].as_str().unwrap()).unwrap();
    let text =
        command::run("openssl", &["x509", "-noout", "-text", "-in", &dir.join("svid.pem").display().to_string()]);
    assert!(text.contains("URI:spiffe://mesh.test/ns/prod/sa/client") && !text.contains("kube-system"), "{text}");
    let (known, other) = ("warren-agent", "other");
    let token = |node: &str, account: &str, audience: &str| agent_token(&mesh.api, node, account, audience);
    assert_eq!(reason("", &good), (401, "token".into()));
    assert_eq!(reason("nonsense", &good), (401, "token".into()));
    assert_eq!(reason(&token(&node, known, "https://kubernetes.default.svc"), &good), (401, "token".into()));
    assert_eq!(reason(&token(&node, other, "warren-ca"), &good), (403, "not_an_agent".into()));
    assert_eq!(reason(&token("elsewhere", known, "warren-ca"), &good), (403, "other_node".into()));
    let unbound = mesh.api.kubectl(&["create", "token", known, "-n", SYSTEM, "--audience", "warren-ca"], "");
    assert_eq!(reason(unbound.trim(), &good), (401, "token".into()));
    let with = |key: &str, value: &str| {
        let mut request = good.clone();
        request[key] = value.into();
        request
    };
    assert_eq!(reason(&own, &with("uid", "another")), (404, "unknown_pod".into()));
    assert_eq!(reason(&own, &with("pod", "nobody")), (404, "unknown_pod".into()));
    assert_eq!(reason(&own, &with("pod", "../secrets/warren-ca")), (404, "unknown_pod".into()));
    assert_eq!(reason(&own, &with("request", "nonsense")), (400, "request".into()));
    let weak = request(&dir, &["-newkey", "rsa:2048"], "client", &uid);
    assert_eq!(reason(&own, &weak), (400, "request".into()));
    let system = mesh
        .api
        .kubectl(&["get", "pod", "-n", SYSTEM, &format!("warren-agent-{node}"), "-o", "jsonpath={.metadata.uid}"], "");
    let mut for_itself = with("uid", &system);
    (for_itself["namespace"], for_itself["pod"]) = (SYSTEM.into(), format!("warren-agent-{node}").into());
    assert_eq!(reason(&own, &for_itself), (403, "system_namespace".into()));
    let finished = json!({"status": {"phase": "Succeeded"}}).to_string();
    mesh.api.kubectl(
        &["patch", "pod", "-n", "prod", "client", "--subresource=status", "--type=merge", "-p", &finished],
        "",
    );
    assert_eq!(reason(&own, &good), (403, "finished".into()));
    // An agent whose pod is deleted proves nothing any more.
    mesh.api.kubectl(&["delete", "pod", "-n", SYSTEM, &format!("warren-agent-{node}"), "--force"], "");
    eventually("the token is worth nothing", SOON, || (controller.ask(&own, &good).0 == 401).then_some(()));
    let refused: Vec<Value> = controller.audit().into_iter().filter(|event| event["result"] == "refused").collect();
    assert!(refused.iter().any(|event| event["reason"] == "other_node" && event["node"] == "elsewhere"));
    assert!(
        controller.page("/metrics").1.contains("warren_ca_svids_total{result=\"refused\",reason=\"other_node\"} 1")
    );
}

#[test]
fn roots_whose_keys_are_lost_are_not_replaced_by_others() {
    let Some(mut mesh) = Mesh::with_controllers(&[FIRST, SECOND]) else { return };
    mesh.start_agent();
    mesh.run_pod("client");
    mesh.run_pod("server");
    mesh.wait_svid("client");
    mesh.wait_svid("server");
    let before = mesh.secret().expect("a Secret");
    let file = mesh.lab.dir().join("backup.json").display().to_string();
    let (done, said) = mesh.ca(&["backup", "--out", &file]);
    assert!(done, "{said}");
    let (done, said) = mesh.ca(&["restore", &file]);
    assert!(!done && said.contains("--replace"), "{said}");
    mesh.delete_secret();
    eventually("not ready, with the reason", SOON, || {
        let (status, said) = mesh.controllers[0].page("/readyz");
        (status == 503 && said.contains("warren ca restore")).then_some(())
    });
    mesh.controllers[0].kill();
    mesh.controllers[0].run();
    eventually("a new one refuses as well", SOON, || {
        let (status, said) = mesh.controllers[0].page("/readyz");
        (status == 503 && said.contains("warren ca restore")).then_some(())
    });
    assert!(mesh.secret().is_none());
    let _echo = Server::echo(&mesh.server.ns, any(8080));
    assert_echo(&mesh.client.ns, mesh.server.at(8080), b"SVIDs serve on");
    let (done, said) = mesh.ca(&["restore", &file]);
    assert!(done, "{said}");
    for controller in &mut mesh.controllers {
        controller.wait_ready();
    }
    let after = mesh.secret().expect("a Secret");
    assert_eq!(after["data"]["root-cert.pem"], before["data"]["root-cert.pem"]);
    let socket = mesh.agent().run_dir().join("agent.sock").display().to_string();
    let (done, said) = mesh.warren(&["certs", "renew", "prod/client", "--socket", &socket]);
    assert!(done, "{said}");
    // A backup that does not know the roots in use would cut everybody off.
    let (done, said) = mesh.ca(&["status"]);
    assert!(done && said.contains("rotation      none"), "{said}");
    mesh.delete_secret();
    mesh.api.kubectl(&["delete", "configmap", "-n", SYSTEM, "warren-trust-bundle"], "");
    eventually("another root", SOON, || mesh.secret().filter(|new| new["data"] != after["data"]));
    eventually("agents are told of it", SOON, || mesh.ca(&["status"]).0.then_some(()));
    let (done, said) = mesh.ca(&["restore", "--replace", &file]);
    assert!(!done && said.contains("cut off"), "{said}");
}

#[test]
fn without_a_controller_nothing_leaves_in_clear() {
    let Some(mut mesh) = Mesh::bare() else { return };
    mesh.start_agent();
    mesh.run_pod("client");
    mesh.run_pod("server");
    mesh.agent.as_mut().unwrap().wait_ready();
    let _echo = Server::echo(&mesh.server.ns, any(8080));
    eventually("enrolled without an SVID", SOON, || {
        let status = mesh.agent().status();
        let pods = status["pods"].as_array().unwrap().clone();
        let told = |pod: &Value| pod["svid_error"].as_str().is_some_and(|text| text.contains("warren-trust-bundle"));
        (pods.len() == 2 && pods.iter().all(|pod| pod["state"] == "enrolled" && told(pod))).then_some(())
    });
    assert_refused(&mesh.client.ns, mesh.server.at(8080), b"in clear?");
    mesh.start_controller(FIRST);
    mesh.tell();
    mesh.wait_svid("client");
    mesh.wait_svid("server");
    assert_echo(&mesh.client.ns, mesh.server.at(8080), b"hello");
}

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");

#[test]
fn authors_of_policies_are_told_what_became_of_them() {
    let Some(mut mesh) = Mesh::bare() else { return };
    mesh.api.kubectl(&["apply", "-f", CRDS], "");
    mesh.api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], "");
    mesh.start_controller(FIRST);
    mesh.run_pod("client");
    mesh.run_pod("server");
    let policy = |name: &str, from: &str| {
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "prod"},
            "spec": {"selector": {"matchLabels": {"app": "server"}},
                "rules": [{from: [{"source": {"serviceAccounts": ["prod/client"]}}]}]}})
    };
    let condition = |api: &ApiServer, name: &str, wanted: &dyn Fn(&Value) -> bool| {
        eventually("the condition", SOON, || {
            let text = api.kubectl(&["get", "authorizationpolicy", "-n", "prod", name, "-o", "json"], "");
            let object: Value = serde_json::from_str(&text).unwrap();
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().find(|one| one["type"] == "warren.dev/Accepted" && wanted(one)).cloned()
        })
    };
    mesh.api.apply(&policy("good", "from").to_string());
    mesh.api.apply(&policy("misspelt", "form").to_string());
    let good = condition(&mesh.api, "good", &|one| one["message"] == "in force; binds 1 pod");
    assert_eq!((good["status"].as_str(), good["reason"].as_str()), (Some("True"), Some("Accepted")));
    assert_eq!(good["observedGeneration"], 1);
    let refused = condition(&mesh.api, "misspelt", &|one| one["status"] == "False");
    assert_eq!(refused["reason"], "Refused");
    assert!(refused["message"].as_str().unwrap().contains("form"), "{refused}");
    // What others say of it stays, and a newer version that is refused leaves the one before in force.
    let theirs = json!({"status": {"conditions": [good, {"type": "istio.io/Other", "status": "True"}]}}).to_string();
    let patch = ["patch", "authorizationpolicy", "-n", "prod", "good", "--subresource=status", "--type=merge", "-p"];
    mesh.api.kubectl(&[&patch[..], &[&theirs]].concat(), "");
    mesh.api.apply(&policy("good", "form").to_string());
    let later = condition(&mesh.api, "good", &|one| one["observedGeneration"] == 2 && one["status"] == "False");
    assert_eq!(later["reason"], "LastGoodVersionInForce");
    let text = mesh.api.kubectl(&["get", "authorizationpolicy", "-n", "prod", "good", "-o", "jsonpath={.status}"], "");
    assert!(text.contains("istio.io/Other"), "{text}");
    // A replica that takes over says the same, and nothing twice.
    mesh.controllers[0].kill();
    mesh.start_controller(SECOND);
    mesh.api.apply(&policy("good", "from").to_string());
    condition(&mesh.api, "good", &|one| one["observedGeneration"] == 3 && one["status"] == "True");
}

/// What the agents are told about the authority, as `warren ca status` shows it.
fn ca_status(mesh: &Mesh) -> Value {
    let (done, said) = mesh.ca(&["status", "--json"]);
    assert!(done, "{said}");
    let from = said.find('{').unwrap_or_else(|| panic!("{said}"));
    serde_json::from_str(said[from..].trim()).unwrap()
}

/// Follows a rotation to its end; `at` is told of each step as it is seen.
#[track_caller]
fn follow(mesh: &Mesh, mut at: impl FnMut(&str)) {
    let mut seen = String::new();
    eventually("the rotation ends", 3 * SOON, || {
        let status = ca_status(mesh);
        let Some(step) = status["rotation"]["step"].as_str() else { return Some(()) };
        if seen != step {
            seen = step.to_owned();
            at(step);
        }
        None
    });
}

#[test]
fn keys_are_replaced_under_load_without_a_failed_connection() {
    let Some(mut mesh) = Mesh::bare() else { return };
    mesh.api.kubectl(&["apply", "-f", CRDS], "");
    mesh.api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], "");
    // What an agent says goes with its Node, which kubelet would make, with the taint that new nodes have.
    let taint = json!({"key": "warren.dev/agent-not-ready", "effect": "NoSchedule"});
    let other = json!({"key": "example.org/other", "effect": "NoSchedule"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": mesh.lab.node_name(0)},
        "spec": {"taints": [taint, other]}});
    mesh.api.apply(&node.to_string());
    mesh.start_controller(FIRST);
    mesh.start_controller(SECOND);
    mesh.tell();
    mesh.start_agent();
    mesh.run_pod("client");
    mesh.run_pod("server");
    let first = mesh.wait_svid("client");
    mesh.wait_svid("server");
    let _echo = Server::echo(&mesh.server.ns, any(8080));
    let mut controllers = std::mem::take(&mut mesh.controllers);
    let roots = || mesh.secret().expect("a Secret")["data"]["root-cert.pem"].clone();
    let (issuer, root) = (ca_status(&mesh)["issuer"].clone(), roots());
    eventually("the agent serves, so its node's start-up taint is gone, and no other", SOON, || {
        let keys = ["get", "node", &mesh.lab.node_name(0), "-o", "jsonpath={.spec.taints[*].key}"];
        let left = mesh.api.kubectl(&keys, "");
        (!left.contains("warren.dev") && left.contains("example.org/other")).then_some(())
    });
    let end = AtomicBool::new(false);
    let (client, to) = (&mesh.client.ns, mesh.server.at(8080));
    let (good, failed) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut good, mut failed) = (0, Vec::new());
            while !end.load(Ordering::Relaxed) {
                match exchange(client, to, b"in every step") {
                    Ok(answer) if answer == b"in every step" => good += 1,
                    other => failed.push(format!("{other:?}")),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            (good, failed)
        });
        // Ends the load whatever happens, or a failure would wait for it for ever.
        let stop = Stop(&end);
        let rotate = |what: &str| {
            let (done, said) = mesh.ca(&["rotate", what, "--no-wait"]);
            assert!(done, "{said}");
        };
        rotate("intermediate");
        let (done, said) = mesh.ca(&["rotate", "root"]);
        assert!(!done && said.contains("under way"), "{said}");
        follow(&mesh, |_| ());
        let second = ca_status(&mesh)["issuer"].clone();
        assert_ne!(second, issuer);
        assert_eq!(roots(), root);
        // In each step the controller that leads is killed; the other one goes on.
        rotate("root");
        follow(&mesh, |_| {
            let leads = |one: &Controller| one.page("/metrics").1.contains("warren_ca_leads 1");
            if let Some(leader) = controllers.iter_mut().find(|one| leads(one)) {
                leader.kill();
                leader.run();
            }
        });
        assert_ne!(roots(), root);
        drop(stop);
        load.join().unwrap()
    });
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), good + failed.len(), failed.first());
    assert!(good > 500, "only {good} connections");
    assert_ne!(mesh.wait_svid("client")["svid"]["serial"], first["svid"]["serial"]);
    // A node that is cut off blocks the next one, until an operator names it.
    let cut_off = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "cut-off"},
        "spec": {"format": 1, "agentVersion": "0.1.0", "capabilities": ["hbone"],
            "identity": {"bundle": "old", "issuers": ["old"]}}});
    mesh.api.apply(&cut_off.to_string());
    let (done, said) = mesh.ca(&["rotate", "intermediate", "--no-wait"]);
    assert!(done, "{said}");
    eventually("it waits for that node only", SOON, || {
        let waiting = ca_status(&mesh)["rotation"]["waiting"].clone();
        (waiting.as_array()?.len() == 1 && waiting[0]["node"] == "cut-off").then_some(())
    });
    let (done, said) = mesh.ca(&["rotate", "--force"]);
    assert!(done && said.contains("cut off until their agents follow: cut-off"), "{said}");
    assert!(ca_status(&mesh)["rotation"].is_null());
}

/// Sets a flag when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
