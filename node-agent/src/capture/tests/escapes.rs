//! Ways out that were seen: none of them may lead a captured connection out in clear.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::bed::{Bed, OPEN4, PEER4, PEER6, POD4, accept, assert_connected, outbound};
use crate::sys::netlink::{Action, IpFamily, RouteSocket, Rule};
use crate::sys::socket::bound_interface;

const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --";

/// Answers one request, as the agent's side of a captured connection.
fn answer(listeners: &[&TcpListener]) -> Option<SocketAddr> {
    let (mut server, _) = accept(listeners)?;
    let destination = server.local_addr().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut request = [0; 1024];
    let _ = server.read(&mut request);
    let _ = server.write_all(b"HTTP/1.0 200 OK\r\n\r\ncaptured");
    Some(destination)
}

fn curl(bed: &Bed, node: &super::bed::Node, command: &str) -> (Option<SocketAddr>, Result<String, String>) {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bed.shell(command));
        let arrived = answer(&outbound(&node.pod.listeners));
        (arrived, running.join().unwrap())
    })
}

fn tcp(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

fn parse(target: &str) -> socket2::SockAddr {
    target.parse::<SocketAddr>().unwrap().into()
}

fn denied(result: std::io::Result<()>) {
    assert_eq!(result.expect_err("refused").raw_os_error(), Some(libc::EPERM));
}

fn disconnect(socket: &Socket) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: the address outlives the call and is as long as stated.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of::<libc::sockaddr>() as u32) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Runs something on a thread without capabilities, in the same namespace.
fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const VERSION_3: u32 = 0x2008_0522;
    let drop_all = || {
        let header = [VERSION_3, 0];
        let none = [0_u32; 6];
        // SAFETY: both arguments are what the call takes and outlive it; it changes this thread alone.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    std::thread::scope(|scope| {
        let run = move || {
            drop_all();
            work()
        };
        scope.spawn(run).join().unwrap()
    })
}

#[test]
fn binding_to_a_device_does_not_lead_out() {
    let bed = Bed::new();
    let node = bed.node();
    for host in [PEER4.to_owned(), format!("[{PEER6}]")] {
        let command = format!("curl -gsS --max-time 5 --interface if!eth0 http://{host}/");
        let (arrived, output) = curl(&bed, &node, &command);
        assert!(arrived.is_some(), "{command}: {output:?}");
        assert_eq!(output.as_deref(), Ok("captured"), "{command}");
        // The kernel lets only the privileged bind a second time, also when a hook does it for them.
        let error = bed.shell(&format!("{NOBODY} {command}")).expect_err("refused");
        assert!(error.contains("connect"), "{error}");
        assert!(node.capture.counters().read().unwrap().refused_error > 0);
    }
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn neither_mark_nor_device_of_a_captured_socket_can_be_changed() {
    let bed = Bed::new();
    let node = bed.node();
    // Nobody listens, the agent is alive: the SYN waits, which is when a change would lead the next one out.
    drop(node.pod.listeners);
    for target in [format!("{PEER4}:80"), format!("[{PEER6}]:80")] {
        let target = parse(&target);
        let socket = bed.pod.enter(|| tcp(target.domain())).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&target);
        denied(socket.set_mark(0));
        denied(socket.bind_device(Some(b"eth0")));
        denied(socket.bind_device(None));
        denied(socket.bind_device_by_index_v4(std::num::NonZeroU32::new(2)));
        socket.set_tcp_nodelay(true).unwrap();
        disconnect(&socket);
        denied(socket.set_mark(0));
    }
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn a_socket_that_goes_elsewhere_gets_its_own_mark_and_device_back() {
    let bed = Bed::new();
    let node = bed.node();
    let plain = bed.peer.enter(|| TcpListener::bind((OPEN4, 80))).unwrap().unwrap();
    for device in [None, Some(b"eth0".as_slice())] {
        let socket = bed.pod.enter(|| tcp(Domain::IPV4)).unwrap();
        socket.set_mark(0x1000).unwrap();
        socket.bind_device(device).unwrap();
        let own = bound_interface(socket.as_fd()).unwrap();
        for _ in 0..2 {
            socket.connect(&parse(&format!("{PEER4}:80"))).unwrap();
            assert_eq!((socket.mark().unwrap(), bound_interface(socket.as_fd()).unwrap()), (0x1577, 1));
            accept(&outbound(&node.pod.listeners)).expect("captured");
            disconnect(&socket);
            socket.connect(&parse(&format!("{OPEN4}:80"))).unwrap();
            assert_eq!((socket.mark().unwrap(), bound_interface(socket.as_fd()).unwrap()), (0x1000, own));
            let (mut there, _) = plain.accept().unwrap();
            let mut here = TcpStream::from(socket.try_clone().unwrap());
            assert_connected(&mut here, &mut there);
            disconnect(&socket);
        }
    }
}

#[test]
fn an_unprivileged_socket_that_was_captured_goes_nowhere_else() {
    let bed = Bed::new();
    let node = bed.node();
    let plain = bed.peer.enter(|| TcpListener::bind((OPEN4, 80))).unwrap().unwrap();
    plain.set_nonblocking(true).unwrap();
    let result = bed.pod.enter(|| {
        unprivileged(|| {
            let socket = tcp(Domain::IPV4);
            socket.connect(&parse(&format!("{PEER4}:80"))).unwrap();
            disconnect(&socket);
            socket.connect(&parse(&format!("{OPEN4}:80")))
        })
    });
    assert_eq!(result.unwrap().expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(accept_now(&outbound(&node.pod.listeners)), "the first connection was captured");
    assert!(!accept_now(&[&plain]));
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn bound_ports_fast_open_and_nonblocking_connects_are_captured() {
    let bed = Bed::new();
    let node = bed.node();
    let target = parse(&format!("{PEER4}:80"));
    let bound = bed.pod.enter(|| tcp(Domain::IPV4)).unwrap();
    bound.bind(&parse(&format!("{POD4}:5555"))).unwrap();
    bound.connect(&target).unwrap();
    let (_, peer) = accept(&outbound(&node.pod.listeners)).expect("captured");
    assert_eq!(peer, format!("{POD4}:5555").parse().unwrap());

    let fast = bed.pod.enter(|| tcp(Domain::IPV4)).unwrap();
    assert_eq!(fast.send_to_with_flags(b"ping", &target, libc::MSG_FASTOPEN).unwrap(), 4);
    let (mut server, _) = accept(&outbound(&node.pod.listeners)).expect("captured");
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");

    let later = bed.pod.enter(|| tcp(Domain::IPV4)).unwrap();
    let on = 1_i32;
    // SAFETY: the value outlives the call and is as long as stated.
    let set = unsafe {
        libc::setsockopt(later.as_raw_fd(), libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT, (&raw const on).cast(), 4)
    };
    assert_eq!(set, 0);
    later.connect(&target).unwrap();
    let mut later = TcpStream::from(later);
    later.write_all(b"ping").unwrap();
    accept(&outbound(&node.pod.listeners)).expect("captured");

    let waiting = bed.pod.enter(|| tcp(Domain::IPV4)).unwrap();
    waiting.set_nonblocking(true).unwrap();
    assert_eq!(waiting.connect(&target).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
    accept(&outbound(&node.pod.listeners)).expect("captured");
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn multipath_tcp_is_captured_and_stays() {
    let bed = Bed::new();
    let node = bed.node();
    for target in [format!("{PEER4}:80"), format!("[{PEER6}]:80")] {
        let target = parse(&target);
        let socket =
            bed.pod.enter(|| Socket::new(target.domain(), Type::STREAM, Some(Protocol::MPTCP)).unwrap()).unwrap();
        socket.set_mark(0).unwrap();
        socket.connect(&target).unwrap();
        let (mut server, _) = accept(&outbound(&node.pod.listeners)).expect("captured");
        assert_connected(&mut TcpStream::from(socket), &mut server);
    }
    drop(node.pod.listeners);
    let socket = bed.pod.enter(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&parse(&format!("{PEER4}:80")));
    denied(socket.set_mark(0));
    denied(socket.bind_device(Some(b"eth0")));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn without_any_one_of_its_rules_nothing_leaves() {
    let bed = Bed::new();
    let node = bed.node();
    let [capture, guard, local] = rules();
    for removed in [capture, guard, local] {
        for family in IpFamily::ALL {
            attempt_without(&bed, &node, family, &[removed]);
        }
    }
    for family in IpFamily::ALL {
        bed.pod.enter(|| RouteSocket::open().unwrap().remove_local_default(family, 15577)).unwrap().unwrap();
        attempt_without(&bed, &node, family, &[]);
    }
    assert_eq!(bed.tcp_seen_outside(), 0);
}

#[test]
fn without_all_of_its_rules_no_connection_leaves() {
    let bed = Bed::new();
    let node = bed.node();
    let peers = [PEER4, PEER6].map(|ip| bed.peer.enter(|| TcpListener::bind((ip, 80))).unwrap().unwrap());
    let [capture, guard, local] = rules();
    for family in IpFamily::ALL {
        attempt_without(&bed, &node, family, &[capture, guard]);
        attempt_without(&bed, &node, family, &[capture, guard, local]);
    }
    for peer in peers {
        peer.set_nonblocking(true).unwrap();
        assert!(!accept_now(&[&peer]));
    }
}

fn rules() -> [Rule; 3] {
    let mark = Some((0x577, 0xfff));
    [
        Rule { priority: 1, mark, action: Action::Table(15577) },
        Rule { priority: 2, mark, action: Action::Unreachable },
        Rule { priority: 3, mark: None, action: Action::Table(255) },
    ]
}

/// Connects to a captured destination while rules are missing; how that ends is not the point.
fn attempt_without(bed: &Bed, node: &super::bed::Node, family: IpFamily, removed: &[Rule]) {
    let change = |add: bool| {
        let socket = RouteSocket::open().unwrap();
        for rule in removed {
            if add { socket.add_rule(family, *rule).unwrap() } else { socket.remove_rule(family, *rule).unwrap() }
        }
    };
    bed.pod.enter(|| change(false)).unwrap();
    let target = if family == IpFamily::V4 { format!("{PEER4}:80") } else { format!("[{PEER6}]:80") };
    let target = target.parse::<SocketAddr>().unwrap();
    let attempt = bed.pod.enter(|| TcpStream::connect_timeout(&target, Duration::from_millis(1200))).unwrap();
    eprintln!("{family:?} without {removed:?}: {attempt:?}");
    while accept_now(&outbound(&node.pod.listeners)) {}
    bed.pod.enter(|| change(true)).unwrap();
}

fn accept_now(listeners: &[&TcpListener]) -> bool {
    listeners.iter().any(|listener| listener.accept().is_ok())
}
