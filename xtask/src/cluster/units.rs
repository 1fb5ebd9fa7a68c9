//! The programs of a member, in the order of their start.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config;
use super::names::{API_SERVER, Node, SERVICE_NETWORKS};
use super::parts::Parts;
use super::pki::Pki;
use super::state::State;

/// One program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    pub(crate) kind: Kind,
}

/// What is expected of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// It runs as long as the member does; where it ends it is started again.
    Daemon {
        /// A socket that must answer before the next one starts.
        answers_at: Option<PathBuf>,
    },
    /// It ends before the next one starts.
    Once,
}

impl Unit {
    fn daemon(name: &str, program: &Path, arguments: impl IntoIterator<Item = String>) -> Self {
        let command = [program.display().to_string()].into_iter().chain(arguments).collect();
        Self { name: name.to_owned(), command, kind: Kind::Daemon { answers_at: None } }
    }
}

/// The control plane's.
pub(crate) fn control_plane(parts: &Parts, state: &State, pki: &Pki) -> Vec<Unit> {
    vec![
        Unit::daemon("etcd", &parts.program("etcd"), etcd(&state.member(super::names::Member::ControlPlane))),
        Unit::daemon("kube-apiserver", &parts.program("kube-apiserver"), api_server(pki)),
        Unit::daemon(
            "kube-controller-manager",
            &parts.program("kube-controller-manager"),
            controller_manager(state, pki),
        ),
        Unit::daemon("kube-scheduler", &parts.program("kube-scheduler"), scheduler(state)),
    ]
}

fn etcd(folder: &Path) -> Vec<String> {
    let mut arguments = strings(&[
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        // A lab's data need not outlive a power failure of the real machine.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]);
    arguments.push(format!("--data-dir={}", folder.join("etcd").display()));
    arguments
}

fn api_server(pki: &Pki) -> Vec<String> {
    let mut arguments = strings(&[
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=::",
        "--secure-port=6443",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        // Webhooks and aggregated APIs: no kube-proxy serves the control plane's own namespace.
        "--enable-aggregator-routing=true",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--profiling=false",
    ]);
    arguments.push(format!("--advertise-address={API_SERVER}"));
    arguments.push(format!("--service-cluster-ip-range={SERVICE_NETWORKS}"));
    let files = [
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("client-ca-file", "ca.crt"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("requestheader-client-ca-file", "front-proxy-ca.crt"),
        ("proxy-client-cert-file", "front-proxy-client.crt"),
        ("proxy-client-key-file", "front-proxy-client.key"),
    ];
    arguments.extend(files.map(|(option, file)| format!("--{option}={}", pki.file(file).display())));
    arguments
}

fn controller_manager(state: &State, pki: &Pki) -> Vec<String> {
    let mut arguments = strings(&[
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--use-service-account-credentials=true",
        // A node that is cut off is seen within a test's patience.
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=20s",
        "--profiling=false",
    ]);
    let config = config::control_plane_kubeconfig(state, "controller-manager");
    for option in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        arguments.push(format!("--{option}={}", config.display()));
    }
    let files = [
        ("service-account-private-key-file", "sa.key"),
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
    ];
    arguments.extend(files.map(|(option, file)| format!("--{option}={}", pki.file(file).display())));
    arguments
}

fn scheduler(state: &State) -> Vec<String> {
    let config = config::control_plane_kubeconfig(state, "scheduler");
    let mut arguments = strings(&["--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"]);
    for option in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        arguments.push(format!("--{option}={}", config.display()));
    }
    arguments
}

/// A node's, by the paths that they have inside.
pub(crate) fn node(node: Node) -> Vec<Unit> {
    let bin = Path::new("/usr/local/bin");
    let socket = PathBuf::from(config::CONTAINERD_SOCKET);
    let mut containerd = Unit::daemon(
        "containerd",
        Path::new("/usr/bin/containerd"),
        strings(&["--config", "/etc/containerd/config.toml", "--log-level", "warn"]),
    );
    containerd.kind = Kind::Daemon { answers_at: Some(socket) };
    let images = Unit { name: "images".into(), command: import_images(), kind: Kind::Once };
    let kubelet = [
        "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
        "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", node.addresses().join(",")),
    ];
    let proxy = strings(&["--config=/etc/kubernetes/kube-proxy.yaml"]);
    vec![
        containerd,
        images,
        Unit::daemon("kubelet", &bin.join("kubelet"), kubelet),
        Unit::daemon("kube-proxy", &bin.join("kube-proxy"), proxy),
    ]
}

/// Takes archives in, and gives an image the name that stands beside its archive.
const IMPORT: &str = "
for archive in \"$@\"; do
    ctr --namespace k8s.io images import \"$archive\" || exit 1
    if [ -e \"$archive.name\" ]; then
        read -r own wanted < \"$archive.name\"
        ctr --namespace k8s.io images tag --force \"$own\" \"$wanted\" || exit 1
    fi
done";

fn import_images() -> Vec<String> {
    strings(&["/bin/sh", "-c", &format!("set -- {}/*.tar{IMPORT}", config::IMAGES)])
}

/// The command by which a node takes one archive in.
pub(crate) fn import_image(archive: &Path) -> Vec<String> {
    let mut command = strings(&["/bin/sh", "-c", IMPORT, "import"]);
    command.push(Path::new(config::IMAGES).join(archive).display().to_string());
    command
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
