//! The agent is away: for a short time connections wait, then they are refused, and never do they leave in clear.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use warren_ebpf_abi::ABI_VERSION;

use super::bed::{Beat, Bed, PEER4, PEER6, accept, assert_connected, captured, outbound};
use crate::capture::NodeCapture;

#[test]
fn connections_wait_for_the_next_agent() {
    let bed = Bed::new();
    // Everything that a killed process loses.
    drop(bed.node());
    for target in [format!("{PEER4}:80"), format!("[{PEER6}]:80")] {
        let started = Instant::now();
        let target: SocketAddr = target.parse().unwrap();
        let waiting = std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| bed.pod.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5))).unwrap());
            std::thread::sleep(Duration::from_millis(300));
            assert!(!waiting.is_finished(), "it waits from the first SYN on");
            let mut capture = NodeCapture::open(bed.config()).unwrap();
            capture.set_captured(&captured()).unwrap();
            let _beating = Beat::start(&capture);
            let pod = capture.enrol(&bed.spec()).unwrap();
            assert!(pod.adopted);
            let (mut server, _) = accept(&outbound(&pod.listeners)).expect("the SYN was sent again");
            let mut client = waiting.join().unwrap().unwrap();
            assert_connected(&mut client, &mut server);
            started.elapsed()
        });
        assert!(waiting < Duration::from_secs(3), "{waiting:?}");
    }
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn connections_are_refused_when_the_agent_is_away_for_too_long() {
    let bed = Bed::new();
    drop(bed.node());
    let target: SocketAddr = format!("{PEER4}:80").parse().unwrap();
    let connect = || bed.pod.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(10))).unwrap();
    let started = Instant::now();
    assert_eq!(connect().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let waited = started.elapsed();
    assert!(waited > Duration::from_secs(2), "it waited first: {waited:?}");
    let started = Instant::now();
    assert_eq!(connect().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < Duration::from_millis(200), "then it is refused at once");
    let six: SocketAddr = format!("[{PEER6}]:80").parse().unwrap();
    let six = bed.pod.enter(|| TcpStream::connect_timeout(&six, Duration::from_secs(10))).unwrap();
    assert_eq!(six.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn a_pod_whose_pins_were_removed_is_enrolled_anew() {
    let bed = Bed::new();
    drop(bed.node());
    std::fs::remove_dir_all(format!("/sys/fs/bpf/warren/{}", bed.name)).unwrap();
    let mut capture = NodeCapture::open(bed.config()).unwrap();
    capture.set_captured(&captured()).unwrap();
    let pod = capture.enrol(&bed.spec()).unwrap();
    assert!(!pod.adopted);
    bed.connect(&format!("{PEER4}:80")).unwrap();
    accept(&outbound(&pod.listeners)).expect("captured");
}

/// Makes what stands look as if an agent of the contract's version before had left it.
fn age(bed: &Bed) {
    let pins = format!("/sys/fs/bpf/warren/{}", bed.name);
    std::fs::rename(format!("{pins}/v{ABI_VERSION}"), format!("{pins}/v{}", ABI_VERSION - 1)).unwrap();
}

#[test]
fn an_agent_of_another_contract_version_takes_over_without_a_gap() {
    let bed = Bed::new();
    drop(bed.node());
    age(&bed);
    let target: SocketAddr = format!("{PEER4}:80").parse().unwrap();
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| bed.pod.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5))).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        // As long as the pod is not in, its earlier agent's programs stay, and what they hold stays held.
        let mut capture = NodeCapture::open(bed.config()).unwrap();
        capture.set_captured(&captured()).unwrap();
        let _beating = Beat::start(&capture);
        capture.settle(|_| true).unwrap();
        assert!(bed.pinned(ABI_VERSION - 1));
        assert!(!waiting.is_finished());
        let pod = capture.enrol(&bed.spec()).unwrap();
        assert!(pod.adopted);
        let (mut server, _) = accept(&outbound(&pod.listeners)).expect("the SYN was sent again");
        assert_connected(&mut waiting.join().unwrap().unwrap(), &mut server);
        capture.settle(|_| true).unwrap();
        assert!(!bed.pinned(ABI_VERSION - 1));
        assert_eq!(capture.audit(), []);
    });
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn an_agent_of_another_contract_version_takes_over_after_any_time() {
    let bed = Bed::new();
    drop(bed.node());
    age(&bed);
    // The earlier agent's programs refuse connections by now, the self-test's among them.
    std::thread::sleep(bed.config().away_wait);
    let mut capture = NodeCapture::open(bed.config()).unwrap();
    capture.set_captured(&captured()).unwrap();
    let pod = capture.enrol(&bed.spec()).unwrap();
    bed.connect(&format!("{PEER4}:80")).unwrap();
    accept(&outbound(&pod.listeners)).expect("captured");
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn a_pod_that_is_not_wanted_any_more_is_let_go_whichever_version_had_it() {
    let bed = Bed::new();
    drop(bed.node());
    age(&bed);
    let mut capture = NodeCapture::open(bed.config()).unwrap();
    capture.settle(|_| false).unwrap();
    assert!(!bed.pinned(ABI_VERSION - 1));
    let plain = bed.peer.enter(|| std::net::TcpListener::bind((PEER4, 80))).unwrap().unwrap();
    bed.connect(&format!("{PEER4}:80")).expect("not captured any more");
    drop(plain);
}
