use std::os::fd::AsFd;
use std::time::Instant;

use super::bed::{Bed, PEER4, PEER6, POD4, POD6, accept, addr, assert_connected, outbound};
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
