//! Configuration files of the programs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::names::{API_SERVER, DNS_SERVICE, Member, Node, POD_NETWORKS};
use super::pki::Pki;
use super::proxy_mode::ProxyMode;
use super::state::State;

/// containerd's socket in a node.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where a node sees the archives that it imports.
pub(crate) const IMAGES: &str = "/var/lib/lab-images";
/// The image of what holds a pod's namespaces.
pub(crate) const PAUSE: &str = "warren.local/pause:1";

/// The kubeconfig of one of the control plane's programs.
pub(crate) fn control_plane_kubeconfig(state: &State, user: &str) -> PathBuf {
    state.member(Member::ControlPlane).join(format!("{user}.conf"))
}

/// Writes the control plane's and the administrator's.
pub(crate) fn write_control_plane(state: &State, pki: &Pki) -> Result<()> {
    fs::create_dir_all(state.logs(Member::ControlPlane))?;
    for user in ["controller-manager", "scheduler"] {
        write(&control_plane_kubeconfig(state, user), &kubeconfig(&state.pki(), user))?;
    }
    write(&state.admin(), &kubeconfig(&pki.file(""), "admin"))
}

/// Writes a node's, below what it sees as `/`.
pub(crate) fn write_node(root: &Path, node: Node, mode: ProxyMode, snapshotter: &str) -> Result<()> {
    let inside = Path::new("/etc/kubernetes/pki");
    let own = fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let files = [
        ("etc/hostname", format!("{node}\n")),
        ("etc/hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {node}\n")),
        // Whoever asks outside of the cluster gets no answer: there is no outside.
        ("etc/resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
        ("etc/machine-id", if own.is_empty() { machine_id() } else { own }),
        ("etc/cni/net.d/10-pods.conflist", cni(node)),
        ("etc/containerd/config.toml", containerd(snapshotter)),
        ("etc/kubernetes/kubelet.yaml", kubelet()),
        ("etc/kubernetes/kubelet.conf", kubeconfig(inside, "node")),
        ("etc/kubernetes/kube-proxy.yaml", proxy(node, mode)),
        ("etc/kubernetes/kube-proxy.conf", kubeconfig(inside, "proxy")),
    ];
    files.iter().try_for_each(|(path, text)| write(&root.join(path), text))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn machine_id() -> String {
    format!("{:032x}\n", rand::random::<u128>())
}

fn kubeconfig(pki: &Path, user: &str) -> String {
    let pki = pki.display();
    format!(
        "apiVersion: v1
kind: Config
current-context: lab
contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]
clusters:
- name: lab
  cluster: {{server: \"https://{API_SERVER}:6443\", certificate-authority: \"{pki}/ca.crt\"}}
users:
- name: lab
  user: {{client-certificate: \"{pki}/{user}.crt\", client-key: \"{pki}/{user}.key\"}}
"
    )
}

/// hairpinMode lets a pod reach itself by its Service; portmap is for hostPort.
fn cni(node: Node) -> String {
    let [v4, v6] = node.pod_networks();
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {{
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
      "ipam": {{
        "type": "host-local",
        "ranges": [[{{"subnet": "{v4}"}}], [{{"subnet": "{v6}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#
    )
}

/// Without CAP_SYS_RESOURCE no process may lower its oom_score_adj: runc would
/// fail where Kubernetes asks for it.
fn containerd(snapshotter: &str) -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

/// Images come from files only, so none may be collected; the disk is the
/// machine's and may be fuller than a node's should.
fn kubelet() -> String {
    let dns = DNS_SERVICE[0];
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix://{CONTAINERD_SOCKET}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: /etc/kubernetes/pki/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: /etc/kubernetes/pki/node.crt
tlsPrivateKeyFile: /etc/kubernetes/pki/node.key
clusterDomain: cluster.local
clusterDNS: [\"{dns}\"]
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {{imagefs.available: \"0%\", nodefs.available: \"0%\", nodefs.inodesFree: \"0%\", memory.available: \"50Mi\"}}
imageGCHighThresholdPercent: 100
maxPods: 240
nodeStatusUpdateFrequency: 4s
oomScoreAdj: 0
serializeImagePulls: false
"
    )
}

fn proxy(node: Node, mode: ProxyMode) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: {node}
clientConnection: {{kubeconfig: /etc/kubernetes/kube-proxy.conf}}
mode: {mode}
clusterCIDR: \"{POD_NETWORKS}\"
conntrack: {{maxPerCore: 0}}
oomScoreAdj: 0
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_is_given_is_json_and_its_own() {
        let text = cni(Node::new(2).unwrap());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["plugins"][0]["ipam"]["ranges"][1][0]["subnet"], "fd00:201:2::/64");
    }

    #[test]
    fn yaml_is_yaml() {
        let texts = [kubeconfig(Path::new("/x y"), "admin"), kubelet(), proxy(Node::new(1).unwrap(), ProxyMode::Ipvs)];
        for text in texts {
            let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert!(value["kind"].is_string() && value["apiVersion"].is_string(), "{text}");
        }
    }
}
