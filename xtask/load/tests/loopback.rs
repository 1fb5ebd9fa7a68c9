//! Every kind of load over loopback, straight and through a proxy that damages bytes.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use warren_load::client::{self, Connects, Direction, Idle, RoundTrips, Streams, Window};
use warren_load::report::Served;
use warren_load::server::{Server, Stopper};

const WINDOW: Window = Window {
    warmup: Duration::from_millis(20),
    measured: Duration::from_millis(150),
    patience: Duration::from_secs(5),
};

struct Running {
    address: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<std::io::Result<Served>>,
}

impl Running {
    fn start() -> Self {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stopper) = (server.address().unwrap(), server.stopper());
        Self { address, stopper, thread: thread::spawn(|| server.run()) }
    }

    fn stop(self) -> Served {
        self.stopper.stop().unwrap();
        self.thread.join().unwrap().unwrap()
    }

    /// Ends it and wants nothing to have been wrong.
    fn stop_well(self, connections: u64) -> Served {
        let served = self.stop();
        assert_eq!((served.errors.len(), served.broken), (0, 0), "{served:?}");
        assert_eq!(served.connections, connections);
        served
    }
}

fn round_trips(to: SocketAddr, size: usize, connections: usize) -> RoundTrips {
    RoundTrips { to, size, connections, allow_failures: false, window: WINDOW }
}

#[test]
fn round_trips_are_counted_and_checked() {
    for (size, connections) in [(64, 1), (64, 16), (16_384, 16), (131_072, 2)] {
        let server = Running::start();
        let report = client::round_trips(&round_trips(server.address, size, connections)).unwrap();
        let latency = report.latency.unwrap();
        assert!(report.operations > 10 && report.seconds >= 0.15, "{report:?}");
        assert!(latency.p50 > 0.0 && latency.p50 <= latency.p99 && latency.p99 <= latency.max, "{report:?}");
        assert!(report.bytes >= report.operations * size as u64, "{report:?}");
        let served = server.stop_well(connections as u64);
        assert_eq!(served.bytes, report.bytes, "what one end sent the other received");
    }
}

#[test]
fn the_server_closes_new_connections_first() {
    let server = Running::start();
    let load = Connects {
        to: server.address,
        spread: 1,
        size: 64,
        at_once: 4,
        count: None,
        allow_failures: false,
        window: WINDOW,
    };
    let report = client::connect(&load).unwrap();
    assert!(report.operations > 20 && report.failed == 0, "{report:?}");
    let counted = Connects { count: Some(40), spread: 1, ..load };
    assert_eq!(client::connect(&counted).unwrap().bytes, 40 * 64);
    let served = server.stop();
    assert_eq!((served.broken, served.errors.len()), (0, 0), "{served:?}");
    assert!(served.most_open <= 8, "{served:?}");
}

#[test]
fn streams_go_every_way() {
    for direction in [Direction::Up, Direction::Down, Direction::Both] {
        for streams in [1, 8] {
            let server = Running::start();
            let report = client::stream(&Streams { to: server.address, streams, direction, window: WINDOW }).unwrap();
            assert!(report.bytes > 10_000_000, "{direction:?}: {report:?}");
            server.stop_well(streams as u64);
        }
    }
}

#[test]
fn idle_connections_stand_and_prove_themselves() {
    let server = Running::start();
    let patience = Duration::from_secs(5);
    let load =
        Idle { to: server.address, connections: 200, at_once: 32, size: 64, patience, as_many_as_possible: false };
    let mut held = client::idle(&load).unwrap();
    held.prove().unwrap();
    assert_eq!((held.connections(), held.received()), (200, 200 * 2 * 64));
    drop(held);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(server.stop_well(200).most_open, 200);
}

#[test]
fn a_refused_connection_is_a_fault_unless_allowed() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client::round_trips(&round_trips(nobody, 64, 1)).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    let load =
        Connects { to: nobody, spread: 1, size: 64, at_once: 1, count: Some(5), allow_failures: true, window: WINDOW };
    let report = client::connect(&load).unwrap();
    assert_eq!((report.failed, report.operations), (5, 0));
}

#[test]
fn a_silent_server_is_a_fault() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let window = Window { patience: Duration::from_millis(100), ..WINDOW };
    let load = RoundTrips { window, ..round_trips(silent.local_addr().unwrap(), 64, 1) };
    let error = client::round_trips(&load).unwrap_err().to_string();
    assert!(error.contains("nothing happened"), "{error}");
}

/// What a bad proxy does to the bytes of one direction.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Flips a bit of the byte at this place.
    Flip(usize),
    /// Leaves out the bytes from here on for so many.
    Lose(usize, usize),
    /// Ends the connection here, in order.
    Cut(usize),
}

/// A proxy for one connection: damages what the client (`up`) or the server sends.
fn proxy(to: SocketAddr, up: bool, damage: Damage) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(to).unwrap();
        let (harmed, harmless) =
            if up { ((&client, &server), (&server, &client)) } else { ((&server, &client), (&client, &server)) };
        thread::scope(|scope| {
            scope.spawn(|| carry(harmless.0, harmless.1, None));
            carry(harmed.0, harmed.1, Some(damage));
        });
    });
    address
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, damage: Option<Damage>) {
    let (mut buffer, mut passed) = (vec![0; 65_536], 0);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..length].to_vec();
        match damage {
            Some(Damage::Flip(at)) if (passed..passed + length).contains(&at) => bytes[at - passed] ^= 0x10,
            Some(Damage::Lose(at, count)) => {
                let place = passed;
                let kept = bytes.iter().enumerate().filter(|(i, _)| !(at..at + count).contains(&(place + i)));
                bytes = kept.map(|(_, byte)| *byte).collect();
            }
            Some(Damage::Cut(at)) if passed + length > at => {
                let _ = to.write_all(&bytes[..at.saturating_sub(passed)]);
                break;
            }
            _ => {}
        }
        passed += length;
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[test]
fn damage_to_what_the_server_sends_is_seen_by_the_client() {
    let harms = [
        (Damage::Flip(1_000_000), "wrong byte"),
        (Damage::Lose(1_000_000, 7), "wrong byte"),
        (Damage::Cut(1_000_000), "ended early"),
    ];
    for (damage, expected) in harms {
        let server = Running::start();
        let to = proxy(server.address, false, damage);
        let load = Streams { to, streams: 1, direction: Direction::Down, window: WINDOW };
        let error = client::stream(&load).unwrap_err().to_string();
        assert!(error.contains(expected), "{damage:?}: {error}");
        server.stop();
    }
}

#[test]
fn damage_to_what_the_client_sends_is_seen_by_the_server() {
    for damage in [Damage::Flip(1_000_000), Damage::Lose(1_000_000, 7)] {
        let server = Running::start();
        let to = proxy(server.address, true, damage);
        let load = Streams { to, streams: 1, direction: Direction::Up, window: WINDOW };
        client::stream(&load).unwrap_err();
        let served = server.stop();
        assert!(served.errors.iter().any(|error| error.contains("wrong byte")), "{damage:?}: {served:?}");
    }
}

#[test]
fn a_damaged_answer_ends_round_trips_even_where_failures_are_allowed() {
    let server = Running::start();
    let to = proxy(server.address, false, Damage::Flip(640));
    let load = RoundTrips { allow_failures: true, ..round_trips(to, 64, 1) };
    let error = client::round_trips(&load).unwrap_err().to_string();
    assert!(error.contains("wrong byte"), "{error}");
    server.stop();
}
