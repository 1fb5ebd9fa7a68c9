//! What is left in the kernel after failures, withdrawal and cleanup: nothing.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use warren_ebpf_abi::ABI_VERSION;

use super::bed::{Bed, PEER4, accept, addr, captured, ip, outbound};
use crate::capture::NodeCapture;
use crate::capture::error::EnrolStep;
use crate::sys::netlink::IpFamily;

/// Everything in a pod's namespace, and in the kernel, that capture changes.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    rules: Vec<String>,
    routes: Vec<String>,
    settings: String,
    classifiers: String,
    sockets: String,
    programs: BTreeSet<String>,
}

impl Traces {
    fn of(bed: &Bed) -> Self {
        let lines = |command: &str| bed.shell(command).unwrap().lines().map(str::to_owned).collect();
        Self {
            rules: lines("ip rule; ip -6 rule"),
            routes: lines("ip route show table all | grep -v cache; ip -6 route show table all | grep -v -e cache -e fe80 -e expires"),
            settings: bed.shell("cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect /proc/sys/net/ipv6/fwmark_reflect").unwrap(),
            classifiers: bed.shell("tc qdisc show dev lo; tc filter show dev lo egress").unwrap(),
            sockets: bed.shell("cat /proc/net/tcp /proc/net/tcp6 | grep ' 0A ' || true").unwrap(),
            programs: bed.attached(),
        }
    }

    /// Waits until the kernel has let go of what was unpinned.
    fn settled(bed: &Bed, wanted: &Self) -> Self {
        for _ in 0..40 {
            let now = Self::of(bed);
            if now == *wanted {
                return now;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self::of(bed)
    }
}

impl Bed {
    /// Programs attached to the pod's namespace and its `lo`.
    fn attached(&self) -> BTreeSet<String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &format!("{}-pod", self.name), "bpftool", "net", "show"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.contains("warren"))
            .map(str::to_owned)
            .collect()
    }
}

#[test]
fn cleanup_after_a_kill_leaves_nothing() {
    let bed = Bed::new();
    let before = Traces::of(&bed);
    let node = bed.node();
    assert_ne!(Traces::of(&bed), before);
    assert!(bed.pinned(ABI_VERSION));
    drop(node);
    let report = bed.cleanup();
    assert_eq!(report.left, Vec::<String>::new());
    assert!(!report.removed.is_empty());
    assert_eq!(Traces::settled(&bed, &before), before);
    assert!(!std::path::Path::new("/sys/fs/bpf/warren").join(&bed.name).exists());
    assert!(!bed.config().run_dir.exists());
    // Again, with nothing there.
    assert_eq!(bed.cleanup().removed, Vec::<String>::new());
    let plain = bed.peer.enter(|| std::net::TcpListener::bind((PEER4, 80))).unwrap().unwrap();
    bed.connect(&format!("{PEER4}:80")).expect("not captured any more");
    drop(plain);
}

#[test]
fn a_withdrawn_pod_keeps_its_open_connections_until_the_end() {
    let bed = Bed::new();
    let before = Traces::of(&bed);
    let mut node = bed.node();
    let uid = bed.spec().uid;
    let mut client = bed.connect(&format!("{PEER4}:80")).unwrap();
    let (mut server, _) = accept(&outbound(&node.pod.listeners)).unwrap();
    node.capture.withdraw(&uid).unwrap();
    super::bed::assert_connected(&mut client, &mut server);
    let plain = bed.peer.enter(|| std::net::TcpListener::bind((PEER4, 80))).unwrap().unwrap();
    bed.connect(&format!("{PEER4}:80")).expect("new ones are not captured");
    drop((client, server, plain));
    let weak = std::sync::Arc::downgrade(&node.pod.netns);
    drop(node.pod);
    node.capture.finish_withdraw(&uid).unwrap();
    assert!(weak.upgrade().is_none(), "nobody holds the namespace");
    assert_eq!(Traces::settled(&bed, &before), before);
    assert!(node.capture.finish_withdraw(&uid).is_err());
}

#[test]
fn a_failed_enrolment_leaves_nothing_and_names_its_step() {
    let bed = Bed::new();
    let mut capture = NodeCapture::open(bed.config()).unwrap();
    let mut spec = bed.spec();
    spec.ips.push(addr("10.87.0.200"));
    let before = Traces::of(&bed);
    let error = capture.enrol(&spec).unwrap_err();
    assert_eq!(error.step, EnrolStep::Addresses);
    assert!(error.is_transient());
    assert_eq!(Traces::of(&bed), before);

    // Without lo nothing comes back: only a connection shows it.
    ip(&format!("-n {}-pod link set lo down", bed.name));
    let before = Traces::of(&bed);
    let error = capture.enrol(&bed.spec()).unwrap_err();
    eprintln!("{error}");
    assert_eq!(Traces::settled(&bed, &before), before);
    ip(&format!("-n {}-pod link set lo up", bed.name));
    capture.enrol(&bed.spec()).unwrap();
    assert_eq!(capture.enrol(&bed.spec()).unwrap_err().step, EnrolStep::OpenNetns, "twice");

    let mut missing = bed.spec();
    missing.uid = "other".into();
    missing.netns = "/run/netns/there-is-none".into();
    assert_eq!(capture.enrol(&missing).unwrap_err().step, EnrolStep::OpenNetns);
}

#[test]
fn the_auditor_repairs_what_was_taken_away() {
    let bed = Bed::new();
    let mut node = bed.node();
    assert_eq!(node.capture.audit(), []);
    let name = format!("{}-pod", bed.name);
    for command in [
        format!("-n {name} rule del pref 1"),
        format!("-n {name} -6 rule del pref 2"),
        format!("-n {name} rule del pref 3"),
        format!("-n {name} rule add pref 0 table local"),
        format!("-n {name} route flush table 15577"),
        format!("-n {name} -6 route add default dev eth0 table 15577 metric 1"),
    ] {
        ip(&command);
        let found = node.capture.audit();
        assert!(!found.is_empty() && found.iter().all(|finding| finding.repaired), "{command}: {found:?}");
        eprintln!("{command}: {found:?}");
        assert_eq!(node.capture.audit(), [], "{command}");
    }
    bed.shell("echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept").unwrap();
    assert_eq!(node.capture.audit().len(), 1);
    for gone in ["tc filter del dev lo egress", "tc qdisc del dev lo clsact"] {
        bed.shell(gone).unwrap();
        let found = node.capture.audit();
        assert!(found.len() == 1 && found[0].repaired && found[0].what.contains("warren_gate"), "{gone}: {found:?}");
        assert_eq!(node.capture.audit(), [], "{gone}");
    }
    for link in ["links/warren_connect4", &format!("pods/{}/warren_lookup", node.pod.netns.cookie())] {
        std::fs::remove_file(format!("/sys/fs/bpf/warren/{}/v{ABI_VERSION}/{link}", bed.name)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let found = node.capture.audit();
        assert!(!found.is_empty() && found.iter().all(|finding| finding.repaired), "{link}: {found:?}");
        assert_eq!(node.capture.audit(), [], "{link}");
    }
    bed.connect(&format!("{PEER4}:80")).unwrap();
    accept(&outbound(&node.pod.listeners)).expect("still captured");
    node.pod.listeners.clear();
    assert!(node.capture.audit().iter().any(|finding| finding.what.contains("listener")));
}

#[test]
fn classifiers_of_others_stay() {
    const ADD: &str = "tc filter add dev lo ingress prio 1 handle 1 bpf da bytecode '1,6 0 0 0'";
    let bed = Bed::new();
    bed.shell(&format!("tc qdisc add dev lo clsact && {ADD}")).unwrap();
    let theirs = || bed.shell("tc qdisc show dev lo; tc filter show dev lo ingress").unwrap();
    let before = theirs();
    let mut node = bed.node();
    node.capture.forget(&bed.spec().uid).unwrap();
    assert_eq!(theirs(), before);
    drop(node);
    bed.cleanup();
    assert_eq!(theirs(), before);
    // Put there after ours, by somebody who relied on what we had put there.
    bed.shell("tc qdisc del dev lo clsact").unwrap();
    let mut node = bed.node();
    bed.shell(ADD).unwrap();
    node.capture.forget(&bed.spec().uid).unwrap();
    assert_eq!(theirs(), before);
    assert_eq!(bed.shell("tc filter show dev lo egress").unwrap(), "");
}

#[test]
fn two_nodes_do_not_disturb_each_other() {
    let (one, two) = (Bed::new(), Bed::new());
    let (first, second) = (one.node(), two.node());
    for (bed, node) in [(&one, &first), (&two, &second)] {
        bed.connect(&format!("{PEER4}:80")).unwrap();
        accept(&outbound(&node.pod.listeners)).expect("its own");
    }
    assert_eq!(first.capture.counters().read().unwrap().captured, second.capture.counters().read().unwrap().captured);
    drop(first);
    one.cleanup();
    two.connect(&format!("{PEER4}:81")).unwrap();
    accept(&outbound(&second.pod.listeners)).expect("still captured");
}

#[test]
fn the_state_is_held_by_one_agent() {
    let bed = Bed::new();
    let _node = bed.node();
    assert!(NodeCapture::open(bed.config()).is_err());
}

#[test]
fn what_is_captured_changes_by_difference() {
    let bed = Bed::new();
    let mut node = bed.node();
    assert_eq!(
        node.capture.set_captured(&captured()).unwrap(),
        crate::capture::captured::CaptureDiff { added: 0, removed: 0 }
    );
    let mut less = captured();
    Arc::make_mut(&mut less.ranges).remove(&"10.87.0.0/24".parse().unwrap());
    assert_eq!(
        node.capture.set_captured(&less).unwrap(),
        crate::capture::captured::CaptureDiff { added: 0, removed: 1 }
    );
    let plain = bed.peer.enter(|| std::net::TcpListener::bind((PEER4, 80))).unwrap().unwrap();
    bed.connect(&format!("{PEER4}:80")).expect("goes out");
    plain.accept().unwrap();
    assert_eq!(node.pod.listeners[0].outbound.len(), IpFamily::ALL.len());
}
