//! What applications see of each other through one Warren and one ztunnel.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use warren_test_support::client::{
    IO_LIMIT, assert_echo, check_pattern, connect, exchange, is_reset, pattern, ping_pong, prepare, send_pattern,
    wait_cut,
};
use warren_test_support::{Capture, NetNs, Server, eventually};

use crate::mesh::{Mesh, Way, any};
use crate::peer::Peer;

/// Soon enough for an end that travels over one machine.
const SOON: Duration = Duration::from_secs(5);

pub(crate) fn every_size_and_family_arrives_exactly_from_the_clients_own_address(peer: &Peer) {
    let mesh = Mesh::start(peer);
    let capture = Capture::start(mesh.lab.node(0));
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let echo = Server::echo(&server.ns, any(8080));
        let mut clients = Vec::new();
        for size in [0, 1, 65_536, 16 << 20] {
            for (to, from) in [(server.at(8080), client.v4()), (server.at6(8080), client.v6())] {
                assert_eq!(there_and_back(&client.ns, to, size), size, "{way:?} {to}");
                clients.push(from);
            }
        }
        assert_eq!(echo.peer_ips(), clients, "{way:?}: addresses that the server saw");
    }
    assert!(capture.stop().assert_only_tls() > 4 * (16 << 20), "everything crossed the wire as TLS");
}

/// Sends a pattern while it comes back; gives how many bytes came back right.
#[track_caller]
fn there_and_back(ns: &NetNs, to: SocketAddr, size: u64) -> u64 {
    let mut stream = connect(ns, to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let mut writer = stream.try_clone().expect("descriptor");
    let sender =
        std::thread::spawn(move || send_pattern(&mut writer, size).and_then(|()| writer.shutdown(Shutdown::Write)));
    let back = check_pattern(&mut stream).unwrap_or_else(|e| panic!("{to}, {size} bytes: {e}"));
    sender.join().expect("sender").unwrap_or_else(|e| panic!("{to}, {size} bytes: {e}"));
    back
}

pub(crate) fn each_end_may_end_its_half_first(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _late = Server::start(&server.ns, any(8080), |mut stream| {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            let _ = stream.write_all(format!("after your end: {}", all.len()).as_bytes());
        });
        let (ended, server_saw) = mpsc::channel();
        let _early = Server::start(&server.ns, any(8081), move |mut stream| {
            let _ = stream.write_all(b"all I have");
            let _ = stream.shutdown(Shutdown::Write);
            let mut all = Vec::new();
            let _ = ended.send(stream.read_to_end(&mut all).map(|_| all));
        });
        let answer = exchange(&client.ns, server.at(8080), b"12345").expect("exchange");
        assert_eq!(answer, b"after your end: 5", "{way:?}");

        let mut stream = connect(&client.ns, server.at(8081)).expect("connect");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("clean end");
        assert_eq!(all, b"all I have", "{way:?}");
        stream.write_all(b"said after the server's end").expect("the other half is open");
        drop(stream);
        let heard = server_saw.recv_timeout(IO_LIMIT).expect("server reports").expect("clean end");
        assert_eq!(heard, b"said after the server's end", "{way:?}");
    }
}

/// ztunnel carries a reset as an ordinary end, both ways, so an end is all that the other application can see.
pub(crate) fn a_reset_of_one_application_ends_the_other(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let (report, server_saw) = mpsc::channel();
        let _server = Server::start(&server.ns, any(8080), move |mut stream| {
            let mut byte = [0];
            let _ = stream.read_exact(&mut byte);
            if byte == *b"R" {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            } else {
                let _ = stream.write_all(b"+");
                let _ = report.send(stream.read(&mut byte));
            }
        });
        let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
        stream.write_all(b"R").expect("write");
        wait_cut(&mut stream, SOON);
        // Whoever goes on writing is told that nobody listens.
        eventually("writes fail", SOON, || stream.write_all(b"anybody?").err());

        let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
        assert_eq!(ping_pong(&mut stream, b"C").expect("answer"), b"+");
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
        drop(stream);
        match server_saw.recv_timeout(SOON).expect("the server's read ends") {
            Ok(bytes) => assert_eq!(bytes, 0, "{way:?}"),
            Err(error) => assert!(is_reset(&error), "{way:?}: {error}"),
        }
        mesh.agent.wait_audit("the reset of the application under Warren", |event| {
            event["direction"] == way.direction() && event["reason"] == "reset by the application"
        });
    }
    nothing_is_left(&mesh);
}

/// Warren carries nothing any more: the other side's ends were told to it.
#[track_caller]
fn nothing_is_left(mesh: &Mesh) {
    mesh.agent
        .wait_status("all connections are gone", |status| status["connections"].as_array().is_some_and(Vec::is_empty));
}

pub(crate) fn many_connections_share_few_tunnels(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let before = handshakes(&mesh);
        all_at_once(&mesh, way, 50);
        let tunnels = handshakes(&mesh) - before;
        // Warren has a pool per worker, ztunnel one per pod.
        let most = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        assert!((1..=most).contains(&tunnels), "{way:?}: {tunnels} tunnels for 50 connections");
    }
    nothing_is_left(&mesh);
}

pub(crate) fn more_connections_than_a_tunnel_has_streams(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        all_at_once(&mesh, way, 450);
    }
    nothing_is_left(&mesh);
}

/// Opens all before the first of them speaks; each must get back its own bytes.
#[track_caller]
fn all_at_once(mesh: &Mesh, way: Way, count: usize) {
    let (client, server) = mesh.ends(way);
    let to = server.at(8080);
    let echo = Server::echo(&server.ns, any(8080));
    let opened: Vec<_> =
        client.ns.run(|| (0..count).map(|_| TcpStream::connect_timeout(&to, IO_LIMIT)).collect::<Vec<_>>());
    let mut streams: Vec<TcpStream> =
        opened.into_iter().map(|stream| stream.and_then(prepare).expect("connect")).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("{n:08}").as_bytes()).unwrap_or_else(|e| panic!("{way:?}, connection {n}: {e}"));
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("{way:?}, connection {n}: {e}"));
        assert_eq!(answer, format!("{n:08}").as_bytes());
    }
    assert_eq!(echo.peers().len(), count);
    let from = client.v4();
    assert!(echo.peer_ips().iter().all(|ip| *ip == from), "{way:?}: every one from the client's own address");
}

fn handshakes(mesh: &Mesh) -> usize {
    let events = mesh.agent.audit();
    events.iter().filter(|event| event["event"] == "mtls_handshake" && event["result"] == "success").count()
}

pub(crate) fn a_server_may_speak_first(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _server = Server::start(&server.ns, any(8080), |mut stream| {
            let _ = stream.write_all(b"220 ready\r\n");
            let mut line = [0; 6];
            let _ = stream.read_exact(&mut line);
            let _ = stream.write_all(&line);
        });
        let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
        let mut banner = [0; 11];
        stream.read_exact(&mut banner).expect("banner before the client has said a word");
        assert_eq!(&banner, b"220 ready\r\n", "{way:?}");
        assert_eq!(ping_pong(&mut stream, b"EHLO\r\n").expect("answer"), b"EHLO\r\n", "{way:?}");
    }
}

/// The application's backlog is full, so the tunnel's far end cannot answer 200 while the client's bytes and its end
/// are long under way.
pub(crate) fn bytes_sent_before_the_tunnel_is_open_arrive_once_and_whole(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        for length in [1, 40_000, 400_000] {
            let (listener, fillers) = busy(&server.ns, server.at(8080));
            let sender = {
                let stream = connect(&client.ns, server.at(8080)).expect("accepted by the proxy");
                std::thread::spawn(move || send_and_read(stream, length))
            };
            std::thread::sleep(Duration::from_millis(300));
            assert!(!sender.is_finished(), "{way:?}: answered although the application has not accepted");
            let accepted = accept_after(&listener, fillers.len());
            let mut stream = prepare(accepted).expect("options");
            assert_eq!(check_pattern(&mut stream).expect("the client's bytes"), length, "{way:?}");
            stream.write_all(b"got it").expect("write");
            drop(stream);
            assert_eq!(sender.join().expect("client").expect("answer"), b"got it", "{way:?}");
        }
    }
}

/// A listener whose backlog is full, and the connections that fill it.
#[track_caller]
fn busy(ns: &NetNs, at: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let listener = ns.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("socket");
        socket.set_reuse_address(true).expect("option");
        socket.bind(&at.into()).expect("bind");
        socket.listen(0).expect("listen");
        TcpListener::from(socket)
    });
    // A pod that dials its own address is not captured by either side.
    let mut fillers = Vec::new();
    while let Ok(stream) = ns.run(|| TcpStream::connect_timeout(&at, Duration::from_millis(200))) {
        fillers.push(stream);
        assert!(fillers.len() < 10, "a backlog of none takes connection after connection");
    }
    (listener, fillers)
}

/// Takes the fillers and the one behind them.
#[track_caller]
fn accept_after(listener: &TcpListener, fillers: usize) -> TcpStream {
    let own = listener.local_addr().expect("bound").ip();
    listener.set_nonblocking(true).expect("option");
    let mut taken = 0;
    let stream = eventually("the tunnelled connection arrives", IO_LIMIT, || {
        let (stream, from) = listener.accept().ok()?;
        taken += 1;
        (from.ip() != own).then_some(stream)
    });
    assert!(taken > fillers, "the backlog was full");
    stream.set_nonblocking(false).expect("option");
    stream
}

fn send_and_read(mut stream: TcpStream, length: u64) -> std::io::Result<Vec<u8>> {
    send_pattern(&mut stream, length)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

pub(crate) fn a_slow_reader_stops_its_writer_and_loses_nothing(peer: &Peer) {
    const TOO_MUCH: u64 = 128 << 20;
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let (go, wait) = mpsc::channel::<()>();
        let (wait, (report, server_saw)) = (Mutex::new(wait), mpsc::channel());
        let _server = Server::start(&server.ns, any(8080), move |mut stream| {
            let _ = wait.lock().expect("one connection").recv();
            let _ = report.send(check_pattern(&mut stream));
        });
        let _echo = Server::echo(&server.ns, any(8081));
        let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
        stream.set_write_timeout(Some(Duration::from_secs(2))).expect("option");
        let sent = until_stalled(&mut stream, TOO_MUCH);
        assert_echo(&client.ns, server.at(8081), b"others in the same tunnel go on");
        go.send(()).expect("server waits");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(server_saw.recv_timeout(IO_LIMIT).expect("server reports").expect("bytes"), sent, "{way:?}");
    }
}

/// Writes the pattern until nobody takes any more; gives how much was taken.
#[track_caller]
fn until_stalled(stream: &mut TcpStream, limit: u64) -> u64 {
    let (mut sent, mut chunk) = (0, vec![0; 64 * 1024]);
    loop {
        pattern(sent, &mut chunk);
        match stream.write(&chunk) {
            Ok(n) => sent += n as u64,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return sent,
            Err(e) => panic!("after {sent} bytes: {e}"),
        }
        assert!(sent < limit, "the writer was never stopped");
    }
}
