//! A real API server with its etcd, in a namespace of a test's own.
//!
//! The programs are those that `cargo xtask cluster` builds. Where they are not there, a test that needs them says so
//! and does nothing: building them takes minutes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::command;
use crate::eventually;
use crate::netns::NetNs;

/// Names the folder with `kube-apiserver`, `etcd` and `kubectl`.
pub const BINARIES: &str = "WARREN_KUBERNETES_BIN";
/// The token that its kubeconfig begins with.
pub const TOKEN: &str = "the-agents-token";

const ADMIN_TOKEN: &str = "the-admins-token";
const START: Duration = Duration::from_secs(60);

/// The running programs. Dropping it ends them.
#[derive(Debug)]
pub struct ApiServer {
    bin: PathBuf,
    dir: PathBuf,
    netns: PathBuf,
    etcd: Option<Child>,
    server: Option<Child>,
}

/// The folder with the programs, or why there is none.
///
/// # Errors
/// The words to say when a test is skipped.
pub fn binaries() -> Result<PathBuf, String> {
    let has_all = |dir: &Path| ["kube-apiserver", "etcd", "kubectl"].iter().all(|name| dir.join(name).is_file());
    if let Some(dir) = std::env::var_os(BINARIES).map(PathBuf::from) {
        assert!(has_all(&dir), "{BINARIES} names {}, which lacks kube-apiserver, etcd or kubectl", dir.display());
        return Ok(dir);
    }
    let cache = std::env::var_os("WARREN_PARTS_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let user = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        user.unwrap_or_else(home).join("warren/parts")
    });
    let folders = fs::read_dir(&cache).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = folders.filter(|dir| has_all(dir)).collect();
    found.sort();
    found.pop().ok_or_else(|| {
        format!("no kube-apiserver, etcd and kubectl under {}: `cargo xtask cluster` builds them", cache.display())
    })
}

impl ApiServer {
    /// Starts both programs in a namespace, with their files in `dir`.
    #[track_caller]
    pub fn start(bin: PathBuf, netns: &NetNs, dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("directory");
        let mut this = Self { bin, dir, netns: netns.path().to_owned(), etcd: None, server: None };
        let key = this.file("sa.key");
        command::run("openssl", &["genrsa", "-out", &key, "2048"]);
        let tokens = format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n{TOKEN},agent,agent,\n");
        fs::write(this.dir.join("tokens.csv"), tokens).expect("file");
        this.write_token(TOKEN);
        let data = this.file("etcd");
        this.etcd = Some(this.spawn(
            "etcd",
            &[
                "--data-dir",
                &data,
                "--listen-client-urls",
                "http://127.0.0.1:2379",
                "--advertise-client-urls",
                "http://127.0.0.1:2379",
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
                "--initial-advertise-peer-urls",
                "http://127.0.0.1:2380",
                "--initial-cluster",
                "default=http://127.0.0.1:2380",
                "--unsafe-no-fsync",
            ],
        ));
        this.start_server();
        fs::write(this.dir.join("agent.conf"), this.kubeconfig("tokenFile", &this.file("token"))).expect("file");
        fs::write(this.dir.join("admin.conf"), this.kubeconfig("token", ADMIN_TOKEN)).expect("file");
        this
    }

    /// Starts the API server (again) and waits until it serves.
    #[track_caller]
    pub fn start_server(&mut self) {
        let certificates = self.file("certificates");
        let (tokens, key) = (self.file("tokens.csv"), self.file("sa.key"));
        self.server = Some(self.spawn(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                "--bind-address=127.0.0.1",
                "--secure-port=6443",
                "--advertise-address=192.0.2.1",
                "--endpoint-reconciler-type=none",
                &format!("--cert-dir={certificates}"),
                &format!("--token-auth-file={tokens}"),
                &format!("--service-account-key-file={key}"),
                &format!("--service-account-signing-key-file={key}"),
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=AlwaysAllow",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--disable-admission-plugins=ServiceAccount",
            ],
        ));
        eventually("the API server is ready", START, || {
            let output = self
                .curl("https://127.0.0.1:6443/readyz", &["-k", "-H", &format!("Authorization: Bearer {ADMIN_TOKEN}")]);
            (output.stdout == b"ok").then_some(())
        });
    }

    /// Kills the API server; etcd stays.
    #[track_caller]
    pub fn kill_server(&mut self) {
        end(self.server.take());
    }

    /// The kubeconfig for the agent, whose token is in a file.
    pub fn agent_config(&self) -> PathBuf {
        self.dir.join("agent.conf")
    }

    /// Replaces the agent's token, as kubelet does: by renaming.
    #[track_caller]
    pub fn write_token(&self, token: &str) {
        let new = self.dir.join("token.new");
        fs::write(&new, token).and_then(|()| fs::rename(&new, self.dir.join("token"))).expect("file");
    }

    /// Runs kubectl as the administrator and demands success.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let output = self.kubectl_as(ADMIN_TOKEN, arguments, input);
        assert!(output.status.success(), "kubectl {arguments:?}: {}", command::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs kubectl as whoever has this token, with whatever outcome.
    #[track_caller]
    pub fn kubectl_as(&self, token: &str, arguments: &[&str], input: &str) -> Output {
        let mut command = self.inside(&self.bin.join("kubectl"));
        command.arg("--kubeconfig").arg(self.dir.join("admin.conf")).arg(format!("--token={token}")).args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
        // One that reads nothing may have ended already.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        child.wait_with_output().expect("kubectl ends")
    }

    /// Applies manifests.
    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        self.kubectl(&["apply", "--validate=false", "-f", "-"], manifests);
    }

    /// Makes a namespace.
    #[track_caller]
    pub fn namespace(&self, name: &str, labels: &Value) {
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string(),
        );
    }

    /// Makes a Node; returns its UID.
    #[track_caller]
    pub fn node(&self, name: &str) -> String {
        self.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string());
        self.kubectl(&["get", "node", name, "-o", "jsonpath={.metadata.uid}"], "")
    }

    /// Makes a pod that runs, as a kubelet would tell; returns its UID.
    #[track_caller]
    pub fn pod(&self, namespace: &str, name: &str, node: &str, ips: &[String]) -> String {
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
                "spec": {"nodeName": node, "serviceAccountName": name, "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "none"}]}})
            .to_string(),
        );
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips, "hostIP": "192.0.2.9",
            "hostIPs": [{"ip": "192.0.2.9"}], "conditions": [{"type": "Ready", "status": "True"}]}});
        let patch = status.to_string();
        self.kubectl(
            &["patch", "pod", "-n", namespace, name, "--subresource=status", "--type=merge", "-p", &patch],
            "",
        );
        self.kubectl(&["get", "pod", "-n", namespace, name, "-o", "jsonpath={.metadata.uid}"], "")
    }

    /// Lets etcd forget everything but what is in force, and the API server with it once it starts again.
    #[track_caller]
    pub fn compact(&self) {
        let ask = |path: &str, body: &Value| -> Value {
            let output = self.curl(&format!("http://127.0.0.1:2379{path}"), &["-d", &body.to_string()]);
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("etcd: {e}: {}", command::text(&output)))
        };
        let range = ask("/v3/kv/range", &json!({"key": "AA=="}));
        let revision = range["header"]["revision"].as_str().expect("a revision").to_owned();
        ask("/v3/kv/compaction", &json!({"revision": revision, "physical": true}));
    }

    /// The end of the API server's log, for messages.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.dir.join("kube-apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn kubeconfig(&self, credential: &str, value: &str) -> String {
        let ca = self.file("certificates/apiserver.crt");
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority": ca}}],
            "users": [{"name": "u", "user": {credential: value}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]})
        .to_string()
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(program);
        command
    }

    fn curl(&self, url: &str, arguments: &[&str]) -> Output {
        let mut command = self.inside(Path::new("curl"));
        command::output(command.args(["-s", "-m", "10"]).args(arguments).arg(url))
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{program}.log"))).expect("log");
        let mut command = self.inside(Path::new("setpriv"));
        command.args(["--pdeathsig", "SIGKILL"]).arg(self.bin.join(program)).args(arguments);
        let err = log.try_clone().expect("log");
        command.stdin(Stdio::null()).stdout(log).stderr(err).spawn().expect("nsenter and setpriv can be run")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the API server:\n{}\n---", self.log_tail());
        }
        end(self.server.take());
        end(self.etcd.take());
    }
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}
