//! What is left alone, and what comes in.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::bed::{Bed, MARK, OPEN4, PEER4, PEER6, POD4, POD6, accept, addr, assert_connected, outbound};
use crate::capture::KernelEvent;
use crate::sys::sock_diag;
use crate::sys::socket::{app_socket, pod_socket};

#[test]
fn datagrams_and_pings_are_left_alone() {
    let bed = Bed::new();
    let _node = bed.node();
    for (peer, pod) in [(PEER4, POD4), (PEER6, POD6)] {
        let echo = bed.peer.enter(|| UdpSocket::bind((peer, 53))).unwrap().unwrap();
        let client = bed.pod.enter(|| UdpSocket::bind((pod, 0))).unwrap().unwrap();
        for socket in [&echo, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        }
        client.send_to(b"question", (peer, 53)).unwrap();
        echo.send_to(b"answer", received(&echo).1).unwrap();
        assert_eq!(received(&client).0, 6);
        client.connect((peer, 53)).unwrap();
        client.send(b"question").unwrap();
        echo.send_to(b"answer", received(&echo).1).unwrap();
        assert_eq!(received(&client).0, 6);
        // Sharing the port is for TCP alone: a second socket would take datagrams away.
        assert!(bed.pod.enter(|| UdpSocket::bind(client.local_addr().unwrap())).unwrap().is_err());
        bed.shell(&format!("ping -c1 -W2 {peer}")).unwrap();
    }
}

/// A socket with a time-out is interrupted by any signal of this process, such as the end of another test's child.
fn received(socket: &UdpSocket) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

#[test]
fn stream_control_is_left_alone() {
    let bed = Bed::new();
    let _node = bed.node();
    let sctp = Protocol::from(libc::IPPROTO_SCTP);
    let make = || Socket::new(Domain::IPV4, Type::STREAM, Some(sctp));
    let Ok(client) = bed.pod.enter(make).unwrap() else {
        eprintln!("this kernel has no SCTP");
        return;
    };
    let _ = client.connect(&format!("{PEER4}:80").parse::<SocketAddr>().unwrap().into());
    assert_eq!(client.mark().unwrap(), 0);
}

#[test]
fn a_pod_reaches_itself_and_what_is_not_captured() {
    let bed = Bed::new();
    let mut node = bed.node();
    // STRICT in every port: a pod's calls to itself are no plaintext from outside.
    let strict = warren_core::policy::InboundPlan {
        default: warren_core::policy::PlainVerdict::Refuse,
        ports: std::collections::BTreeMap::new(),
        probed: [].into(),
    };
    let uid = bed.spec().uid;
    node.capture.update(&uid, &[addr(POD4), addr(POD6)], &strict).unwrap();
    for listen in ["0.0.0.0:8000", "[::]:8001"] {
        let listener = bed.pod.enter(|| TcpListener::bind(listen)).unwrap().unwrap();
        let port = listener.local_addr().unwrap().port();
        let v4 = ["127.0.0.1".to_owned(), POD4.to_owned()];
        let v6 = ["[::1]".to_owned(), format!("[{POD6}]")];
        for host in if listen.starts_with('[') { v6 } else { v4 } {
            let mut client = bed.connect(&format!("{host}:{port}")).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_connected(&mut client, &mut server);
        }
    }
    let plain = bed.peer.enter(|| TcpListener::bind((OPEN4, 80))).unwrap().unwrap();
    let mut client = bed.connect(&format!("{OPEN4}:80")).unwrap();
    assert_connected(&mut client, &mut plain.accept().unwrap().0);
    assert!(!outbound(&node.pod.listeners).iter().any(|listener| listener.accept().is_ok()));
}

#[test]
fn an_application_restarts_on_the_port_of_an_open_captured_connection() {
    let bed = Bed::new();
    let node = bed.node();
    let _client = bed.connect(&format!("{PEER4}:8080")).unwrap();
    let _captured = accept(&outbound(&node.pod.listeners)).expect("captured");
    // Go listens with MPTCP unless told otherwise.
    for protocol in [Protocol::TCP, Protocol::MPTCP] {
        for any in ["0.0.0.0:8080", "[::]:8080"] {
            let any: SocketAddr = any.parse().unwrap();
            let listen = || {
                let socket = Socket::new(Domain::for_address(any), Type::STREAM, Some(protocol))?;
                socket.bind(&any.into())?;
                socket.listen(1)
            };
            bed.pod.enter(listen).unwrap().unwrap();
        }
    }
}

#[test]
fn listeners_can_be_neither_dialled_nor_joined() {
    let bed = Bed::new();
    let node = bed.node();
    for listener in outbound(&node.pod.listeners) {
        let address = listener.local_addr().unwrap();
        assert_eq!(address.port(), 15008, "no other port of the pod is taken");
        if address.is_ipv4() {
            let refused = bed.connect(&address.to_string()).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        let joining = bed.pod.enter(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.set_reuse_address(true).unwrap();
            crate::sys::socket::set_transparent(&socket, address.is_ipv6()).unwrap();
            socket.bind(&address.into()).and_then(|()| socket.listen(1))
        });
        assert!(joining.unwrap().is_err());
    }
}

#[test]
fn what_comes_in_goes_where_the_verdict_says() {
    let bed = Bed::new();
    let mut node = bed.node();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.enter();
    let mut events = node.capture.events().unwrap();
    drop(guard);
    let call = |port: u16| {
        let target: SocketAddr = format!("{POD4}:{port}").parse().unwrap();
        bed.peer.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(2))).unwrap()
    };
    let mut told = std::collections::VecDeque::new();
    let mut next = || {
        if told.is_empty() {
            let some = async { tokio::time::timeout(Duration::from_secs(2), events.next()).await.unwrap().unwrap() };
            told.extend(runtime.block_on(some));
        }
        told.pop_front().unwrap()
    };

    let application = bed.pod.enter(|| TcpListener::bind((POD4, 22))).unwrap().unwrap();
    let mut client = call(22).unwrap();
    let (mut server, _) = application.accept().unwrap();
    assert_connected(&mut client, &mut server);
    let KernelEvent::FlowOpened { cookie, socket, peer, local, from } = next() else {
        panic!("no event of the plaintext")
    };
    assert_eq!(from, None, "nobody vouches for the other end");
    assert_eq!((cookie, local), (node.pod.netns.cookie(), server.local_addr().unwrap()));
    assert_eq!(peer, client.local_addr().unwrap());
    let flows = bed.pod.enter(sock_diag::tcp_connections).unwrap().unwrap();
    let flow = flows.iter().find(|flow| flow.cookie == socket).expect("listed");
    assert_eq!((flow.local, flow.remote), (local, peer));
    bed.pod.enter(|| sock_diag::destroy(flow)).unwrap().unwrap();
    bed.pod.enter(|| sock_diag::destroy(flow)).unwrap().unwrap();
    assert!(client.read(&mut [0; 1]).is_err(), "reset");
    let KernelEvent::FlowClosed { socket: closed, received, sent, .. } = next() else { panic!("no event of the end") };
    assert_eq!((closed, received, sent), (socket, 4, 4));

    assert_eq!(call(23).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let KernelEvent::PlaintextRefused { local, .. } = next() else { panic!("no event of the refusal") };
    assert_eq!(local, format!("{POD4}:23").parse().unwrap());

    for (port, of) in [(24, "plaintext"), (15008, "hbone")] {
        let mut client = call(port).unwrap();
        let listeners: Vec<&TcpListener> = node
            .pod
            .listeners
            .iter()
            .flat_map(|worker| if of == "hbone" { &worker.hbone } else { &worker.plaintext })
            .collect();
        let (mut server, _) = accept(&listeners).expect("the agent gets it");
        assert_eq!(server.local_addr().unwrap(), format!("{POD4}:{port}").parse().unwrap());
        assert_connected(&mut client, &mut server);
    }
}

#[test]
fn the_application_sees_the_client_that_the_agent_speaks_for() {
    let bed = Bed::new();
    let node = bed.node();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (pod, client) in [(POD4, "10.87.0.77"), (POD6, "fd87::77")] {
        let application = bed.pod.enter(|| TcpListener::bind((pod, 80))).unwrap().unwrap();
        let socket = app_socket(&node.pod.netns, (addr(client), 0).into(), MARK, &node.capture.exemption()).unwrap();
        let target = application.local_addr().unwrap();
        let stream = runtime.block_on(socket.connect(target)).unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let (mut server, peer) = application.accept().unwrap();
        assert_eq!(peer.ip(), addr(client));
        assert_connected(&mut { stream }, &mut server);
    }
    assert_eq!(bed.tcp_seen_outside(), 0);
    // A tunnel's socket is the agent's, in the pod's namespace, and is not captured.
    let peer = bed.peer.enter(|| TcpListener::bind((PEER4, 15008))).unwrap().unwrap();
    let target = peer.local_addr().unwrap();
    let socket = pod_socket(&node.pod.netns, addr(POD4), &node.capture.exemption()).unwrap();
    let stream = runtime.block_on(socket.connect(target)).unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), addr(POD4));
    assert!(crate::sys::socket::belongs_to(stream.as_fd(), &node.pod.netns).unwrap());
    let (mut server, _) = peer.accept().unwrap();
    assert_connected(
        &mut {
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream
        },
        &mut server,
    );
}

#[test]
fn an_address_forged_on_loopback_is_shown_as_it_is() {
    let bed = Bed::new();
    let node = bed.node();
    let socket = bed
        .pod
        .enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            crate::sys::socket::set_transparent(&socket, false).unwrap();
            socket.bind(&"10.87.0.99:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            socket
        })
        .unwrap();
    socket.connect(&format!("{PEER4}:80").parse::<SocketAddr>().unwrap().into()).unwrap();
    let (server, peer) = accept(&outbound(&node.pod.listeners)).expect("captured");
    assert_eq!(peer.ip(), addr("10.87.0.99"), "not one of the pod's: the agent refuses it");
    assert!(crate::sys::socket::belongs_to(server.as_fd(), &node.pod.netns).unwrap());
}
