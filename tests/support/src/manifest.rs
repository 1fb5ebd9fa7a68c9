//! The world as the agents read it: ordinary Kubernetes objects in one file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Documents by key; the file is written anew, atomically, with each `write`.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    documents: BTreeMap<String, String>,
}

/// A pod as a manifest describes it.
#[derive(Debug, Clone)]
pub struct PodDocument {
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.uid`
    pub uid: String,
    /// `spec.serviceAccountName`
    pub service_account: String,
    /// `spec.nodeName`
    pub node: String,
    /// `status.podIPs`
    pub ips: Vec<IpAddr>,
    /// Path of its network namespace, for the agent of its node.
    pub netns: PathBuf,
    /// Whether it is in the mesh.
    pub ambient: bool,
    /// Labels; `app` is the name unless it stands here.
    pub labels: BTreeMap<String, String>,
    /// What `spec` says of its containers, in YAML's flow style.
    pub containers: String,
}

impl Manifest {
    /// An empty manifest that will be written to `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, documents: BTreeMap::new() }
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds or replaces a document.
    pub fn set(&mut self, key: &str, yaml: &str) {
        self.documents.insert(key.to_owned(), yaml.trim().to_owned());
    }

    /// Takes a document out.
    #[track_caller]
    pub fn remove(&mut self, key: &str) {
        assert!(self.documents.remove(key).is_some(), "no document {key}");
    }

    /// Adds or replaces a pod, under the key `pod NAME`.
    pub fn set_pod(&mut self, pod: &PodDocument) {
        self.set(&format!("pod {}", pod.name), &pod.yaml());
    }

    /// Adds a Service over the pods that carry `app: APP`, under the key `service NAME`.
    pub fn set_service(&mut self, name: &str, app: &str, vips: &[IpAddr], ports: &[(u16, u16)]) {
        let ports: Vec<String> = ports
            .iter()
            .map(|(port, target)| format!("{{name: p{port}, port: {port}, targetPort: {target}, protocol: TCP}}"))
            .collect();
        let vips: Vec<String> = vips.iter().map(|ip| format!("\"{ip}\"")).collect();
        self.set(
            &format!("service {name}"),
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: prod}}\nspec:\n  \
                 clusterIP: {}\n  clusterIPs: [{}]\n  selector: {{app: {app}}}\n  ports: [{}]",
                vips[0],
                vips.join(", "),
                ports.join(", ")
            ),
        );
    }

    /// Adds a PeerAuthentication for one app of namespace `prod` (`None`: the namespace), key `mtls`.
    pub fn set_mtls(&mut self, app: Option<&str>, mode: &str) {
        let selector = app.map(|app| format!("\n  selector: {{matchLabels: {{app: {app}}}}}")).unwrap_or_default();
        self.set(
            "mtls",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: mtls, namespace: prod}}\n\
                 spec:{selector}\n  mtls: {{mode: {mode}}}"
            ),
        );
    }

    /// Adds an AuthorizationPolicy for one app of namespace `prod`, key `policy NAME`; `rules` is YAML flow text.
    pub fn set_policy(&mut self, name: &str, app: &str, action: &str, rules: &str) {
        self.set(
            &format!("policy {name}"),
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: prod}}\n\
                 spec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  action: {action}\n  rules: {rules}"
            ),
        );
    }

    /// Writes the file: readers see the old text or the new one, nothing between.
    pub fn write(&self) {
        let mut text = String::new();
        for (key, document) in &self.documents {
            let _ = writeln!(text, "---\n# {key}\n{document}");
        }
        let next = self.path.with_extension("next");
        std::fs::write(&next, text).expect("manifest can be written");
        std::fs::rename(&next, &self.path).expect("manifest can be replaced");
    }

    /// The 1-based line of the written file on which the document `key` has `needle`.
    #[track_caller]
    pub fn line_of(&self, key: &str, needle: &str) -> usize {
        let text = std::fs::read_to_string(&self.path).expect("written");
        let lines = text.lines().enumerate().skip_while(|(_, line)| *line != format!("# {key}"));
        let found = lines.skip(1).take_while(|(_, line)| *line != "---").find(|(_, line)| line.contains(needle));
        found.unwrap_or_else(|| panic!("no {needle} in document {key}")).0 + 1
    }
}

impl PodDocument {
    fn yaml(&self) -> String {
        let app = self.labels.get("app").unwrap_or(&self.name);
        let mut labels = format!("app: {app}");
        for (key, value) in self.labels.iter().filter(|(key, _)| *key != "app") {
            let _ = write!(labels, ", {key}: \"{value}\"");
        }
        let mode = if self.ambient { "ambient" } else { "none" };
        let ips: Vec<String> = self.ips.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n  \
             labels: {{{labels}, \"warren.dev/mode\": {mode}}}\n  annotations: {{\"warren.dev/netns\": \"{}\"}}\n\
             spec:\n  nodeName: {}\n  serviceAccountName: {}\n  {}\n\
             status:\n  phase: Running\n  podIPs: [{}]",
            self.name,
            self.namespace,
            self.uid,
            self.netns.display(),
            self.node,
            self.service_account,
            self.containers,
            ips.join(", ")
        )
    }
}
