//! Connections that disturb each other in one tunnel, if anything can.

use std::io::ErrorKind;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use warren_test_support::client::{IO_LIMIT, assert_echo, check_pattern, connect, pattern, ping_pong};
use warren_test_support::{NetNs, Server};

use crate::mesh::{Mesh, Way, any};
use crate::peer::Peer;

pub(crate) fn clients_that_reset_at_once_do_not_hurt_their_neighbours(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _echo = Server::echo(&server.ns, any(8080));
        let mut neighbours: Vec<TcpStream> =
            (0..8).map(|_| connect(&client.ns, server.at(8080)).expect("connect")).collect();
        for round in 0..5 {
            reset_at_once(&client.ns, server.at(8080), 200);
            for (n, stream) in neighbours.iter_mut().enumerate() {
                let answer = ping_pong(stream, b"alive");
                assert_eq!(answer.unwrap_or_else(|e| panic!("{way:?}, neighbour {n}, round {round}: {e}")), b"alive");
            }
            assert_echo(&client.ns, server.at(8080), b"a new neighbour");
        }
    }
}

/// More than a connection's window of bytes is under way when connections end early: if any of it were lost from the
/// window for good, the tunnel would stand still in the end.
pub(crate) fn what_is_broken_off_leaves_the_window_whole(peer: &Peer) {
    const ROUNDS: usize = 400;
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _echo = Server::echo(&server.ns, any(8080));
        let _deaf = Server::start(&server.ns, any(8081), |mut stream| {
            let mut some = [0; 1000];
            let _ = stream.read_exact(&mut some);
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        });
        let mut neighbour = connect(&client.ns, server.at(8080)).expect("connect");
        let bytes = vec![7; 200_000];
        for round in 0..ROUNDS {
            // Nobody listens there; the server resets; the client resets.
            let port = [9999, 8081, 8080][round % 3];
            match connect(&client.ns, server.at(port)) {
                Ok(mut stream) => {
                    let _ = stream.write_all(&bytes);
                    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                }
                // The refusal of the far end may be there before the application has looked at its socket.
                Err(error) => assert!(port == 9999 && error.kind() == ErrorKind::ConnectionReset, "{error}"),
            }
            if round % 50 == 0 {
                assert_eq!(ping_pong(&mut neighbour, b"alive").expect("neighbour"), b"alive", "{way:?} {round}");
            }
        }
        let answer = ping_pong(&mut neighbour, &bytes);
        assert!(answer.unwrap_or_else(|e| panic!("{way:?}: {e}")) == bytes, "{way:?}");
        for _ in 0..8 {
            assert_echo(&client.ns, server.at(8080), &bytes);
        }
    }
}

/// As port scanners and some health checks do.
fn reset_at_once(ns: &NetNs, to: SocketAddr, count: usize) {
    ns.run(|| {
        for n in 0..count {
            let mut stream = TcpStream::connect_timeout(&to, IO_LIMIT).expect("captured");
            if n % 2 == 0 {
                stream.write_all(b"never mind").expect("write");
            }
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("option");
        }
    });
}

pub(crate) fn short_connections_one_after_the_other(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _echo = Server::echo(&server.ns, any(8080));
        for _ in 0..500 {
            assert_echo(&client.ns, server.at(8080), b"short");
        }
    }
}

pub(crate) fn single_bytes_arrive_in_order(peer: &Peer) {
    const BYTES: usize = 50_000;
    let mesh = Mesh::start(peer);
    let mut all = vec![0; BYTES];
    pattern(0, &mut all);
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _server = Server::start(&server.ns, any(8080), |mut stream| {
            stream.set_nodelay(true).expect("option");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
        stream.set_nodelay(true).expect("option");
        let mut writer = stream.try_clone().expect("descriptor");
        let bytes = all.clone();
        let sender = std::thread::spawn(move || {
            bytes.chunks(1).try_for_each(|byte| writer.write_all(byte))?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        assert_eq!(check_pattern(&mut stream).expect("echo"), BYTES as u64, "{way:?}");
        sender.join().expect("sender").expect("writes");
    }
}

/// ztunnel's window for a connection is that of four streams, and nobody but ztunnel can help its own deaf readers.
pub(crate) fn applications_that_do_not_read_do_not_stop_their_neighbours(peer: &Peer) {
    let mesh = Mesh::start(peer);
    for (way, deaf) in [(Way::ToZtunnel, 3), (Way::FromZtunnel, 12)] {
        let (client, server) = mesh.ends(way);
        let (end, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let _deaf = Server::start(&server.ns, any(8080), move |_stream| {
            // Until the test is over: the sender is dropped then.
            let _ = held.lock().map(|held| held.recv());
        });
        let _echo = Server::echo(&server.ns, any(8081));
        let mut stuck = Vec::new();
        for n in 0..deaf {
            let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
            stream.set_write_timeout(Some(Duration::from_millis(300))).expect("option");
            while stream.write(&[7; 64 * 1024]).is_ok() {}
            stuck.push(stream);
            let mut neighbour = connect(&client.ns, server.at(8081)).expect("connect");
            let answer = ping_pong(&mut neighbour, b"alive");
            assert_eq!(answer.unwrap_or_else(|e| panic!("{way:?} beside {}: {e}", n + 1)), b"alive");
        }
        drop((stuck, end));
    }
}
