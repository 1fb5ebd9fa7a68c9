//! Warren on the cluster, as an operator installs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::cluster::{Cluster, eventually, said, succeeded, xtask};
use crate::objects::{Namespace, host};

/// Names an archive of Warren's image; else it is made.
const IMAGE: &str = "WARREN_IMAGE";
/// The kustomize base, from the root of the tree.
const BASE: &str = "deploy/";
/// What a node has of Warren: one line for each thing.
const TRACES: &str = "
ls -d /sys/fs/bpf/warren /run/warren/* /var/lib/warren/* /etc/cni/net.d/*warren* /opt/cni/bin/warren-cni 2>/dev/null
for namespace in /run/netns/*; do
  nsenter --net=$namespace ip rule | grep fwmark
  nsenter --net=$namespace ip -6 rule | grep fwmark
done
true";

/// An install; what is left of it when the test ends is removed.
pub(crate) struct Warren<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The program, out of the image.
    program: PathBuf,
    folder: PathBuf,
}

impl<'a> Warren<'a> {
    /// Brings the image to the nodes, applies the base, and waits until everything is ready.
    #[track_caller]
    pub(crate) fn install(cluster: &'a Cluster) -> Self {
        let archive = image();
        cluster.run(&["image", &format!("warren.dev/warren:{}={}", env!("CARGO_PKG_VERSION"), archive.display())]);
        let folder = std::env::temp_dir().join(format!("warren-install-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let warren = Self { cluster, program: program_of(archive, &folder), folder };
        warren.apply();
        warren
    }

    /// Applies the base and waits until everything is ready.
    #[track_caller]
    pub(crate) fn apply(&self) {
        self.cluster.kube(&["apply", "-k", BASE]);
        for workload in ["daemonset/warren-agent", "deployment/warren-controller"] {
            self.kube(&["rollout", "status", workload, "--timeout=90s"]);
        }
    }

    /// Runs kubectl in Warren's namespace.
    #[track_caller]
    pub(crate) fn kube(&self, arguments: &[&str]) -> String {
        self.cluster.kube(&[&["--namespace", "warren-system"], arguments].concat())
    }

    /// The agent's pod on a node.
    #[track_caller]
    pub(crate) fn agent(&self, node: &str) -> String {
        let on_node = format!("spec.nodeName={node}");
        let pods = self.kube(&[
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=warren-agent",
            "--field-selector",
            &on_node,
            "-o",
            "name",
        ]);
        pods.lines().next().expect("an agent").to_owned()
    }

    /// Reads along in a pod's log until the pod is gone.
    #[track_caller]
    pub(crate) fn follow(&self, pod: &str) -> Child {
        let mut command = self.cluster.kubectl(&["-n", "warren-system", "logs", "-f", "--tail=1", pod]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl starts")
    }

    /// What the agent of a node says of itself.
    #[track_caller]
    pub(crate) fn status(&self, node: &str) -> Value {
        let text = self.kube(&["exec", &self.agent(node), "--", "/warren", "status", "--json"]);
        serde_json::from_str(&text).expect("a status")
    }

    /// Waits until a pod of a node is in the mesh.
    #[track_caller]
    pub(crate) fn enrolled(&self, node: &str, pod: &str) {
        eventually(&format!("{pod} is enrolled"), || {
            let status = self.status(node);
            let found = status["pods"].as_array().into_iter().flatten().find(|one| {
                format!("{}/{}", one["namespace"].as_str().unwrap_or(""), one["name"].as_str().unwrap_or("")) == pod
            });
            match found {
                Some(one) if one["state"] == "enrolled" && one["svid"].is_object() => Ok(()),
                _ => Err(status["pods"].to_string()),
            }
        });
    }

    /// Connections that a node's agent wrote down.
    #[track_caller]
    pub(crate) fn audit(&self, node: &str) -> Vec<Value> {
        let log = self.kube(&["logs", &self.agent(node)]);
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event"] == "connection").collect()
    }

    /// A command of the program, run where the API server is.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let program = self.program.to_str().expect("a name");
        let kubeconfig = self.cluster.admin();
        let mut command = self.cluster.xtask(["node", "control-plane", program]);
        command.args(arguments).args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()]);
        command.output().expect("it starts")
    }

    /// What a node has of Warren.
    #[track_caller]
    pub(crate) fn traces(&self, node: &str) -> String {
        self.cluster.run(&["node", node, "sh", "-c", TRACES]).trim().to_owned()
    }

    /// Every node is as if Warren had never been there.
    #[track_caller]
    pub(crate) fn nodes_are_clean(&self) {
        for node in self.cluster.nodes() {
            eventually(&format!("{node} is clean"), || match self.traces(&node) {
                traces if traces.is_empty() => Ok(()),
                traces => Err(traces),
            });
        }
    }
}

impl Drop for Warren<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "-k", BASE, "--ignore-not-found", "--timeout=60s"]).output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The image's archive, made once.
fn image() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| match std::env::var_os(IMAGE) {
        Some(archive) => archive.into(),
        None => succeeded(&mut xtask(["image"])).trim().into(),
    })
}

/// The program, taken out of the archive's only layer.
fn program_of(archive: &Path, folder: &Path) -> PathBuf {
    succeeded(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder));
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let layer = folder.join(manifest[0]["Layers"][0].as_str().expect("a layer"));
    succeeded(Command::new("tar").arg("-xf").arg(layer).arg("-C").arg(folder).arg("warren"));
    folder.join("warren")
}

/// Whether a pod gets an answer from another at once.
pub(crate) fn reaches(namespace: &Namespace<'_>, pod: &str, address: &str) -> bool {
    let url = format!("http://{}:8080/", host(address));
    let words = ["--namespace", &namespace.name, "exec", pod, "--", "timeout", "3", "wget", "-qO-", &url];
    namespace.cluster.kubectl(&words).output().is_ok_and(|output| output.status.success())
}

/// Waits until it does, or until it does not any more.
#[track_caller]
pub(crate) fn comes_to_reach(wanted: bool, namespace: &Namespace<'_>, pod: &str, address: &str) {
    eventually(&format!("{pod} reaches {address}: {wanted}"), || {
        if reaches(namespace, pod, address) == wanted { Ok(()) } else { Err(String::new()) }
    });
}

/// An output that must be a success.
#[track_caller]
pub(crate) fn well(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
