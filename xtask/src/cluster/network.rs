//! The network of the nodes: a bridge in the control plane's namespace, each
//! node a port of it, and a route to each node's pods everywhere else.

use anyhow::Result;

use super::names::{API_SERVER, API_SERVER_V6, ClusterName, Member, Node};
use crate::netlab::netns_path;
use crate::netlab::network::{add_namespaces, delete, ip};

const BRIDGE: &str = "nodes";
/// A node's end of its cable.
const UPLINK: &str = "eth0";

/// The control plane's namespace with the bridge in it.
pub(crate) fn create(cluster: &ClusterName) -> Result<()> {
    let name = cluster.of(Member::ControlPlane);
    add_namespaces([&name].into_iter())?;
    ip(
        Some(&name),
        &format!(
            "link set lo up\nlink add {BRIDGE} type bridge\nlink set {BRIDGE} up\n\
             address add {API_SERVER}/24 dev {BRIDGE}\naddress add {API_SERVER_V6}/64 dev {BRIDGE} nodad\n"
        ),
    )
}

/// A node's namespace, joined to the bridge; `others` are those whose pods it
/// reaches, and which reach its pods.
pub(crate) fn join(cluster: &ClusterName, node: Node, others: &[Node]) -> Result<()> {
    let (centre, own) = (cluster.of(Member::ControlPlane), cluster.of(Member::Node(node)));
    add_namespaces([&own].into_iter())?;
    ip(
        Some(&centre),
        &format!(
            "link add {node} type veth peer name {UPLINK} netns {own}\nlink set {node} master {BRIDGE}\nlink set {node} up\n"
        ),
    )?;
    let [v4, v6] = node.addresses();
    let mut lines = format!(
        "link set lo up\nlink set {UPLINK} up\naddress add {v4}/24 dev {UPLINK}\naddress add {v6}/64 dev {UPLINK} nodad\n\
         -4 route add default via {API_SERVER}\n-6 route add default via {API_SERVER_V6}\n"
    );
    for other in others.iter().filter(|other| **other != node) {
        lines += &routes_to(*other);
    }
    ip(Some(&own), &lines)?;
    ip(Some(&centre), &routes_to(node))?;
    others
        .iter()
        .filter(|other| **other != node)
        .map(|other| cluster.of(Member::Node(*other)))
        // One that is switched off learns its routes when it comes back.
        .filter(|name| netns_path(name).exists())
        .try_for_each(|name| ip(Some(&name), &routes_to(node)))
}

fn routes_to(node: Node) -> String {
    let pairs = node.pod_networks().into_iter().zip(node.addresses());
    let lines = pairs.zip(["-4", "-6"]).map(|((network, via), family)| {
        // Replaced rather than added: a node that comes back finds the others' routes to it.
        format!("{family} route replace {network} via {via}\n")
    });
    lines.collect()
}

/// Takes a node's namespace away. The cable is unplugged first: the kernel
/// removes a namespace at its leisure, and the port's name is needed again.
pub(crate) fn leave(cluster: &ClusterName, node: Node) {
    let _ = ip(Some(&cluster.of(Member::ControlPlane)), &format!("link delete {node}\n"));
    delete(&cluster.of(Member::Node(node)));
}

/// Pulls a node's cable, or puts it back.
pub(crate) fn set_connected(cluster: &ClusterName, node: Node, connected: bool) -> Result<()> {
    let word = if connected { "up" } else { "down" };
    ip(Some(&cluster.of(Member::ControlPlane)), &format!("link set {node} {word}\n"))
}
