//! A real controller in a namespace, beside a real API server.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::command::{self, warren_bin};
use crate::eventually;
use crate::netns::NetNs;

const READY: Duration = Duration::from_secs(30);
/// Warren's own namespace.
pub const SYSTEM: &str = "warren-system";

/// A running replica. Dropping it ends it.
#[derive(Debug)]
pub struct Controller {
    netns: PathBuf,
    kubeconfig: PathBuf,
    log: PathBuf,
    ip: String,
    trust_domain: String,
    child: Option<Child>,
}

/// Makes what the controllers and agents of a cluster find there: namespace, accounts.
#[track_caller]
pub fn prepare(api: &ApiServer) {
    api.namespace(SYSTEM, &json!({}));
    for name in ["warren-agent", "warren-controller", "other"] {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": SYSTEM}});
        api.apply(&account.to_string());
    }
}

/// Makes an agent's pod on a node, and its token, for this audience; its account is usually `warren-agent`.
#[track_caller]
pub fn agent_token(api: &ApiServer, node: &str, account: &str, audience: &str) -> String {
    let pod = format!("{account}-{node}");
    let known = api.kubectl(&["get", "pod", "-n", SYSTEM, &pod, "--ignore-not-found", "-o", "name"], "");
    if known.is_empty() {
        api.apply(
            &json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod, "namespace": SYSTEM, "labels": {"app.kubernetes.io/name": account}},
                "spec": {"nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "none"}]}})
            .to_string(),
        );
    }
    let uid = api.kubectl(&["get", "pod", "-n", SYSTEM, &pod, "-o", "jsonpath={.metadata.uid}"], "");
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", &pod, "--bound-object-uid", &uid];
    let asked = ["create", "token", account, "-n", SYSTEM, "--audience", audience];
    api.kubectl(&[&asked[..], &bound[..]].concat(), "").trim().to_owned()
}

impl Controller {
    /// Starts a replica at an address of its own in a node's namespace, and waits until it is ready.
    #[track_caller]
    pub fn start(api: &ApiServer, netns: &NetNs, dir: &Path, ip: &str, trust_domain: &str) -> Self {
        let mut this = Self::launch(api, netns, dir, ip, trust_domain);
        this.wait_ready();
        this
    }

    /// Starts a replica without waiting.
    #[track_caller]
    pub fn launch(api: &ApiServer, netns: &NetNs, dir: &Path, ip: &str, trust_domain: &str) -> Self {
        netns.check("ip", &["address", "replace", &format!("{ip}/32"), "dev", "lo"]);
        let mut this = Self {
            netns: netns.path().to_owned(),
            kubeconfig: api.agent_config(),
            log: dir.join(format!("controller-{ip}.log")),
            ip: ip.to_owned(),
            trust_domain: trust_domain.to_owned(),
            child: None,
        };
        this.run();
        this
    }

    /// Starts it (again).
    #[track_caller]
    pub fn run(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("log");
        let err = log.try_clone().expect("log");
        let mut command = self.inside("setpriv");
        command.args(["--pdeathsig", "SIGKILL"]).arg(warren_bin()).arg("controller");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--trust-domain", &self.trust_domain]);
        command.args(["--listen", &self.at(15012).to_string(), "--admin", &self.at(15020).to_string()]);
        command.args(["--name", &format!("replica-{}", self.ip)]);
        self.child =
            Some(command.stdin(Stdio::null()).stdout(log).stderr(err).spawn().expect("nsenter and setpriv can be run"));
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        eventually("the controller is ready", READY, || (self.page("/readyz").0 == 200).then_some(()));
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// One of its addresses.
    pub fn at(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.ip).parse().expect("an address")
    }

    /// Status and text of a page of its admin endpoint.
    pub fn page(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.at(15020));
        split_status(&command::output(self.inside("curl").args(["-s", "-m", "5", "-w", "\n%{http_code}", &url])))
    }

    /// Asks for an SVID as an agent does, with curl.
    #[track_caller]
    pub fn ask(&self, token: &str, request: &Value) -> (u16, Value) {
        let url = format!("https://{}/v1/svid", self.at(15012));
        let authorization = format!("Authorization: Bearer {token}");
        let output = command::output(self.inside("curl").args([
            "-s",
            "-k",
            "--http2",
            "-m",
            "30",
            "-w",
            "\n%{http_code}",
            "-H",
            &authorization,
            "-d",
            &request.to_string(),
            &url,
        ]));
        let (status, text) = split_status(&output);
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The events of its audit stream.
    pub fn audit(&self) -> Vec<Value> {
        self.log()
            .lines()
            .filter(|line| line.starts_with('{'))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(program);
        command
    }
}

/// The Service's endpoints, as the endpoint controller would tell of them.
#[track_caller]
pub fn tell_endpoints(api: &ApiServer, controllers: &[&Controller]) {
    let endpoints: Vec<Value> =
        controllers.iter().map(|one| json!({"addresses": [one.ip], "conditions": {"ready": true}})).collect();
    api.apply(
        &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "warren-controller-1", "namespace": SYSTEM,
                "labels": {"kubernetes.io/service-name": "warren-controller"}},
            "ports": [{"name": "svid", "port": 15012, "protocol": "TCP"}], "endpoints": endpoints})
        .to_string(),
    );
}

fn split_status(output: &Output) -> (u16, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.rsplit_once('\n') {
        Some((body, status)) => (status.parse().unwrap_or(0), body.to_owned()),
        None => (0, text),
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- log of controller {}:\n{}\n---",
                self.ip,
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }
}
