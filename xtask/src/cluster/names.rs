//! What a cluster's parts are called, and their addresses. Names are the
//! machine's, so that clusters stand side by side; addresses are the same in
//! each, since none can see another's networks.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// First part of the names of network namespaces and cgroups. The separator
/// occurs in no cluster's name, so that no name is the beginning of another's.
const PREFIX: &str = "warren-cluster.";
const LONGEST_NAME: usize = 24;

/// The most nodes a cluster may have: what the third byte of 10.201.N.0 leaves, and then some.
pub(crate) const MOST_NODES: u8 = 200;
/// Where the API server is reached.
pub(crate) const API_SERVER: &str = "10.200.0.1";
pub(crate) const API_SERVER_V6: &str = "fd00:200::1";
/// All pods, of both families.
pub(crate) const POD_NETWORKS: &str = "10.201.0.0/16,fd00:201::/32";
/// All Services, of both families.
pub(crate) const SERVICE_NETWORKS: &str = "10.96.0.0/16,fd00:96::/108";
/// The first address of each is the API server's Service.
pub(crate) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
/// CoreDNS, of both families.
pub(crate) const DNS_SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::a"];

/// A cluster's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterName(String);

impl FromStr for ClusterName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(plain) || text.starts_with('-') {
            bail!("a cluster's name has 1 to {LONGEST_NAME} of a-z, 0-9 and -, and does not begin with -");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ClusterName {
    /// Begins the names of everything that the kernel keeps for the cluster.
    pub(crate) fn prefix(&self) -> String {
        format!("{PREFIX}{self}.")
    }

    /// The name of a member's network namespace and of its cgroups.
    pub(crate) fn of(&self, member: Member) -> String {
        format!("{}{member}", self.prefix())
    }
}

/// What has namespaces and a cgroup of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Member {
    /// etcd, API server, controller manager and scheduler.
    ControlPlane,
    /// A node with kubelet and its pods.
    Node(Node),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane => f.pad("control-plane"),
            Self::Node(node) => node.fmt(f),
        }
    }
}

/// A node, by its number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(u8);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("node{}", self.0))
    }
}

impl FromStr for Node {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("node").unwrap_or(text).parse() {
            Ok(number) => Self::new(number),
            Err(_) => bail!("{text} is no node: nodes are numbered from 1"),
        }
    }
}

impl Node {
    /// The node of that number.
    pub(crate) fn new(number: u8) -> Result<Self> {
        if number == 0 || number > MOST_NODES {
            bail!("there is no node {number}: nodes are numbered from 1 to {MOST_NODES}");
        }
        Ok(Self(number))
    }

    /// Its number.
    pub(crate) fn number(self) -> u8 {
        self.0
    }

    /// Its addresses on the network of the nodes.
    pub(crate) fn addresses(self) -> [String; 2] {
        [format!("10.200.0.{}", u16::from(self.0) + 1), format!("fd00:200::{:x}", u16::from(self.0) + 1)]
    }

    /// The networks that its pods' addresses come from.
    pub(crate) fn pod_networks(self) -> [String; 2] {
        [format!("10.201.{}.0/24", self.0), format!("fd00:201:{:x}::/64", self.0)]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn no_clusters_things_are_taken_for_anothers() {
        let names = ["a", "a-b", "a-control-plane"].map(|name| name.parse::<ClusterName>().unwrap());
        for one in &names {
            for other in names.iter().filter(|other| *other != one) {
                assert!(!other.of(Member::ControlPlane).starts_with(&one.prefix()), "{one} {other}");
            }
        }
        for wrong in ["", "-a", "a.b", "A", "a/b", "a-name-that-is-far-too-long-for-it"] {
            assert!(wrong.parse::<ClusterName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_node_has_addresses_of_its_own() {
        let nodes = (1..=MOST_NODES).map(|number| Node::new(number).unwrap());
        let mut seen: BTreeSet<IpAddr> = [API_SERVER, API_SERVER_V6].map(|text| text.parse().unwrap()).into();
        for node in nodes {
            for address in node.addresses() {
                assert!(seen.insert(address.parse().unwrap()), "{address}");
            }
            for network in node.pod_networks() {
                let (address, _) = network.split_once('/').unwrap();
                assert!(seen.insert(address.parse().unwrap()), "{network}");
            }
        }
    }

    #[test]
    fn nodes_are_known_by_number_or_name() {
        assert_eq!("2".parse::<Node>().unwrap(), "node2".parse::<Node>().unwrap());
        assert!("0".parse::<Node>().is_err() && "node201".parse::<Node>().is_err() && "x".parse::<Node>().is_err());
    }
}
