//! The lab's namespaces: two nodes joined by a link, pods joined to their
//! node, every address routed, in both families. Nothing outside them changes.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::lab::{LINK, NODES, Node, PODS, PREFIX, Pod};
use super::process::{end_strangers, inside};
use crate::process;

/// The pods' way out: an address that every node answers for on every pod's link.
const GATEWAY: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// Builds all namespaces and links.
pub(super) fn build() -> Result<()> {
    for name in names() {
        ip(None, &format!("netns add {name}\n"))?;
    }
    let [a, b] = NODES;
    ip(None, &format!("link add {LINK} netns {} type veth peer name {LINK} netns {}\n", a.name, b.name))?;
    for node in NODES {
        build_node(node)?;
    }
    for pod in PODS {
        build_pod(pod)?;
    }
    Ok(())
}

fn build_node(node: Node) -> Result<()> {
    forward_packets(&node.netns())?;
    let mut lines = format!("link set lo up\nlink set {LINK} up\n");
    let peer = node.peer();
    for (own, length) in node.addresses().iter().zip([24, 64]) {
        lines += &format!("address add {own}/{length} dev {LINK}{}\n", nodad(own));
    }
    for (network, via) in peer.pod_networks().iter().zip(peer.addresses()) {
        lines += &format!("{} route add {network} via {via}\n", family(&via));
    }
    ip(Some(node.name), &lines)
}

fn build_pod(pod: Pod) -> Result<()> {
    let (host, netns) = (pod.host_interface(), pod.netns_name());
    let mut at_node = format!("link add {host} type veth peer name eth0 netns {netns}\nlink set {host} up\n");
    at_node += &format!("address add {}/32 dev {host}\naddress add {}/64 dev {host} nodad\n", GATEWAY[0], GATEWAY[1]);
    let mut at_pod = "link set lo up\nlink set eth0 up\n".to_owned();
    for (address, length) in pod.addresses().iter().zip([32, 128]) {
        at_node += &format!("{} route add {address}/{length} dev {host}\n", family(address));
        at_pod += &format!("address add {address}/{length} dev eth0{}\n", nodad(address));
    }
    at_pod += &format!(
        "route add default via {} dev eth0 onlink\n-6 route add default via {} dev eth0\n",
        GATEWAY[0], GATEWAY[1]
    );
    ip(Some(pod.node.name), &at_node)?;
    ip(Some(&netns), &at_pod)
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
fn ip(netns: Option<&str>, lines: &str) -> Result<()> {
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

fn names() -> impl Iterator<Item = String> {
    NODES.into_iter().map(|node| node.name.to_owned()).chain(PODS.into_iter().map(Pod::netns_name))
}

/// The lab's namespaces that exist, of this run or an earlier one.
pub(super) fn existing() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(PREFIX)).collect()
}

/// Ends what still runs in the lab's namespaces; returns what goes on running.
pub(super) fn end_processes() -> Vec<String> {
    let find = || existing().iter().flat_map(|name| processes_in(name)).collect::<Vec<_>>();
    end_strangers(&find());
    find().into_iter().map(|pid| format!("process {pid}")).collect()
}

/// Removes the lab's namespaces; returns those that stay.
pub(super) fn remove() -> Vec<String> {
    thread::scope(|scope| {
        for name in existing() {
            scope.spawn(move || process::succeeds(process::command("ip").args(["netns", "del", &name])));
        }
    });
    existing()
}

fn processes_in(netns: &str) -> Vec<Pid> {
    let listed = process::output(process::command("ip").args(["netns", "pids", netns])).unwrap_or_default();
    listed.lines().filter_map(|line| line.trim().parse().ok()).map(Pid::from_raw).collect()
}
