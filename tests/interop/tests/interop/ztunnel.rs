//! A real ztunnel on a simulated node, in its own in-pod mode with one pod.

use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::{Lab, NetNs, Pod, command, eventually};

use crate::peer::Peer;

/// How long it goes on with open connections after it was asked to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(6);
const READY: Duration = Duration::from_secs(20);
/// The ports in the pod that show it has taken the pod over: outbound, inbound plaintext, inbound HBONE.
const PORTS: [u16; 3] = [15001, 15006, 15008];

/// What ztunnel is told of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) trust_domain: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) node: String,
    /// Whether it takes tunnels.
    pub(crate) hbone: bool,
    /// A service with this pod as its only endpoint: address, port, the pod's port.
    pub(crate) service: Option<(IpAddr, u16, u16)>,
}

impl Told {
    /// The truth about a pod.
    pub(crate) fn of(pod: &Pod) -> Self {
        let document = &pod.document;
        Self {
            name: document.name.clone(),
            namespace: document.namespace.clone(),
            service_account: document.service_account.clone(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            ips: document.ips.clone(),
            node: document.node.clone(),
            hbone: true,
            service: None,
        }
    }
}

/// ztunnel's world: what Istio's control plane would tell it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) pods: Vec<Told>,
    /// Principals (without `spiffe://`) that may connect to its pod; `None`: everybody.
    pub(crate) allowed: Option<Vec<String>>,
}

impl Known {
    fn yaml(&self) -> String {
        let (mut text, mut all_services) = (String::from("workloads:\n"), String::new());
        for pod in &self.pods {
            let ips: Vec<String> = pod.ips.iter().map(|ip| format!("\"{ip}\"")).collect();
            let mut services = String::new();
            if let Some((vip, port, target)) = pod.service {
                let (namespace, host) = (&pod.namespace, format!("{}.{}.svc.cluster.local", pod.name, pod.namespace));
                services = format!("\"{namespace}/{host}\": {{{port}: {target}}}");
                let _ = writeln!(
                    all_services,
                    "- {{name: {}, namespace: {namespace}, hostname: {host}, vips: [\"/{vip}\"], \
                     ports: {{{port}: {target}}}, canonical: true}}",
                    pod.name
                );
            }
            let _ = writeln!(
                text,
                "- {{uid: uid-{0}, name: {0}, namespace: {1}, serviceAccount: {2}, trustDomain: {3}, \
                 workloadIps: [{4}], protocol: {5}, node: {6}, network: \"\", services: {{{7}}}}}",
                pod.name,
                pod.namespace,
                pod.service_account,
                pod.trust_domain,
                ips.join(", "),
                if pod.hbone { "HBONE" } else { "TCP" },
                pod.node,
                services
            );
        }
        match &self.allowed {
            None => text += "policies: []\n",
            Some(principals) => {
                text += "policies:\n- name: allowed\n  namespace: prod\n  scope: Namespace\n  action: Allow\n  \
                         dryRun: false\n  rules:\n";
                for principal in principals {
                    let _ = writeln!(text, "  - - - principals: [!Exact \"{principal}\"]");
                }
            }
        }
        if all_services.is_empty() { text + "services: []\n" } else { text + "services:\n" + &all_services }
    }
}

/// A ztunnel with its helper. Dropping it kills both, and their predecessors.
#[derive(Debug)]
pub(crate) struct Ztunnel {
    peer: Peer,
    /// One for each start, as an upgraded ztunnel is another pod.
    namespaces: Vec<NetNs>,
    node_name: String,
    pod: Told,
    pod_netns: String,
    dir: PathBuf,
    children: Option<Children>,
    /// Was asked to stop when its successor started.
    predecessor: Option<Children>,
    lab_id: String,
}

#[derive(Debug)]
struct Children {
    ztunnel: Child,
    inpodserver: Child,
}

impl Ztunnel {
    /// Redirects the pod's connections and starts ztunnel for it, on the pod's node.
    #[track_caller]
    pub(crate) fn start(peer: &Peer, lab: &Lab, node: usize, pod: &Pod, known: &Known) -> Self {
        redirect(peer, pod);
        let mut ztunnel = Self {
            peer: peer.clone(),
            namespaces: Vec::new(),
            node_name: lab.node_name(node),
            pod: Told::of(pod),
            pod_netns: pod.ns.name().to_owned(),
            dir: lab.dir().join("ztunnel"),
            children: None,
            predecessor: None,
            lab_id: lab.id().to_owned(),
        };
        std::fs::create_dir_all(&ztunnel.dir).expect("lab directory");
        std::fs::write(ztunnel.world(), known.yaml()).expect("lab directory");
        ztunnel.launch(&pod.ns);
        ztunnel
    }

    /// Starts it (again) and waits until it serves the pod. One that still runs must have been asked to stop.
    #[track_caller]
    pub(crate) fn launch(&mut self, pod: &NetNs) {
        self.predecessor = self.children.take();
        self.namespaces.push(NetNs::create(&format!("{}-z{}", self.lab_id, self.namespaces.len())));
        let socket = self.dir.join("zds.sock");
        let _ = std::fs::remove_file(&socket);
        let Told { name, namespace, service_account, .. } = &self.pod;
        let mut helper = self.program(&self.peer.inpodserver, "inpodserver");
        helper.arg(&self.pod_netns).env("INPOD_UDS", &socket);
        helper.env("PROXY_WORKLOAD_INFO", format!("{namespace}/{name}/{service_account}"));
        let inpodserver = spawn(&mut helper);
        let mut ztunnel = self.program(&self.peer.ztunnel, "ztunnel");
        ztunnel.env("INPOD_UDS", &socket).env("NODE_NAME", &self.node_name).env("PROXY_MODE", "shared");
        ztunnel.env("FAKE_CA", "true").env("XDS_ADDRESS", "").env("LOCAL_XDS_PATH", self.world());
        ztunnel.env("CONNECTION_TERMINATION_DEADLINE", format!("{}s", DRAIN.as_secs())).env("RUST_LOG", "info");
        eventually("ztunnel's helper listens", READY, || socket.exists().then_some(()));
        self.children = Some(Children { ztunnel: spawn(&mut ztunnel), inpodserver });
        eventually("ztunnel serves its pod", READY, || {
            assert!(self.alive(), "ztunnel has ended:\n{}", self.log_tail(40));
            self.listens(pod).then_some(())
        });
    }

    /// Whether it listens in its pod.
    pub(crate) fn listens(&self, pod: &NetNs) -> bool {
        let listening = listening(pod);
        PORTS.iter().all(|port| listening.contains(port))
    }

    /// Asks it to stop, as Kubernetes would; it closes its listeners and goes on with open connections for `DRAIN`.
    #[track_caller]
    pub(crate) fn ask_to_stop(&self) {
        let child = &self.children.as_ref().expect("ztunnel runs").ztunnel;
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM).expect("own child");
    }

    /// Waits until the one before has stopped.
    #[track_caller]
    pub(crate) fn wait_predecessor_stopped(&mut self) {
        let mut predecessor = self.predecessor.take().expect("there was one");
        let status = command::wait_or_kill(&mut predecessor.ztunnel, DRAIN + READY);
        predecessor.end();
        assert!(status.is_some(), "ztunnel does not stop");
    }

    /// `kill -9`.
    pub(crate) fn kill9(&mut self) {
        for children in [self.children.take(), self.predecessor.take()].iter_mut().flatten() {
            children.end();
        }
    }

    /// All it has logged since its last start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.file("ztunnel")).unwrap_or_default()
    }

    /// Waits for a line of its log that has all of `words`.
    #[track_caller]
    pub(crate) fn wait_log(&self, words: &[&str]) -> String {
        eventually(&format!("ztunnel logs {words:?}"), Duration::from_secs(15), || {
            self.log().lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    fn alive(&mut self) -> bool {
        self.children.as_mut().is_some_and(|c| c.ztunnel.try_wait().expect("own child").is_none())
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn world(&self) -> PathBuf {
        self.dir.join("world.yaml")
    }

    fn file(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{program}-{}.log", self.namespaces.len()))
    }

    /// `exec` all the way, so that the child's pid is the program's own; it dies with the thread that started it.
    fn program(&self, program: &PathBuf, name: &str) -> Command {
        let log = File::create(self.file(name)).expect("log");
        let mut command = Command::new("nsenter");
        let own = self.namespaces.last().expect("made by launch");
        command.arg(format!("--net={}", own.path().display())).args(["setpriv", "--pdeathsig", "SIGKILL"]).arg(program);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        command
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of ztunnel:\n{}\n---", self.log_tail(60));
        }
        self.kill9();
    }
}

impl Children {
    fn end(&mut self) {
        for child in [&mut self.ztunnel, &mut self.inpodserver] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"))
}

/// Applies ztunnel's own rules for IPv4, and the same ones for IPv6.
#[track_caller]
fn redirect(peer: &Peer, pod: &Pod) {
    let v4 = std::fs::read_to_string(peer.redirect_script()).expect("redirect script");
    let v6 = [
        ("iptables-restore", "ip6tables-restore"),
        ("127.0.0.1/32", "::1/128"),
        ("169.254.7.127/32", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128"),
        ("0.0.0.0/0", "::/0"),
        ("ip route", "ip -6 route"),
        ("ip rule", "ip -6 rule"),
    ]
    .iter()
    .fold(v4.clone(), |script, (from, to)| script.replace(from, to));
    for script in [v4, v6] {
        pod.ns.check("sh", &["-c", &script]);
    }
}

/// Ports with a TCP listener in a namespace.
fn listening(ns: &NetNs) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let table = ns.read("/proc/thread-self/net/tcp") + &ns.read("/proc/thread-self/net/tcp6");
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listeners = sockets.filter(|fields| fields.get(3) == Some(&LISTEN));
    listeners.filter_map(|fields| u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok()).collect()
}
