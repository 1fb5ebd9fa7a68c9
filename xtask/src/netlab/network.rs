//! Two nodes joined by a link, pods joined to their node, every address
//! routed. Nothing outside the namespaces changes.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::netns_path;
use super::process::{end_strangers, inside};
use crate::process;

/// A node's end of the link between the nodes.
pub(crate) const LINK: &str = "link0";
/// The pods' way out: an address that every node answers for on every pod's link.
const GATEWAY: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// A node to be built.
#[derive(Debug, Clone)]
pub(crate) struct NodeNet {
    /// The name of its namespace.
    pub(crate) netns: String,
    /// Its addresses on the link.
    pub(crate) addresses: Vec<IpAddr>,
    /// The networks its pods' addresses come from, in the families of the addresses.
    pub(crate) pod_networks: Vec<String>,
}

/// A pod to be built.
#[derive(Debug, Clone)]
pub(crate) struct PodNet {
    /// The name of its namespace.
    pub(crate) netns: String,
    /// Its node's namespace.
    pub(crate) node: String,
    /// The node's end of its link.
    pub(crate) host_interface: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Makes the namespaces, joins the nodes and adds the pods.
pub(crate) fn build(nodes: &[NodeNet; 2], pods: &[PodNet]) -> Result<()> {
    build_with(nodes, pods, || {
        let [a, b] = nodes;
        ip(None, &format!("link add {LINK} netns {} type veth peer name {LINK} netns {}\n", a.netns, b.netns))
    })
}

/// The same with a link of another kind: whatever makes an interface [`LINK`] in both nodes.
pub(crate) fn build_with<T>(nodes: &[NodeNet; 2], pods: &[PodNet], link: impl FnOnce() -> Result<T>) -> Result<T> {
    add_namespaces(nodes.iter().map(|node| &node.netns).chain(pods.iter().map(|pod| &pod.netns)))?;
    let link = link()?;
    let [a, b] = nodes;
    configure_node(a, b)?;
    configure_node(b, a)?;
    pods.iter().try_for_each(add_pod)?;
    Ok(link)
}

/// Makes empty namespaces.
pub(crate) fn add_namespaces<'a>(names: impl Iterator<Item = &'a String>) -> Result<()> {
    let lines: String = names.map(|name| format!("netns add {name}\n")).collect();
    ip(None, &lines)
}

/// Addresses and routes of a node whose link to the other one is there.
fn configure_node(node: &NodeNet, peer: &NodeNet) -> Result<()> {
    forward_packets(&netns_path(&node.netns))?;
    let mut lines = format!("link set lo up\nlink set {LINK} up\n");
    for own in &node.addresses {
        let length = if own.is_ipv4() { 24 } else { 64 };
        lines += &format!("address add {own}/{length} dev {LINK}{}\n", nodad(own));
    }
    for (network, via) in peer.pod_networks.iter().zip(&peer.addresses) {
        lines += &format!("{} route add {network} via {via}\n", family(via));
    }
    ip(Some(&node.netns), &lines)
}

/// Joins a pod's namespace to its node.
pub(crate) fn add_pod(pod: &PodNet) -> Result<()> {
    let (host, netns) = (&pod.host_interface, &pod.netns);
    let mut at_node = format!("link add {host} type veth peer name eth0 netns {netns}\nlink set {host} up\n");
    at_node += &format!("address add {}/32 dev {host}\naddress add {}/64 dev {host} nodad\n", GATEWAY[0], GATEWAY[1]);
    let mut at_pod = "link set lo up\nlink set eth0 up\n".to_owned();
    for address in &pod.addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        at_node += &format!("{} route add {address}/{length} dev {host}\n", family(address));
        at_pod += &format!("address add {address}/{length} dev eth0{}\n", nodad(address));
    }
    at_pod += &format!(
        "route add default via {} dev eth0 onlink\n-6 route add default via {} dev eth0\n",
        GATEWAY[0], GATEWAY[1]
    );
    ip(Some(&pod.node), &at_node)?;
    ip(Some(netns), &at_pod)
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv6() { "-6" } else { "-4" }
}

/// Nobody else has these addresses; waiting a second for a claim is no use.
fn nodad(address: &IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn forward_packets(netns: &Path) -> Result<()> {
    let script = "echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
    process::output(inside(netns, "sh").args(["-c", script])).map(drop)
}

/// Runs a batch of `ip` lines inside a namespace. `ip -batch` takes no family
/// per line, so lines that start with -4 or -6 are sorted by it.
pub(crate) fn ip(netns: Option<&str>, lines: &str) -> Result<()> {
    for (flag, prefix) in [(None, ""), (Some("-4"), "-4 "), (Some("-6"), "-6 ")] {
        let chosen = |line: &&str| if prefix.is_empty() { !line.starts_with('-') } else { line.starts_with(prefix) };
        let batch: String = lines.lines().filter(chosen).map(|line| format!("{}\n", &line[prefix.len()..])).collect();
        if !batch.is_empty() {
            ip_batch(netns, flag, &batch)?;
        }
    }
    Ok(())
}

fn ip_batch(netns: Option<&str>, family: Option<&str>, batch: &str) -> Result<()> {
    let mut command = process::command("ip");
    command.args(netns.map(|name| ["-n", name]).into_iter().flatten()).args(family).args(["-batch", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip in {}: {}\n{batch}",
            netns.unwrap_or("this namespace"),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The namespaces that a lab's prefix marks, of this run or an earlier one.
pub(crate) fn existing(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(prefix)).collect()
}

/// Ends what still runs in a lab's namespaces; returns what goes on running.
pub(crate) fn end_processes(prefix: &str) -> Vec<String> {
    let find = || existing(prefix).iter().flat_map(|name| processes_in(name)).collect::<Vec<_>>();
    end_strangers(&find());
    find().into_iter().map(|pid| format!("process {pid}")).collect()
}

/// Removes a lab's namespaces; returns those that stay.
pub(crate) fn remove(prefix: &str) -> Vec<String> {
    thread::scope(|scope| {
        for name in existing(prefix) {
            scope.spawn(move || delete(&name));
        }
    });
    existing(prefix)
}

/// Removes one namespace; tells whether it was there.
pub(crate) fn delete(netns: &str) -> bool {
    process::succeeds(process::command("ip").args(["netns", "del", netns]))
}

fn processes_in(netns: &str) -> Vec<Pid> {
    let listed = process::output(process::command("ip").args(["netns", "pids", netns])).unwrap_or_default();
    listed.lines().filter_map(|line| line.trim().parse().ok()).map(Pid::from_raw).collect()
}

/// Whether a namespace has an interface of that name.
pub(crate) fn has_interface(netns: &str, interface: &str) -> bool {
    process::succeeds(process::command("ip").args(["-n", netns, "link", "show", "dev", interface]))
}
