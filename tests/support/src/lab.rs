//! A simulated world: nodes joined by a link, pods routed behind them, one manifest for all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::agent::{Agent, AgentBuilder};
use crate::manifest::{Manifest, PodDocument};
use crate::netns::NetNs;
use crate::stale::{PREFIX, remove_leftovers};
use crate::{command, eventually};

/// Trust domain of every lab.
pub const TRUST_DOMAIN: &str = "mesh.test";
/// The bridge of a bridged node.
pub const BRIDGE: &str = "br0";
/// The interface of a node that leads to the other node.
pub const LINK: &str = "link0";

/// One test's world. Dropping it removes every namespace and file; agents are to be dropped first.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    nodes: Vec<NetNs>,
    bridged: bool,
    pods_made: u16,
    /// The world file that the lab's agents read.
    pub manifest: Manifest,
    _slot: Slot,
}

/// A pod: a namespace with addresses, behind a node. Whether it is in the mesh is the manifest's matter.
#[derive(Debug)]
pub struct Pod {
    /// Its network namespace.
    pub ns: NetNs,
    /// What the manifest says of it.
    pub document: PodDocument,
    /// The node's end of its veth pair: vanishes with the namespace.
    pub host_link: String,
    node: usize,
}

/// Which address families a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Lab {
    /// A world of one or two nodes.
    #[track_caller]
    pub fn new(nodes: usize) -> Self {
        Self::make(nodes, false)
    }

    /// A world of one node whose pods share a bridge: one network, in which each finds the others by ARP and NDP.
    #[track_caller]
    pub fn bridged() -> Self {
        Self::make(1, true)
    }

    #[track_caller]
    fn make(nodes: usize, bridged: bool) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let slot = Slot::take();
        remove_leftovers();
        raise_open_files();
        let id = next_id();
        let dir = Path::new("/run/warren-test").join(&id);
        std::fs::create_dir_all(&dir).expect("/run can be written");
        let nodes: Vec<NetNs> = (0..nodes).map(|n| make_node(&format!("{id}-n{n}"))).collect();
        if let [a, b] = &nodes[..] {
            join(a, b);
        }
        if bridged {
            make_bridge(&nodes[0]);
        }
        let mut manifest = Manifest::new(dir.join("mesh.yaml"));
        manifest.set(
            "mesh",
            &format!(
                "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec:\n  \
                 trustDomain: {TRUST_DOMAIN}\n  cluster: lab\n  region: bench\n  captureRanges: [\"10.96.0.0/12\", \"fd00:96::/64\"]"
            ),
        );
        Self { id, dir, nodes, bridged, pods_made: 0, manifest, _slot: slot }
    }

    /// Unique name of this world.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Directory for files of this world.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name of a node, as the manifest and its agent know it.
    pub fn node_name(&self, node: usize) -> String {
        self.nodes[node].name().to_owned()
    }

    /// A node's namespace.
    pub fn node(&self, node: usize) -> &NetNs {
        &self.nodes[node]
    }

    /// Makes a dual-stack pod that is in the mesh, and adds it to the manifest.
    #[track_caller]
    pub fn pod(&mut self, node: usize, name: &str) -> Pod {
        self.pod_of(node, name, Family::Dual, true)
    }

    /// Makes a dual-stack pod outside the mesh that the manifest does not mention.
    #[track_caller]
    pub fn stranger(&mut self, node: usize, name: &str) -> Pod {
        let pod = self.pod_of(node, name, Family::Dual, false);
        self.manifest.remove(&format!("pod {name}"));
        pod
    }

    /// Makes a pod and adds it to the manifest.
    #[track_caller]
    pub fn pod_of(&mut self, node: usize, name: &str, family: Family, ambient: bool) -> Pod {
        self.pods_made += 1;
        let ips = addresses(node, self.pods_made, family);
        let pod = self.make_pod(node, name, &ips, self.pods_made, ambient);
        self.manifest.set_pod(&pod.document);
        pod
    }

    /// Makes a namespace for a pod that was deleted: same name, path and addresses, another kernel object.
    #[track_caller]
    pub fn recreate(&mut self, old: Pod) -> Pod {
        let (node, document) = (old.node, old.document.clone());
        let host_link = old.host_link.clone();
        drop(old);
        eventually("the old pod's link goes away", std::time::Duration::from_secs(10), || {
            (!self.has_link(node, &host_link)).then_some(())
        });
        self.pods_made += 1;
        self.make_pod(node, &document.name, &document.ips, self.pods_made, document.ambient)
    }

    /// Whether a node still has an interface of that name.
    pub fn has_link(&self, node: usize, link: &str) -> bool {
        self.nodes[node].run(|| nix::net::if_::if_nametoindex(link).is_ok())
    }

    /// An agent for a node, to be started.
    pub fn agent(&self, node: usize) -> AgentBuilder {
        AgentBuilder::new(self, node)
    }

    /// Writes the manifest and waits until these agents serve it.
    #[track_caller]
    pub fn apply(&self, agents: &[&Agent]) {
        let before: Vec<u64> = agents.iter().map(|agent| agent.generation()).collect();
        self.manifest.write();
        for (agent, before) in agents.iter().zip(before) {
            agent.wait_status("the new world is served", |status| {
                status["world"]["generation"].as_u64().is_some_and(|now| now > before)
            });
        }
    }

    fn make_pod(&self, node: usize, name: &str, ips: &[IpAddr], number: u16, ambient: bool) -> Pod {
        let ns = NetNs::create(&format!("{}-{name}", self.id));
        let host_link = format!("v{number}");
        if self.bridged {
            plug_pod(&self.nodes[node], &ns, &host_link, ips);
        } else {
            wire_pod(&self.nodes[node], &ns, &host_link, ips);
        }
        let document = PodDocument {
            name: name.to_owned(),
            namespace: "prod".to_owned(),
            uid: format!("{}-{name}-{number}", self.id),
            service_account: name.to_owned(),
            node: self.node_name(node),
            ips: ips.to_vec(),
            netns: ns.path().to_owned(),
            ambient,
            labels: BTreeMap::new(),
            containers: "containers: [{name: app, image: app}]".to_owned(),
        };
        Pod { ns, document, host_link, node }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("WARREN_TEST_KEEP_LOGS").is_none() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Pod {
    /// Its IPv4 address.
    #[track_caller]
    pub fn v4(&self) -> IpAddr {
        *self.document.ips.iter().find(|ip| ip.is_ipv4()).expect("pod has IPv4")
    }

    /// Its IPv6 address.
    #[track_caller]
    pub fn v6(&self) -> IpAddr {
        *self.document.ips.iter().find(|ip| ip.is_ipv6()).expect("pod has IPv6")
    }

    /// A port on its first address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.document.ips[0], port)
    }

    /// A port on its IPv6 address.
    #[track_caller]
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v6(), port)
    }

    /// Its SPIFFE id.
    pub fn identity(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}", self.document.namespace, self.document.service_account)
    }
}

/// Labs that exist at once in this process: each runs agents, and the machine may have two cores.
#[derive(Debug)]
struct Slot;

static SLOTS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Slot {
    fn take() -> Self {
        let limit = std::env::var("WARREN_TEST_LABS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
        let taken = SLOTS.0.lock().expect("no panic while counting");
        let mut taken = SLOTS.1.wait_while(taken, |taken| *taken >= limit).expect("no panic while counting");
        *taken += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Ok(mut taken) = SLOTS.0.lock() {
            *taken -= 1;
            SLOTS.1.notify_one();
        }
    }
}

fn next_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Both ends of a thousand connections live in the test process.
fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn make_node(name: &str) -> NetNs {
    let ns = NetNs::create(name);
    ns.set_sysctl("net/ipv4/ip_forward", "1");
    ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    ns
}

/// Joins two nodes; node N has 172.31.0.N+1 and routes the other's pod ranges.
fn join(a: &NetNs, b: &NetNs) {
    let (a_name, b_name) = (a.name(), b.name());
    command::ip_batch(
        None,
        &format!("link add name {LINK} netns {a_name} type veth peer name {LINK} netns {b_name}\n"),
    );
    for (ns, own, other, far) in [(a_name, 1, 2, 1), (b_name, 2, 1, 0)] {
        command::ip_batch(
            Some(ns),
            &format!(
                "link set {LINK} addrgenmode none\nlink set {LINK} up\n\
                 addr add 172.31.0.{own}/30 dev {LINK}\naddr add fe80::{own}/64 dev {LINK} nodad\n\
                 route add 10.{}.0.0/16 via 172.31.0.{other}\nroute add fd00:{}::/64 via fe80::{other} dev {LINK}\n",
                10 + far,
                10 + far
            ),
        );
    }
}

fn addresses(node: usize, number: u16, family: Family) -> Vec<IpAddr> {
    let node = u8::try_from(10 + node).expect("few nodes");
    let [high, low] = number.to_be_bytes();
    // The group is written in decimal digits so that both families of a node look alike.
    let group = u16::from_str_radix(&node.to_string(), 16).expect("digits");
    let v4 = IpAddr::V4(Ipv4Addr::new(10, node, high, low));
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, group, 0, 0, 0, 0, 0, number));
    match family {
        Family::Dual => vec![v4, v6],
        Family::V4 => vec![v4],
        Family::V6 => vec![v6],
    }
}

/// The bridge of a bridged node, with the address that pods route by.
fn make_bridge(node: &NetNs) {
    command::ip_batch(
        Some(node.name()),
        &format!(
            "link add name {BRIDGE} type bridge\nlink set {BRIDGE} addrgenmode none\nlink set {BRIDGE} up\n\
             addr add 10.10.255.254/16 dev {BRIDGE}\naddr add fd00:10::fffe/64 dev {BRIDGE} nodad\n"
        ),
    );
}

/// A pod on the bridge of its node.
fn plug_pod(node: &NetNs, pod: &NetNs, host_link: &str, ips: &[IpAddr]) {
    command::ip_batch(
        None,
        &format!("link add name {host_link} netns {} type veth peer name eth0 netns {}\n", node.name(), pod.name()),
    );
    command::ip_batch(
        Some(node.name()),
        &format!(
            "link set {host_link} addrgenmode none\nlink set {host_link} master {BRIDGE}\nlink set {host_link} up\n"
        ),
    );
    let mut inside = "link set eth0 addrgenmode none\nlink set eth0 up\n".to_owned();
    for ip in ips {
        let (length, option, gateway) =
            if ip.is_ipv4() { (16, "", "10.10.255.254") } else { (64, " nodad", "fd00:10::fffe") };
        inside += &format!("addr add {ip}/{length} dev eth0{option}\nroute add default via {gateway} dev eth0\n");
    }
    command::ip_batch(Some(pod.name()), &inside);
}

/// A routed pod: the node answers for the gateways 169.254.1.1 and fe80::1 on every pod's link.
fn wire_pod(node: &NetNs, pod: &NetNs, host_link: &str, ips: &[IpAddr]) {
    command::ip_batch(
        None,
        &format!("link add name {host_link} netns {} type veth peer name eth0 netns {}\n", node.name(), pod.name()),
    );
    let mut host = format!(
        "link set {host_link} addrgenmode none\nlink set {host_link} up\n\
         addr add 169.254.1.1/32 dev {host_link}\naddr add fe80::1/64 dev {host_link} nodad\n"
    );
    let mut inside = "link set eth0 addrgenmode none\nlink set eth0 up\naddr add fe80::2/64 dev eth0 nodad\n\
                      route add 169.254.1.1/32 dev eth0 scope link\nroute add default via fe80::1 dev eth0\n"
        .to_owned();
    for ip in ips {
        let length = if ip.is_ipv4() { "32" } else { "128" };
        let nodad = if ip.is_ipv4() { "" } else { " nodad" };
        host += &format!("route add {ip}/{length} dev {host_link}\n");
        inside += &format!("addr add {ip}/{length} dev eth0{nodad}\n");
        if ip.is_ipv4() {
            inside += "route add default via 169.254.1.1 dev eth0\n";
        }
    }
    command::ip_batch(Some(node.name()), &host);
    command::ip_batch(Some(pod.name()), &inside);
}
