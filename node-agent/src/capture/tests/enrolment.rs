use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use super::bed::{Bed, PEER4, PEER6, POD4, POD6, accept, addr, assert_connected, captured, ip, outbound};
use crate::capture::{CleanupConfig, NodeCapture, cleanup};
use crate::sys::socket::{bound_interface, netns_cookie};

#[test]
fn captured_connections_arrive_with_their_destination() {
    let bed = Bed::new();
    let started = Instant::now();
    let node = bed.node();
    eprintln!("open and enrol: {:?}", started.elapsed());
    for (target, from) in [
        (format!("{PEER4}:80"), POD4),
        (format!("[{PEER6}]:80"), POD6),
        (format!("[::ffff:{PEER4}]:81"), POD4),
        ("10.99.0.1:8080".into(), POD4),
    ] {
        let mut client = bed.connect(&target).unwrap();
        let (mut server, peer) = accept(&outbound(&node.pod.listeners)).expect("arrives");
        let expected: std::net::SocketAddr = target.parse().unwrap();
        assert_eq!(server.local_addr().unwrap().ip().to_canonical(), expected.ip().to_canonical());
        assert_eq!(server.local_addr().unwrap().port(), expected.port());
        assert_eq!(peer.ip(), addr(from));
        assert_eq!(netns_cookie(server.as_fd()).unwrap(), node.pod.netns.cookie());
        assert_eq!(bound_interface(client.as_fd()).unwrap(), 1);
        assert_connected(&mut client, &mut server);
    }
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn a_pod_without_ipv6_is_enrolled_and_captured() {
    for disabled in [false, true] {
        let bed = Bed::new();
        if disabled {
            bed.shell("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6").unwrap();
        }
        let mut capture = NodeCapture::open(bed.config()).unwrap();
        capture.set_captured(&captured()).unwrap();
        let mut spec = bed.spec();
        spec.ips.retain(IpAddr::is_ipv4);
        let pod = capture.enrol(&spec).unwrap();
        assert_eq!(capture.audit(), []);
        let families = if disabled { 1 } else { 2 };
        assert_eq!(pod.listeners[0].hbone.len(), families);
        let mut client = bed.connect(&format!("{PEER4}:80")).unwrap();
        assert_connected(&mut client, &mut accept(&outbound(&pod.listeners)).unwrap().0);
        assert!(disabled == bed.connect(&format!("[{PEER6}]:80")).is_err());
        assert_eq!(bed.tcp_seen_outside(), 0);
        capture.forget(&spec.uid).unwrap();
    }
}

#[test]
fn a_node_may_have_a_name_with_dots() {
    let bed = Bed::new();
    let mut config = bed.config();
    config.node = format!("{}.example.com", bed.name);
    let mut capture = NodeCapture::open(config.clone()).unwrap();
    capture.enrol(&bed.spec()).unwrap();
    drop(capture);
    let config = CleanupConfig { node: config.node, bpffs: config.bpffs, run_dir: config.run_dir };
    assert_eq!(cleanup(&config).unwrap().left, Vec::<String>::new());
}

#[test]
fn the_same_path_with_another_namespace_is_another_pod() {
    let bed = Bed::new();
    let mut node = bed.node();
    let spec = bed.spec();
    let first = node.pod.netns.cookie();
    node.capture.forget(&spec.uid).unwrap();
    let name = format!("{}-pod", bed.name);
    ip(&format!("netns del {name}"));
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    ip(&format!("-n {name} link add eth0 type veth peer name eth1"));
    ip(&format!("-n {name} addr add {POD4}/24 dev eth0"));
    ip(&format!("-n {name} addr add {POD6}/64 dev eth0 nodad"));
    ip(&format!("-n {name} link set eth0 up"));
    ip(&format!("-n {name} link set eth1 up"));
    let again = node.capture.enrol(&spec).unwrap();
    assert!(!again.adopted);
    assert_ne!(again.netns.cookie(), first);
}
