//! A real `warren agent` process on a simulated node, and what it tells.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::{self, warren_bin};
use crate::eventually;
use crate::lab::{Lab, TRUST_DOMAIN};

const READY: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(15);

/// How an agent is to be started.
#[derive(Debug)]
pub struct AgentBuilder {
    node: String,
    netns: PathBuf,
    run_dir: PathBuf,
    identity: Identity,
    world: PathBuf,
    arguments: Vec<String>,
    open_files: Option<u64>,
}

/// Where an agent's SVIDs come from.
#[derive(Debug, Clone)]
enum Identity {
    /// A CA directory.
    Embedded(PathBuf),
    /// Controllers; the agent's token for them.
    Controller(PathBuf),
}

/// A running agent. Dropping it kills it and cleans up after it.
#[derive(Debug)]
pub struct Agent {
    how: AgentBuilder,
    child: Option<Child>,
    starts: u32,
}

impl AgentBuilder {
    pub(crate) fn new(lab: &Lab, node: usize) -> Self {
        let node_name = lab.node_name(node);
        Self {
            netns: lab.node(node).path().to_owned(),
            run_dir: lab.dir().join(&node_name),
            identity: Identity::Embedded(ca_dir(lab)),
            world: lab.manifest.path().to_owned(),
            node: node_name,
            arguments: Vec::new(),
            open_files: None,
        }
    }

    /// Adds a flag and its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Adds a flag that takes no value.
    #[must_use]
    pub fn switch(mut self, flag: &str) -> Self {
        self.arguments.push(flag.to_owned());
        self
    }

    /// Reads the world from here instead of the lab's manifest.
    #[must_use]
    pub fn world(mut self, path: &Path) -> Self {
        self.world = path.to_owned();
        self
    }

    /// Takes the world from an API server, by this kubeconfig.
    #[must_use]
    pub fn kubernetes(self, kubeconfig: &Path) -> Self {
        let kubeconfig = kubeconfig.to_str().expect("UTF-8 path").to_owned();
        self.world(Path::new("kubernetes")).flag("--kubeconfig", &kubeconfig)
    }

    /// Takes SVIDs from controllers, by the token in this file, instead of the lab's CA directory.
    #[must_use]
    pub fn controller(mut self, token: &Path) -> Self {
        self.identity = Identity::Controller(token.to_owned());
        self
    }

    /// Starts it without waiting until it is ready.
    #[track_caller]
    pub fn launch(self) -> Agent {
        let mut agent = Agent { how: self, child: None, starts: 0 };
        agent.launch();
        agent
    }

    /// Starts it with this limit of open files (soft and hard).
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Runs it to its end, for an agent that should refuse to run.
    #[track_caller]
    pub fn refuse(self) -> Output {
        command::output(&mut self.command())
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Agent {
        let mut agent = Agent { how: self, child: None, starts: 0 };
        agent.start();
        agent
    }

    /// The command line: `exec` all the way, so that the child's pid is the agent's own.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).args(["setpriv", "--pdeathsig", "SIGKILL"]);
        if let Some(limit) = self.open_files {
            command.arg("prlimit").arg(format!("--nofile={limit}:{limit}"));
        }
        command.arg(warren_bin()).args(["agent", "--node", &self.node]);
        command.arg("--world").arg(&self.world).arg("--run-dir").arg(&self.run_dir);
        match &self.identity {
            Identity::Embedded(dir) => command.arg("--ca-dir").arg(dir),
            Identity::Controller(token) => command.args(["--identity", "controller", "--ca-token"]).arg(token),
        };
        command.arg("--audit-log").arg(self.run_dir.join("audit.jsonl")).args(["--trust-domain", TRUST_DOMAIN]);
        if !self.arguments.iter().any(|argument| argument == "--audit-interval") {
            command.args(["--audit-interval", "1s"]);
        }
        command.args(&self.arguments);
        command
    }
}

impl Agent {
    /// Starts it (again) and waits for its `warren: ready` line.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch();
        eventually("the agent says `warren: ready`", READY, || {
            let child = self.child.as_mut().expect("launched");
            if let Some(status) = child.try_wait().expect("own child") {
                panic!("agent {} ended with {status}:\n{}", self.how.node, self.log_tail(60));
            }
            self.stdout().contains("warren: ready").then_some(())
        });
    }

    /// Starts it without waiting.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        self.starts += 1;
        std::fs::create_dir_all(&self.how.run_dir).expect("run directory");
        let out = File::create(self.file("out")).expect("log");
        let err = File::create(self.file("err")).expect("log");
        let mut command = self.how.command();
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // Spawned from the test's own thread: the parent-death signal is bound to the thread that forked.
        self.child = Some(command.spawn().expect("nsenter and setpriv (Debian: util-linux) can be run"));
    }

    /// Waits for its `warren: ready` line.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        eventually("the agent says `warren: ready`", READY, || self.stdout().contains("warren: ready").then_some(()));
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.how.node
    }

    /// Its run directory.
    pub fn run_dir(&self) -> &Path {
        &self.how.run_dir
    }

    /// Process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// Whether the process still lives.
    pub fn alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("own child").is_none())
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the agent runs");
        child.kill().expect("own child");
        child.wait().expect("own child");
    }

    /// Asks it to stop, as an operator would, and waits until it has.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the agent runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        kill(pid, Signal::SIGTERM).expect("own child");
        let status = command::wait_or_kill(&mut child, Duration::from_secs(20));
        let status = status.unwrap_or_else(|| panic!("agent does not stop on SIGTERM:\n{}", self.log_tail(40)));
        assert!(status.success(), "agent stopped with {status}:\n{}", self.log_tail(40));
    }

    /// `warren agent cleanup` for this node.
    #[track_caller]
    pub fn cleanup(&self) -> Output {
        let mut command = Command::new(warren_bin());
        command.args(["agent", "cleanup", "--node", &self.how.node, "--run-dir"]).arg(&self.how.run_dir);
        command::output(&mut command)
    }

    /// `warren status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let output = self.status_command(&["--json"]);
        assert!(output.status.success(), "status --json: {}\n{}", command::text(&output), self.log_tail(40));
        serde_json::from_slice(&output.stdout).expect("status --json prints JSON")
    }

    /// `warren status` with further arguments.
    #[track_caller]
    pub fn status_command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(warren_bin());
        command.arg("status").arg("--socket").arg(self.how.run_dir.join("agent.sock")).args(arguments);
        command::output(&mut command)
    }

    /// Waits until the status satisfies `good`, and gives it.
    #[track_caller]
    pub fn wait_status(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll(SOON, || {
            last = self.status();
            good(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("{what}: not in status {last:#}"))
    }

    /// Generation of the world it serves.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.status()["world"]["generation"].as_u64().expect("world.generation")
    }

    /// The status of one pod.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Value {
        let status = self.status();
        let pods = status["pods"].as_array().expect("pods");
        pods.iter().find(|pod| pod["name"] == name).unwrap_or_else(|| panic!("no pod {name} in {status:#}")).clone()
    }

    /// All audit events so far.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.how.run_dir.join("audit.jsonl")).unwrap_or_default();
        // The last line may be half written while we read.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an audit event.
    #[track_caller]
    pub fn wait_audit(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = poll(SOON, || self.audit().into_iter().find(|event| wanted(event)));
        found.unwrap_or_else(|| panic!("no audit event: {what}; there are {:#}", Value::Array(self.audit())))
    }

    /// The metrics page.
    #[track_caller]
    pub fn metrics(&self) -> String {
        self.http("/metrics").unwrap_or_else(|e| panic!("metrics: {e}"))
    }

    /// A page of the admin endpoint, asked for on the node.
    ///
    /// # Errors
    /// The connection's, or the head of an answer that is not 200.
    #[track_caller]
    pub fn http(&self, path: &str) -> std::io::Result<String> {
        let ns = File::open(&self.how.netns).expect("node lives");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                nix::sched::setns(&ns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                http_get("127.0.0.1:15020", path)
            });
            inside.join().expect("scrape")
        })
    }

    /// Sum of all series of a metric whose labels contain each of `labels` (`key="value"`).
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.metrics();
        let series = page.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Resident memory in bytes.
    #[track_caller]
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("agent lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("number") * 1024
    }

    /// Number of open descriptors.
    #[track_caller]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("agent lives").count()
    }

    /// CPU time used so far.
    #[track_caller]
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("agent lives");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("stat").split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        Duration::from_millis(ticks * 10)
    }

    /// The end of its log, for messages.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.file("err")).unwrap_or_default() + &self.stdout();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn stdout(&self) -> String {
        std::fs::read_to_string(self.file("out")).unwrap_or_default()
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.how.run_dir.join(format!("agent-{}.{kind}", self.starts))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}\n---", self.how.node, self.log_tail(60));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut command = Command::new(warren_bin());
        command.args(["agent", "cleanup", "--node", &self.how.node, "--run-dir"]).arg(&self.how.run_dir);
        if let Ok(output) = command.output()
            && !output.status.success()
        {
            eprintln!("cleanup of {}: {}", self.how.node, command::text(&output));
        }
    }
}

/// The lab's CA directory, made by the product's own command at first use.
fn ca_dir(lab: &Lab) -> PathBuf {
    let dir = lab.dir().join("ca");
    if !dir.exists() {
        let path = dir.to_str().expect("UTF-8 path");
        let mut command = Command::new(warren_bin());
        let output = command::output(command.args(["ca", "init", "--ca-dir", path, "--trust-domain", TRUST_DOMAIN]));
        assert!(output.status.success(), "warren ca init: {}", command::text(&output));
    }
    dir
}

fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
}

fn http_get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    if !head.starts_with("HTTP/1.1 200") {
        return Err(std::io::Error::other(head.to_owned()));
    }
    Ok(body.to_owned())
}
