//! A test bed: namespaces joined by a bridge-less pair of veths, a node with capture, a peer outside.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use warren_core::identity::PodUid;
use warren_core::policy::{InboundPlan, PlainVerdict};
use warren_core::world::CaptureSet;

use crate::capture::{CaptureConfig, CleanupConfig, EnrolledPod, Mark, NodeCapture, PodSpec, WorkerListeners, cleanup};
use crate::sys::netns::NetNs;

/// The mark the tests use.
pub(super) const MARK: Mark = Mark { value: 0x577, mask: 0xfff };
/// The pod's addresses.
pub(super) const POD4: &str = "10.87.0.2";
pub(super) const POD6: &str = "fd87::2";
/// The peer's addresses, which are captured.
pub(super) const PEER4: &str = "10.87.0.1";
pub(super) const PEER6: &str = "fd87::1";
/// An address of the peer that is not captured.
pub(super) const OPEN4: &str = "10.88.0.1";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Two namespaces, "pod" and "peer", joined by a veth pair; removed when dropped.
pub(super) struct Bed {
    pub(super) name: String,
    pub(super) pod: NetNs,
    pub(super) peer: NetNs,
}

pub(super) fn ip(command: &str) {
    let status = Command::new("ip").args(command.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {command}");
}

impl Bed {
    pub(super) fn new() -> Self {
        let name = format!("wcap{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        for end in ["pod", "peer"] {
            ip(&format!("netns add {name}-{end}"));
            ip(&format!("-n {name}-{end} link set lo up"));
        }
        ip(&format!("-n {name}-pod link add eth0 type veth peer name eth0 netns {name}-peer"));
        for (end, addresses) in
            [("pod", [POD4, POD6].as_slice()), ("peer", [PEER4, PEER6, OPEN4, "10.99.0.1"].as_slice())]
        {
            for address in addresses {
                let (length, option) = if address.contains(':') { (64, "nodad") } else { (24, "") };
                ip(&format!("-n {name}-{end} addr add {address}/{length} dev eth0 {option}"));
            }
            ip(&format!("-n {name}-{end} link set eth0 up"));
        }
        ip(&format!("-n {name}-pod route add default via {PEER4}"));
        let open = |end: &str| NetNs::open(&PathBuf::from(format!("/run/netns/{name}-{end}"))).unwrap();
        Self { pod: open("pod"), peer: open("peer"), name }
    }

    pub(super) fn config(&self) -> CaptureConfig {
        CaptureConfig {
            node: self.name.clone(),
            bpffs: PathBuf::from("/sys/fs/bpf"),
            run_dir: PathBuf::from(format!("/run/warren-test/{}", self.name)),
            mark: MARK,
            away_wait: Duration::from_secs(3),
            tunnel_congestion: None,
            workers: 2,
            route_table: 15577,
            near: true,
            pod_cgroups: Vec::new(),
            splice: None,
            self_test_timeout: Duration::from_secs(2),
        }
    }

    pub(super) fn spec(&self) -> PodSpec {
        PodSpec {
            uid: PodUid::from(self.name.as_str()),
            netns: self.pod.path().to_owned(),
            ips: vec![POD4.parse().unwrap(), POD6.parse().unwrap()],
            plan: InboundPlan {
                default: PlainVerdict::Pass,
                ports: [(23, PlainVerdict::Refuse), (24, PlainVerdict::Agent)].into(),
                probed: [].into(),
            },
        }
    }

    /// A node that captures the peer, with the pod in it.
    pub(super) fn node(&self) -> Node {
        let mut capture = NodeCapture::open(self.config()).unwrap();
        capture.set_captured(&captured()).unwrap();
        let beating = Beat::start(&capture);
        let pod = capture.enrol(&self.spec()).unwrap();
        Node { capture, pod, _beating: beating }
    }

    pub(super) fn cleanup(&self) -> crate::capture::cleanup::CleanupReport {
        let config = self.config();
        let config = CleanupConfig { node: config.node, bpffs: config.bpffs, run_dir: config.run_dir };
        cleanup(&config).unwrap()
    }

    /// Connects from inside the pod.
    pub(super) fn connect(&self, target: &str) -> std::io::Result<TcpStream> {
        let target: SocketAddr = target.parse().unwrap();
        self.pod.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(4))).unwrap()
    }

    /// Runs a shell command inside the pod; its output, if it succeeds.
    pub(super) fn shell(&self, command: &str) -> Result<String, String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &format!("{}-pod", self.name), "sh", "-c", command])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(text + &String::from_utf8_lossy(&output.stderr)) }
    }

    /// Whether an agent of this version of the contract has pinned something.
    pub(super) fn pinned(&self, version: u32) -> bool {
        PathBuf::from(format!("/sys/fs/bpf/warren/{}/v{version}", self.name)).exists()
    }

    /// TCP packets that reached the peer's interface from the pod.
    pub(super) fn tcp_seen_outside(&self) -> u64 {
        let text = self.peer.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let names: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let values: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let at = names.iter().position(|name| *name == "InSegs").unwrap();
        values[at].parse().unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let config = self.config();
        let config = CleanupConfig { node: config.node, bpffs: config.bpffs, run_dir: config.run_dir };
        if let Err(error) = cleanup(&config) {
            eprintln!("cleanup of the test bed: {error}");
        }
        for end in ["pod", "peer"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{end}", self.name)]).status();
        }
    }
}

pub(super) fn captured() -> CaptureSet {
    CaptureSet {
        ranges: Arc::new(["10.87.0.0/24", "fd87::/64", "10.87.9.0/24"].map(|text| text.parse().unwrap()).into()),
        exact: Arc::new([("10.99.0.1".parse().unwrap(), 8080)].into()),
        ..CaptureSet::default()
    }
}

/// A running agent, as far as capture is concerned.
pub(super) struct Node {
    pub(super) capture: NodeCapture,
    pub(super) pod: EnrolledPod,
    _beating: Beat,
}

/// Beats until dropped.
pub(super) struct Beat(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Beat {
    pub(super) fn start(capture: &NodeCapture) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (heartbeat, stopped) = (capture.heartbeat(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                heartbeat.beat().unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self(stop)
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The listeners of a kind, of all workers.
pub(super) fn outbound(workers: &[WorkerListeners]) -> Vec<&TcpListener> {
    workers.iter().flat_map(|worker| &worker.outbound).collect()
}

/// Accepts from whichever listener has a connection first.
pub(super) fn accept(listeners: &[&TcpListener]) -> Option<(TcpStream, SocketAddr)> {
    for _ in 0..400 {
        for listener in listeners {
            if let Ok((stream, peer)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                // As the agent does when a connection has ended cleanly; the listener's sockets reset until then.
                socket2::SockRef::from(&stream).set_linger(None).unwrap();
                return Some((stream, peer));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Sends bytes both ways.
pub(super) fn assert_connected(a: &mut TcpStream, b: &mut TcpStream) {
    for stream in [&mut *a, &mut *b] {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    let mut buffer = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

pub(super) fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}
