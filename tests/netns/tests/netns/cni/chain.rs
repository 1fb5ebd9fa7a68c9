//! What a container runtime does with a list of plugins, and pods that are made by it: the real `bridge` and
//! `host-local` plugins first, ours behind them.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use warren_test_support::command::{self, warren_bin};
use warren_test_support::{Agent, Lab, NetNs};

/// Debian's package containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The bridge and the network that the primary plugin makes.
const BRIDGE: &str = "cni0";
const SUBNET: &str = "10.50.0.0/24";

/// A node's list of plugins.
pub(super) struct Chain {
    node: PathBuf,
    dir: PathBuf,
    list: Value,
}

/// A pod as a runtime made it: a namespace, in it nothing yet but what the plugins put there.
pub(super) struct Sandbox {
    pub(super) ns: NetNs,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) container: String,
}

/// A plugin's error object.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u64,
    pub(super) text: String,
}

impl Chain {
    /// The primary plugins of the node, and ours, which asks the node's agent.
    #[track_caller]
    pub(super) fn new(lab: &Lab, options: &Value) -> Self {
        let dir = lab.dir().join("cni");
        std::fs::create_dir_all(&dir).expect("lab directory");
        let plugin = dir.join("warren-cni");
        if !plugin.exists() {
            std::os::unix::fs::symlink(warren_bin(), &plugin).expect("lab directory");
        }
        let mut ours = json!({
            "type": "warren-cni",
            "socket": lab.dir().join(lab.node_name(0)).join("cni.sock"),
            "decisions": decisions(lab),
        });
        for (key, value) in options.as_object().expect("options are an object") {
            ours[key] = value.clone();
        }
        let mut list = primary(lab);
        list["plugins"].as_array_mut().expect("a list").push(ours);
        Self { node: lab.node(0).path().to_owned(), dir, list }
    }

    /// ADD of every plugin in turn; the addresses, or what the first one that fails says.
    pub(super) fn add(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>, Refusal> {
        let mut result = Value::Null;
        for plugin in self.list["plugins"].as_array().expect("a list") {
            result = self.call("ADD", sandbox, plugin, &result)?;
        }
        let ips = result["ips"].as_array().expect("a result has addresses");
        Ok(ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect())
    }

    /// DEL of every plugin, from the last to the first.
    #[track_caller]
    pub(super) fn del(&self, sandbox: &Sandbox) {
        for plugin in self.list["plugins"].as_array().expect("a list").iter().rev() {
            self.call("DEL", sandbox, plugin, &Value::Null).expect("DEL succeeds");
        }
    }

    /// One command of our plugin alone, with what the primary would have said.
    pub(super) fn ours(&self, verb: &str, sandbox: &Sandbox, result: &Value) -> Result<Value, Refusal> {
        let plugin = self.list["plugins"].as_array().expect("a list").last().expect("ours");
        self.call(verb, sandbox, plugin, result)
    }

    fn call(&self, verb: &str, sandbox: &Sandbox, plugin: &Value, result: &Value) -> Result<Value, Refusal> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.list["cniVersion"].clone();
        config["name"] = self.list["name"].clone();
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let kind = plugin["type"].as_str().expect("a plugin has a type");
        let dir = if kind == "warren-cni" { self.dir.as_path() } else { Path::new(PLUGINS) };
        let output = self.run(&dir.join(kind), verb, sandbox, &config);
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            return Ok(value);
        }
        let code = value["code"].as_u64().unwrap_or_else(|| panic!("no error object: {}", command::text(&output)));
        Err(Refusal { code, text: format!("{} {}", value["msg"], value["details"]) })
    }

    fn run(&self, program: &Path, verb: &str, sandbox: &Sandbox, config: &Value) -> Output {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            sandbox.namespace, sandbox.name, sandbox.container, sandbox.uid
        );
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.node.display())).arg(program);
        let environment = BTreeMap::from([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &sandbox.container),
            ("CNI_NETNS", sandbox.ns.path().to_str().expect("UTF-8 path")),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &args),
            ("CNI_PATH", PLUGINS),
        ]);
        command.envs(environment).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("containernetworking-plugins is installed");
        child.stdin.take().expect("piped").write_all(config.to_string().as_bytes()).expect("the plugin reads");
        child.wait_with_output().expect("own child")
    }
}

/// The primary's list: real plugins, with their books in the lab's directory.
pub(super) fn primary(lab: &Lab) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": format!("net-{}", lab.id()),
        "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true, "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": lab.dir().join("ipam"), "ranges": [[{"subnet": SUBNET}]]},
        }],
    })
}

/// The file of decisions of the lab's node.
pub(super) fn decisions(lab: &Lab) -> PathBuf {
    lab.dir().join("decisions")
}

/// An agent that answers the plugin.
#[track_caller]
pub(super) fn start_agent(lab: &Lab, flags: &[(&str, &str)]) -> Agent {
    let path = decisions(lab);
    let builder = lab.agent(0).switch("--cni").flag("--cni-decisions", path.to_str().expect("UTF-8 path"));
    flags.iter().fold(builder, |builder, (flag, value)| builder.flag(flag, value)).start()
}

impl Sandbox {
    /// A namespace for a pod, and the pod's object, without an address, in the manifest.
    #[track_caller]
    pub(super) fn new(lab: &mut Lab, namespace: &str, name: &str, labels: &str) -> Self {
        let sandbox = Self::unknown(lab, namespace, name);
        let node = lab.node_name(0);
        lab.manifest.set(&format!("pod {namespace}/{name}"), &object(&sandbox, &node, labels));
        sandbox
    }

    /// A namespace for a pod that the manifest does not mention.
    #[track_caller]
    pub(super) fn unknown(lab: &Lab, namespace: &str, name: &str) -> Self {
        let id = lab.id();
        Self {
            ns: NetNs::create(&format!("{id}-{namespace}-{name}")),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            uid: format!("{id}-{namespace}-{name}"),
            container: format!("c-{namespace}-{name}"),
        }
    }

    /// What a primary plugin would have said, for when it is our plugin alone that matters.
    pub(super) fn result(&self) -> Value {
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": self.ns.path()}],
               "ips": [{"address": "10.50.0.250/24", "interface": 0}]})
    }
}

/// A pod's object as the API server has it while its sandbox is being made.
pub(super) fn object(sandbox: &Sandbox, node: &str, labels: &str) -> String {
    let Sandbox { name, namespace, uid, .. } = sandbox;
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {uid}, labels: {{{labels}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}}}\nstatus: {{phase: Pending}}"
    )
}

/// A namespace's object.
pub(super) fn set_namespace(lab: &mut Lab, name: &str, labels: &str) {
    let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}");
    lab.manifest.set(&format!("namespace {name}"), &text);
}

/// The same port at another address.
pub(super) fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// What our plugin may take in DEL while the agent is away.
pub(super) const QUICK: Duration = Duration::from_millis(200);
