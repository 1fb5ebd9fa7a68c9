//! Who is in the soak, where, and who calls whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::netlab::netns_path;
use crate::netlab::network::{self, NodeNet, PodNet};

pub(super) const TRUST_DOMAIN: &str = "soak.example.com";
/// Everything the soak makes carries this prefix.
pub(super) const PREFIX: &str = "wsoak-";
/// The port that every pod's server listens on.
pub(super) const PORT: u16 = 8080;
/// The port of its service.
pub(super) const SERVICE_PORT: u16 = 80;
/// Stands at the beginning of every connection, to be looked for on the wire.
pub(super) const CANARY: &[u8; 24] = b"WARREN-SOAK-CANARY-7f3a9";

/// A simulated node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    /// Its name, which is its namespace's as well.
    pub(super) name: &'static str,
    /// Third group of its addresses on the link, and of its pods' networks.
    number: u8,
}

pub(super) const NODES: [Node; 2] = [Node { name: "wsoak-a", number: 1 }, Node { name: "wsoak-b", number: 2 }];

/// A pod, by its place in [`PODS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    /// Its name; its service account, its app label and its service have it too.
    pub(super) name: &'static str,
    pub(super) node: Node,
    /// Last group of its addresses and of its service's.
    number: u8,
}

const fn pod(name: &'static str, node: usize, number: u8) -> Pod {
    Pod { name, node: NODES[node], number }
}

pub(super) const PODS: [Pod; 8] = [
    pod("amber", 0, 11),
    pod("basil", 0, 12),
    pod("cedar", 0, 13),
    pod("daisy", 0, 14),
    pod("elder", 1, 21),
    pod("fern", 1, 22),
    pod("gorse", 1, 23),
    pod("hazel", 1, 24),
];

/// A caller and a server, by their places in [`PODS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pair {
    pub(super) from: usize,
    pub(super) to: usize,
}

const fn pair(from: usize, to: usize) -> Pair {
    Pair { from, to }
}

/// Between the nodes in both directions, and within each node.
pub(super) const PAIRS: [Pair; 12] = [
    pair(0, 4),
    pair(1, 5),
    pair(2, 6),
    pair(3, 7),
    pair(4, 1),
    pair(5, 2),
    pair(6, 3),
    pair(7, 0),
    pair(0, 1),
    pair(2, 3),
    pair(4, 5),
    pair(6, 7),
];

impl Node {
    /// Its place in [`NODES`].
    pub(super) fn index(self) -> usize {
        usize::from(self.number - 1)
    }

    /// Its addresses on the link.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 78, 0, self.number).into(), v6(0, self.number)]
    }

    /// The networks its pods' addresses come from.
    fn pod_networks(self) -> [String; 2] {
        [format!("10.78.{}.0/24", self.number), format!("fd78:0:0:{:x}::/64", self.number)]
    }

    /// The path of its network namespace.
    pub(super) fn netns(self) -> PathBuf {
        netns_path(self.name)
    }

    /// As the network knows it.
    pub(super) fn net(self) -> NodeNet {
        NodeNet {
            netns: self.name.to_owned(),
            addresses: self.addresses().to_vec(),
            pod_networks: self.pod_networks().to_vec(),
        }
    }
}

/// Every address of a pod or a service: captured even while nobody has it, so
/// that whoever calls a pod that is away is refused instead of sent in clear.
pub(super) fn address_ranges() -> [String; 2] {
    ["10.78.0.0/16".to_owned(), "fd78::/32".to_owned()]
}

impl Pod {
    /// The name of its network namespace.
    pub(super) fn netns_name(self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The path of its network namespace.
    pub(super) fn netns(self) -> PathBuf {
        netns_path(&self.netns_name())
    }

    /// The node's end of its link.
    pub(super) fn host_interface(self) -> String {
        format!("pod{}", self.number)
    }

    /// Its own addresses.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 78, self.node.number, self.number).into(), v6(self.node.number, self.number)]
    }

    /// The addresses of the service in front of it.
    pub(super) fn service_addresses(self) -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 78, 100, self.number).into(), v6(100, self.number)]
    }

    /// Its principal, as policies write it.
    pub(super) fn principal(self) -> String {
        format!("{TRUST_DOMAIN}/ns/soak/sa/{}", self.name)
    }

    /// As the network knows it.
    pub(super) fn net(self) -> PodNet {
        PodNet {
            netns: self.netns_name(),
            node: self.node.name.to_owned(),
            host_interface: self.host_interface(),
            addresses: self.addresses().to_vec(),
        }
    }

    /// Builds its namespace and its link again.
    pub(super) fn build(self) -> anyhow::Result<()> {
        let net = self.net();
        network::add_namespaces(std::iter::once(&net.netns))?;
        network::add_pod(&net)
    }
}

impl Pair {
    /// The caller.
    pub(super) fn client(self) -> Pod {
        PODS[self.from]
    }

    /// The server.
    pub(super) fn server(self) -> Pod {
        PODS[self.to]
    }

    /// Whether this pod, by its place, is one of its ends.
    pub(super) fn touches(self, pod: usize) -> bool {
        self.from == pod || self.to == pod
    }

    /// Whether its connections pass through that node's agent.
    pub(super) fn passes(self, node: Node) -> bool {
        self.client().node == node || self.server().node == node
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} → {}", self.client().name, self.server().name)
    }
}

fn v6(network: u8, host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd78, 0, 0, network.into(), 0, 0, 0, host.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_cross_the_link_both_ways_and_stay_within_each_node() {
        let ways = |from: usize, to: usize| {
            PAIRS.iter().filter(|pair| (pair.client().node.index(), pair.server().node.index()) == (from, to)).count()
        };
        assert!([(0, 0), (0, 1), (1, 0), (1, 1)].iter().all(|(from, to)| ways(*from, *to) >= 2));
        assert!((0..PODS.len()).all(|pod| PAIRS.iter().any(|pair| pair.from == pod)), "every pod calls");
        assert!((0..PODS.len()).all(|pod| PAIRS.iter().any(|pair| pair.to == pod)), "every pod is called");
    }

    #[test]
    fn nodes_are_told_apart_by_their_place() {
        for (place, node) in NODES.into_iter().enumerate() {
            assert_eq!(node.index(), place);
        }
    }
}
