//! The cluster that the tests share, and clusters of one test's own.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Names the program; else cargo builds and runs it.
const XTASK: &str = "WARREN_XTASK";
/// Clusters of the tests are named by the test process: what a dead one left is known.
const PREFIX: &str = "test-";
/// How long something may take that takes a second on a quiet machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(250);

/// The cluster of all tests, made for the first.
#[derive(Default)]
pub(crate) struct Shared {
    cluster: OnceLock<Result<Cluster, String>>,
}

impl Shared {
    /// The cluster; where it does not come up every test says why.
    pub(crate) fn cluster(&self) -> Result<&Cluster, String> {
        let made = self.cluster.get_or_init(|| {
            take_down_stale();
            let cluster = Cluster::named(&format!("{PREFIX}{}", std::process::id()));
            let up = cluster.xtask(["up"]).output().map_err(|error| format!("xtask: {error}"))?;
            if up.status.success() { Ok(cluster) } else { Err(format!("the cluster does not come up: {}", said(&up))) }
        });
        made.as_ref().map_err(String::clone)
    }

    /// Takes it down; says what is left.
    pub(crate) fn take_down(&self) -> Result<(), String> {
        let Some(Ok(cluster)) = self.cluster.get() else { return Ok(()) };
        let down = cluster.xtask(["down"]).output().map_err(|error| format!("xtask: {error}"))?;
        let left = cluster.traces();
        if down.status.success() && left.is_empty() { Ok(()) } else { Err(format!("{} {left:?}", said(&down))) }
    }
}

/// Clusters of test processes that are gone.
fn take_down_stale() {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let cluster = name.strip_prefix("warren-cluster.")?.split('.').next()?.to_owned();
        let pid = cluster.strip_prefix(PREFIX)?.split('-').next()?.to_owned();
        (!Path::new("/proc").join(pid).exists()).then_some(cluster)
    });
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        println!("taking down {name} of an earlier run");
        let _ = Cluster::named(&name).xtask(["down"]).status();
    }
}

/// A cluster by its name, whether or not it is up.
pub(crate) struct Cluster {
    name: String,
}

impl Cluster {
    /// Names one.
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Names another one beside it.
    pub(crate) fn beside(&self, suffix: &str) -> Self {
        Self { name: format!("{}-{suffix}", self.name) }
    }

    /// A command of `cargo xtask cluster`.
    pub(crate) fn xtask<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = xtask(["cluster", "--name", &self.name]);
        command.args(arguments);
        command
    }

    /// Runs one, which must succeed; what it printed.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        succeeded(&mut self.xtask(arguments))
    }

    /// kubectl, not run yet.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        self.xtask(["kubectl"].iter().chain(arguments))
    }

    /// Runs kubectl, which must succeed; what it printed.
    #[track_caller]
    pub(crate) fn kube(&self, arguments: &[&str]) -> String {
        succeeded(&mut self.kubectl(arguments))
    }

    /// An object or a list.
    #[track_caller]
    pub(crate) fn get(&self, arguments: &[&str]) -> Value {
        let text = self.kube(&[&["get", "-o", "json"], arguments].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Applies manifests.
    #[track_caller]
    pub(crate) fn apply(&self, manifest: &str) {
        self.feed("apply", manifest);
    }

    /// Makes an object what is given.
    #[track_caller]
    pub(crate) fn replace(&self, object: &Value) {
        self.feed("replace", &object.to_string());
    }

    #[track_caller]
    fn feed(&self, action: &str, manifest: &str) {
        let mut command = self.kubectl(&[action, "-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl starts");
        child.stdin.take().expect("piped").write_all(manifest.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        assert!(output.status.success(), "{}\n{manifest}", said(&output));
    }

    /// The names of its nodes.
    #[track_caller]
    pub(crate) fn nodes(&self) -> Vec<String> {
        let list = self.get(&["nodes"]);
        list["items"].as_array().into_iter().flatten().filter_map(|node| name_of(node).map(str::to_owned)).collect()
    }

    /// What the machine has of it: processes, namespaces, cgroups, files.
    pub(crate) fn traces(&self) -> Vec<String> {
        let prefix = format!("warren-cluster.{}.", self.name);
        let mut found = Vec::new();
        let listed = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let cgroups = mounts.lines().filter(|line| line.contains(" cgroup")).filter_map(|line| line.split(' ').nth(1));
        for folder in cgroups.chain(["/run/netns"]) {
            let entries = listed(Path::new(folder)).into_iter().map(|entry| entry.path());
            let own = entries.filter(|path| path.file_name().is_some_and(|name| starts_with(name, &prefix)));
            found.extend(own.map(|path| path.display().to_string()));
        }
        for process in listed(Path::new("/proc")) {
            let command = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
            if command.contains(&prefix) || command.contains(&format!("cluster/{}/", self.name)) {
                found.push(command);
            }
        }
        found.extend(self.folder().filter(|path| path.exists()).map(|path| path.display().to_string()));
        found.extend(mounts.lines().filter(|line| line.contains(&prefix)).map(str::to_owned));
        found
    }

    /// The archive of an image that was loaded.
    pub(crate) fn archive(&self, image: &str) -> PathBuf {
        self.folder().expect("a home").join("images").join(image).with_extension("tar")
    }

    /// The administrator's kubeconfig.
    pub(crate) fn admin(&self) -> PathBuf {
        self.folder().expect("a home").join("admin.conf")
    }

    fn folder(&self) -> Option<PathBuf> {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
        Some(state.join("warren/cluster").join(&self.name))
    }
}

fn starts_with(name: &OsStr, prefix: &str) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(prefix))
}

/// A command of `cargo xtask`.
pub(crate) fn xtask<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = match std::env::var_os(XTASK) {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
            cargo
        }
    };
    // By cargo's variable it would take this package for the whole tree.
    command.env_remove("CARGO_MANIFEST_DIR").current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// `metadata.name`.
pub(crate) fn name_of(object: &Value) -> Option<&str> {
    object["metadata"]["name"].as_str()
}

/// Runs a command, which must succeed; what it printed.
#[track_caller]
pub(crate) fn succeeded(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How a command ended and what it wrote.
pub(crate) fn said(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    format!("{}: {}", output.status, text.join(" "))
}

/// Asks until it is so.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(found) => return found,
            Err(why) if started.elapsed() > PATIENCE => panic!("{what}: not after {} s: {why}", PATIENCE.as_secs()),
            Err(_) => thread::sleep(POLL),
        }
    }
}
