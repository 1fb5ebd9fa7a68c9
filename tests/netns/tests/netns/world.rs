//! The simulated world itself, without an agent: what the other tests take for granted.

use std::process::Command;

use warren_test_support::client::{assert_echo, exchange};
use warren_test_support::lab::Family;
use warren_test_support::{Capture, Lab, Server};

#[test]
fn pods_on_two_nodes_reach_each_other_and_the_capture_sees_it() {
    let mut lab = Lab::new(2);
    let (a, b) = (lab.pod(0, "a"), lab.pod(1, "b"));
    let echo = Server::echo(&b.ns, "[::]:8080".parse().unwrap());
    let capture = Capture::start(lab.node(0));
    assert_echo(&a.ns, b.at(8080), b"CANARY-IN-CLEAR-4");
    assert_echo(&a.ns, b.at6(8080), b"CANARY-IN-CLEAR-6");
    let packets = capture.stop();
    packets.assert_present(b"CANARY-IN-CLEAR-4");
    packets.assert_present(b"CANARY-IN-CLEAR-6");
    assert!(!packets.syns_to(8080).is_empty());
    assert_eq!(echo.peer_ips(), [a.v4(), a.v6()]);
}

#[test]
#[should_panic(expected = "TCP outside a tunnel")]
fn a_capture_of_plaintext_is_not_taken_for_tls() {
    let mut lab = Lab::new(1);
    let (a, b) = (lab.pod(0, "a"), lab.pod(0, "b"));
    let _echo = Server::echo(&b.ns, b.at(8080));
    let capture = Capture::start(lab.node(0));
    assert_echo(&a.ns, b.at(8080), b"text");
    capture.stop().assert_only_tls();
}

#[test]
#[should_panic(expected = "no TLS record")]
fn plaintext_to_the_tunnel_port_is_not_taken_for_tls() {
    let mut lab = Lab::new(1);
    let (a, b) = (lab.pod(0, "a"), lab.pod(0, "b"));
    let _echo = Server::echo(&b.ns, b.at(15008));
    let capture = Capture::start(lab.node(0));
    assert_echo(&a.ns, b.at(15008), b"text that is no record");
    capture.stop().assert_only_tls();
}

#[test]
fn families_strangers_and_namespaces_are_as_asked() {
    let mut lab = Lab::new(1);
    let four = lab.pod_of(0, "four", Family::V4, true);
    let six = lab.pod_of(0, "six", Family::V6, true);
    let stranger = lab.stranger(0, "stranger");
    let _echo4 = Server::echo(&four.ns, four.at(80));
    let _echo6 = Server::echo(&six.ns, six.at(80));
    assert_echo(&stranger.ns, four.at(80), b"4");
    assert_echo(&stranger.ns, six.at(80), b"6");
    assert!(exchange(&stranger.ns, four.at(81), b"").is_err(), "nothing listens there");
    lab.manifest.write();
    let text = std::fs::read_to_string(lab.manifest.path()).unwrap();
    assert!(text.contains("name: four") && text.contains("name: six") && !text.contains("stranger"));
}

#[test]
fn a_recreated_pod_is_another_namespace_at_the_same_path() {
    let mut lab = Lab::new(1);
    let old = lab.pod(0, "a");
    let inode =
        || std::fs::metadata(format!("/run/netns/{}-a", lab.id())).map(|m| std::os::unix::fs::MetadataExt::ino(&m));
    let (ip, before) = (old.v4(), inode().unwrap());
    let (link, id) = (old.host_link.clone(), lab.id().to_owned());
    let new = lab.recreate(old);
    let after =
        std::fs::metadata(format!("/run/netns/{id}-a")).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).unwrap();
    assert_ne!(before, after);
    assert_eq!(new.v4(), ip);
    assert!(!lab.has_link(0, &link), "the old namespace died");
}

#[test]
fn everything_is_removed_with_the_lab() {
    let (id, dir) = {
        let mut lab = Lab::new(2);
        let _pod = lab.pod(0, "a");
        (lab.id().to_owned(), lab.dir().to_owned())
    };
    assert!(!dir.exists());
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&left.stdout).contains(&id));
}
