//! The benchmark's two nodes and three pods.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::load::Load;
use crate::netlab::netns_path;
use crate::netlab::network::{self, LINK, NodeNet, PodNet};

/// Everything the benchmark makes carries this prefix.
pub(crate) const PREFIX: &str = "wbench-";
/// The pods' Kubernetes namespace.
pub(crate) const NAMESPACE: &str = "bench";
/// The port that the load's server listens on.
pub(crate) const PORT: u16 = 8080;

/// A pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    node: usize,
    number: u8,
}

/// Runs the clients, on the first node.
pub(crate) const CLIENT: Pod = Pod { name: "client", node: 0, number: 11 };
/// Serves on the client's node.
pub(crate) const NEAR: Pod = Pod { name: "near", node: 0, number: 12 };
/// Serves on the other node.
pub(crate) const FAR: Pod = Pod { name: "far", node: 1, number: 13 };

/// The names of the nodes, which are their namespaces' as well.
pub(crate) const NODES: [&str; 2] = ["wbench-a", "wbench-b"];

impl Pod {
    /// Its address.
    pub(crate) fn address(self) -> IpAddr {
        Ipv4Addr::new(10, 88, if self.node == 0 { 1 } else { 2 }, self.number).into()
    }

    /// The name of its namespace.
    pub(crate) fn netns_name(self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The path of its namespace.
    pub(crate) fn netns(self) -> PathBuf {
        netns_path(&self.netns_name())
    }

    /// The number of its node.
    pub(crate) fn node(self) -> usize {
        self.node
    }

    fn net(self) -> PodNet {
        PodNet {
            netns: self.netns_name(),
            node: NODES[self.node].to_owned(),
            host_interface: format!("pod{}", self.number),
            addresses: vec![self.address()],
        }
    }
}

fn node(number: usize) -> NodeNet {
    let third = if number == 0 { 1 } else { 2 };
    NodeNet {
        netns: NODES[number].to_owned(),
        addresses: vec![Ipv4Addr::new(10, 88, 0, third).into()],
        pod_networks: vec![format!("10.88.{third}.0/24")],
    }
}

/// Builds the nodes with these pods.
pub(super) fn build(pods: &[Pod]) -> Result<()> {
    network::build(&[node(0), node(1)], &pods.iter().map(|pod| pod.net()).collect::<Vec<PodNet>>())
}

/// The same with a link that delays; gives the process that is the link.
pub(super) fn build_delayed(pods: &[Pod], program: &Path, each_way: Duration) -> Result<Load> {
    let pods: Vec<PodNet> = pods.iter().map(|pod| pod.net()).collect();
    network::build_with(&[node(0), node(1)], &pods, || {
        let [a, b] = NODES.map(|node| netns_path(node).display().to_string());
        let milliseconds = (each_way.as_secs_f64() * 1000.0).to_string();
        let words = ["delay", "--between", &a, &b, "--name", LINK, "--milliseconds", &milliseconds];
        let mut link = Load::start(program, &netns_path(NODES[0]), &words.map(str::to_owned))?;
        let _ready: serde_json::Value = link.line()?;
        Ok(link)
    })
}

/// Removes what this or an earlier run left.
pub(super) fn remove() -> Vec<String> {
    let mut left = network::end_processes(PREFIX);
    left.extend(network::remove(PREFIX).into_iter().map(|name| format!("network namespace {name}")));
    left
}
