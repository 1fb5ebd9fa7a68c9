//! What Warren must leave alone: everything that is not TCP, and every pod that is not in the mesh.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use warren_test_support::client::{assert_echo, finish_exchange, is_reset, prepare};
use warren_test_support::lab::Family;
use warren_test_support::{Capture, NetNs, Server};

use crate::fixture::{Pair, any};

/// A UDP server on a thread; stops when dropped.
struct Datagrams {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Datagrams {
    fn start(ns: &NetNs, at: SocketAddr, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let socket = ns.run(|| UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !until.load(Ordering::Acquire) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&answer(&buffer[..length]), from);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn client(ns: &NetNs, family: SocketAddr) -> UdpSocket {
    let any = if family.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = ns.run(|| UdpSocket::bind(any)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

#[test]
fn udp_connected_and_unconnected() {
    let pair = Pair::start();
    let _server = Datagrams::start(&pair.server.ns, any(5353), |datagram| datagram.to_ascii_uppercase());
    let capture = Capture::start(pair.lab.node(0));
    for to in [pair.server.at(5353), pair.server.at6(5353)] {
        let mut buffer = [0; 64];
        let socket = client(&pair.client.ns, to);
        pair.client.ns.run(|| socket.connect(to)).unwrap();
        socket.send(b"connected").unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 9, "{to}");
        assert_eq!(&buffer[..9], b"CONNECTED");

        let socket = client(&pair.client.ns, to);
        socket.send_to(b"unconnected", to).unwrap();
        assert_eq!(socket.recv_from(&mut buffer).unwrap(), (11, to));
        assert_eq!(&buffer[..11], b"UNCONNECTED");
    }
    capture.stop().assert_present(b"UNCONNECTED");
}

/// A name server that knows one name: enough for the C library's resolver.
fn name_server(query: &[u8]) -> Vec<u8> {
    let question_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let is_a = query[question_end - 4..question_end - 2] == [0, 1];
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    reply.extend(&query[12..question_end]);
    if is_a {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    }
    reply
}

#[test]
fn the_resolver_of_the_c_library_gets_its_answer() {
    let pair = Pair::start();
    let _server = Datagrams::start(&pair.server.ns, any(53), name_server);
    let dir = format!("/etc/netns/{}", pair.client.ns.name());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(format!("{dir}/resolv.conf"), format!("nameserver {}\noptions timeout:3\n", pair.server.v4()))
        .unwrap();
    let found = Command::new("ip")
        .args(["netns", "exec", pair.client.ns.name(), "getent", "ahostsv4", "shop.test"])
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let text = String::from_utf8_lossy(&found.stdout);
    assert!(text.contains("192.0.2.77"), "{}", warren_test_support::command::text(&found));
}

#[test]
fn ping_and_sctp() {
    let pair = Pair::start();
    for ip in [pair.server.v4(), pair.server.v6()] {
        let text = pair.client.ns.check("ping", &["-c", "1", "-W", "3", &ip.to_string()]);
        assert!(text.contains("1 received"), "{text}");
    }
    let sctp = |ns: &NetNs| ns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(132))));
    let server = match sctp(&pair.server.ns) {
        Ok(server) => server,
        Err(e) => return println!("skipped: this kernel has no SCTP ({e})"),
    };
    server.bind(&SocketAddr::from(([0, 0, 0, 0], 9999)).into()).unwrap();
    server.listen(1).unwrap();
    let client = sctp(&pair.client.ns).unwrap();
    client.connect_timeout(&pair.server.at(9999).into(), Duration::from_secs(5)).unwrap();
    let (_accepted, peer) = server.accept().unwrap();
    assert_eq!(peer.as_socket().unwrap().ip(), pair.client.v4());
}

#[test]
fn pods_outside_the_mesh_and_addresses_outside_the_world() {
    let mut strangers = Vec::new();
    let pair = Pair::with(&[], |lab| {
        strangers.push(lab.stranger(0, "one"));
        strangers.push(lab.stranger(1, "two"));
    });
    let [one, two] = &strangers[..] else { unreachable!("two strangers") };
    let echo = Server::echo(&two.ns, any(8080));
    let before = one.ns.check("ip", &["rule"]);
    let capture = Capture::start(pair.lab.node(0));
    assert_echo(&one.ns, two.at(8080), b"STRANGER-4");
    assert_echo(&one.ns, two.at6(8080), b"STRANGER-6");
    assert_echo(&pair.client.ns, two.at(8080), b"OUTWARD-4");
    assert_echo(&pair.client.ns, two.at6(8080), b"OUTWARD-6");
    let packets = capture.stop();
    for text in ["STRANGER-4", "STRANGER-6", "OUTWARD-4", "OUTWARD-6"] {
        packets.assert_present(text.as_bytes());
    }
    assert_eq!(echo.peer_ips(), [one.v4(), one.v6(), pair.client.v4(), pair.client.v6()]);
    assert_eq!(before, one.ns.check("ip", &["rule"]));
    assert!(!before.contains("fwmark"), "a stranger's rules are the kernel's own: {before}");
}

#[test]
fn a_known_pod_outside_the_mesh_is_reached_in_plaintext_on_purpose() {
    let mut legacy = None;
    let pair = Pair::with(&[], |lab| {
        legacy = Some(lab.pod_of(1, "legacy", Family::Dual, false));
        lab.manifest.set_service("old", "legacy", &["10.96.0.30".parse().unwrap()], &[(80, 8080)]);
    });
    let legacy = legacy.unwrap();
    let echo = Server::echo(&legacy.ns, any(8080));
    let capture = Capture::start(pair.lab.node(0));
    assert_echo(&pair.client.ns, legacy.at(8080), b"PLAIN-4");
    assert_echo(&pair.client.ns, legacy.at6(8080), b"PLAIN-6");
    assert_echo(&pair.client.ns, "10.96.0.30:80".parse().unwrap(), b"PLAIN-vip");
    capture.stop().assert_present(b"PLAIN-vip");
    assert_eq!(echo.peer_ips(), [pair.client.v4(), pair.client.v6(), pair.client.v4()]);
    let event = pair.near.wait_audit("it is said to be plaintext", |event| event["route"] == "plain");
    assert_eq!((&event["mtls"], &event["destination"]["pod"]), (&false.into(), &"legacy".into()));
    let refused = pair.client.ns.run(|| std::net::TcpStream::connect_timeout(&legacy.at(9), Duration::from_secs(5)));
    let refused = refused.and_then(|stream| finish_exchange(prepare(stream)?, b"x"));
    assert!(refused.is_err_and(|error| is_reset(&error)), "nothing listens there");
}
