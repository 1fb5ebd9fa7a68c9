//! What an agent leaves in the kernel and in a pod, looked at from outside.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use warren_test_support::NetNs;

/// Ids of what is pinned for a node; `kind` is `link` or `map`. bpftool goes through the ids of the whole machine and
/// gives up if one vanishes before it is looked at; then it is asked again.
#[track_caller]
pub(crate) fn pinned(kind: &str, node: &str) -> Vec<u64> {
    let all: Value = warren_test_support::eventually("bpftool lists them all", Duration::from_secs(5), || {
        let shown = warren_test_support::command::output(Command::new("bpftool").args(["-j", "-f", kind, "show"]));
        shown.status.success().then(|| serde_json::from_slice(&shown.stdout).expect("bpftool prints JSON"))
    });
    let prefix = format!("/sys/fs/bpf/warren/{node}/");
    let is_ours = |pin: &Value| pin.as_str().is_some_and(|path| path.starts_with(&prefix));
    let ours = all.as_array().expect("a list").iter();
    let ours = ours.filter(|entry| entry["pinned"].as_array().is_some_and(|pins| pins.iter().any(is_ours)));
    ours.filter_map(|entry| entry["id"].as_u64()).collect()
}

/// Ids of the links that a node's agent has pinned, once there are no more to come: programs on pods' links are attached
/// some time after the pods were enrolled.
#[track_caller]
pub(crate) fn pinned_links(node: &str) -> Vec<u64> {
    warren_test_support::eventually("the agent's links are all there", Duration::from_secs(10), || {
        let before = pinned("link", node);
        std::thread::sleep(Duration::from_millis(600));
        (pinned("link", node) == before).then_some(before)
    })
}

/// Whether the kernel still has a link or map of that id.
pub(crate) fn exists(kind: &str, id: u64) -> bool {
    let mut command = std::process::Command::new("bpftool");
    command.args([kind, "show", "id", &id.to_string()]);
    warren_test_support::command::output(&mut command).status.success()
}

/// Everything in a pod's namespace that an agent may change.
pub(crate) fn traces(ns: &NetNs) -> String {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        for what in [&["rule"][..], &["route", "show", "table", "all"], &["addr"]] {
            all += &ns.check("ip", &[&[family], what].concat());
        }
    }
    all += &ns.check("tc", &["qdisc"]);
    all += &ns.check("tc", &["filter", "show", "dev", "lo", "ingress"]);
    all += &ns.check("tc", &["filter", "show", "dev", "lo", "egress"]);
    for key in
        ["tcp_fwmark_accept", "fwmark_reflect", "conf/lo/route_localnet", "conf/lo/rp_filter", "conf/all/rp_filter"]
    {
        all += &format!("{key} {}", ns.read(&format!("/proc/sys/net/ipv4/{key}")));
    }
    all + &ns.check("ss", &["-Hltn"])
}

/// How many pods a status calls enrolled.
pub(crate) fn pods_enrolled(status: &Value) -> usize {
    status["pods"].as_array().map_or(0, |pods| pods.iter().filter(|pod| pod["state"] == "enrolled").count())
}
