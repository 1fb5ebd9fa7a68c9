//! Agents that are killed, stopped, and come back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use warren_test_support::client::{
    IO_LIMIT, assert_echo, connect, finish_exchange, is_reset, ping_pong, prepare, wait_cut,
};
use warren_test_support::{Agent, Capture, Lab, NetNs, Server, eventually};

use crate::fixture::{Pair, any, start_agent};
use crate::inspect::{pinned, pinned_links, traces};

#[test]
fn killed_agent_connections_wait_for_its_return() {
    let mut pair = Pair::with(&[("--away-wait", "20s")], |_| {});
    let _echo = pair.echo(8080);
    assert_echo(&pair.client.ns, pair.server.at(8080), b"before");
    let capture = Capture::start(pair.lab.node(0));
    pair.near.kill9();
    let waiting: Vec<_> = [pair.server.at(8080), pair.server.at6(8080)]
        .into_iter()
        .map(|to| {
            let ns = NetNsThread::of(&pair.client.ns);
            std::thread::spawn(move || {
                ns.connect(to).and_then(|stream| finish_exchange(prepare(stream)?, b"CANARY-waited"))
            })
        })
        .collect();
    // Long enough for the kernel to notice, and for the clients to have sent their SYN in vain.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(waiting.iter().all(|client| !client.is_finished()), "they wait, they are not refused");
    pair.near.start();
    for client in waiting {
        assert_eq!(client.join().unwrap().expect("the agent is back"), b"CANARY-waited");
    }
    assert_echo(&pair.client.ns, pair.server.at(8080), b"after");
    assert_echo(&pair.server.ns, serve_in(&pair), b"inbound as well");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-waited");
    packets.assert_only_tls();
}

/// An echo server in the client pod that lives as long as the process.
fn serve_in(pair: &Pair) -> SocketAddr {
    let server = Server::echo(&pair.client.ns, any(8088));
    std::mem::forget(server);
    pair.client.at(8088)
}

/// A namespace's path, for threads that outlive a borrow.
struct NetNsThread(std::path::PathBuf);

impl NetNsThread {
    fn of(ns: &NetNs) -> Self {
        Self(ns.path().to_owned())
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let file = std::fs::File::open(&self.0)?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect_timeout(&to, Duration::from_secs(30))
    }
}

#[test]
fn killed_agent_new_connections_are_refused_after_the_wait_and_nothing_is_clear() {
    let mut stranger = None;
    let mut pair = Pair::with(&[("--away-wait", "2s")], |lab| {
        lab.manifest.set_mtls(None, "STRICT");
        stranger = Some(lab.stranger(0, "stranger"));
    });
    let stranger = stranger.unwrap();
    let (_echo, own) = (pair.echo(8080), Server::echo(&pair.client.ns, any(8080)));
    assert_echo(&pair.client.ns, pair.server.at(8080), b"before");
    pair.near.kill9();
    let capture = Capture::start(pair.lab.node(0));
    for to in [pair.server.at(8080), pair.server.at6(8080)] {
        eventually("connect fails at once with ECONNREFUSED", IO_LIMIT, || {
            let attempt = pair.client.ns.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(200)));
            let error = attempt.expect_err("nobody is there to serve it");
            (error.kind() == ErrorKind::ConnectionRefused).then_some(())
        });
    }
    // Inbound plaintext does not get in either while nobody watches: the pod is STRICT.
    let inbound = stranger.ns.run(|| TcpStream::connect_timeout(&pair.client.at(8080), Duration::from_secs(2)));
    assert!(inbound.is_err(), "plaintext entered a STRICT pod");
    assert!(own.peers().is_empty());
    let packets = capture.stop();
    assert!(packets.syns_to(8080).iter().all(|syn| syn.source.ip() == stranger.v4()), "no SYN of the captured pod");
    pair.near.start();
    assert_echo(&pair.client.ns, pair.server.at(8080), b"back");
}

#[test]
fn killed_agent_connections_that_wait_are_refused_when_the_wait_is_over() {
    let mut pair = Pair::with(&[("--away-wait", "2s")], |_| {});
    let _echo = pair.echo(8080);
    assert_echo(&pair.client.ns, pair.server.at(8080), b"before");
    let capture = Capture::start(pair.lab.node(0));
    pair.near.kill9();
    let waiting = [pair.server.at(8080), pair.server.at6(8080)].map(|to| {
        let ns = NetNsThread::of(&pair.client.ns);
        std::thread::spawn(move || (Instant::now(), ns.connect(to), Instant::now()))
    });
    for client in waiting {
        let (start, outcome, end) = client.join().unwrap();
        let error = outcome.expect_err("nobody is there to serve it");
        let waited = end - start;
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "after {waited:?}: {error}");
        assert!((Duration::from_secs(1)..Duration::from_secs(12)).contains(&waited), "waited {waited:?}");
    }
    capture.stop().assert_only_tls();
}

#[test]
fn a_stopped_agent_ends_its_connections_and_its_successor_adopts_the_pins() {
    let mut pair = Pair::with(&[("--away-wait", "20s"), ("--drain", "1s")], |_| {});
    let _echo = pair.echo(8080);
    let mut open = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"open").unwrap(), b"open");
    let cookie = pair.near.pod("client")["cookie"].clone();
    let links = pinned_links(pair.near.node());
    pair.near.stop();
    assert_eq!(pinned("link", pair.near.node()), links, "capture outlives the agent");
    let end = wait_cut(&mut open, IO_LIMIT);
    assert!(end.is_some_and(|error| is_reset(&error)), "cut off by the deadline: a reset, not a clean end");
    pair.near.start();
    assert_echo(&pair.client.ns, pair.server.at(8080), b"again");
    assert_eq!(pair.near.pod("client")["cookie"], cookie);
}

#[test]
fn a_killed_agent_is_never_mistaken_for_the_end_of_a_stream() {
    // Half an answer that ends cleanly would pass for a whole one.
    for (near, what) in [(true, "the client's agent"), (false, "the server's agent")] {
        let mut pair = Pair::start();
        let (report, server_saw) = std::sync::mpsc::channel();
        let _server = Server::start(&pair.server.ns, any(8080), move |mut stream| {
            let mut all = Vec::new();
            let _ = stream.write_all(b"the first half");
            let _ = report.send(stream.read_to_end(&mut all));
        });
        let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
        stream.write_all(b"half a request").unwrap();
        stream.read_exact(&mut [0; 14]).unwrap();
        if near {
            pair.near.kill9()
        } else {
            pair.far.kill9()
        }
        let end = wait_cut(&mut stream, Duration::from_secs(10));
        assert!(end.is_some_and(|error| is_reset(&error)), "{what} died: the client saw a clean end");
        let saw = server_saw.recv_timeout(Duration::from_secs(10)).expect("the server learns of it");
        assert!(saw.is_err_and(|error| is_reset(&error)), "{what} died: the server saw a clean end");
    }
}

#[test]
fn an_agent_that_drains_lets_open_connections_finish() {
    let mut pair = Pair::with(&[("--drain", "10s")], |_| {});
    let _echo = pair.echo(8080);
    let mut open = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"open").unwrap(), b"open");
    let start = Instant::now();
    std::thread::scope(|scope| {
        let far = &mut pair.far;
        let stopping = scope.spawn(move || far.stop());
        while start.elapsed() < Duration::from_secs(2) {
            assert_eq!(ping_pong(&mut open, b"still open").unwrap(), b"still open");
        }
        assert!(!stopping.is_finished(), "it waits for its connections");
        drop(open);
        stopping.join().unwrap();
    });
    assert!(start.elapsed() < Duration::from_secs(8), "with the last connection it is done");
}

#[test]
fn a_tunnel_that_died_with_the_far_agent_is_not_used_again() {
    let mut pair = Pair::start();
    let _echo = pair.echo(8080);
    for round in 0..3 {
        assert_echo(&pair.client.ns, pair.server.at(8080), format!("round {round}").as_bytes());
        pair.far.kill9();
        pair.far.start();
    }
    assert_echo(&pair.client.ns, pair.server.at(8080), b"after all");
}

#[test]
fn a_pod_that_left_while_the_agent_was_dead_is_released_by_the_next_one() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    lab.manifest.write();
    let before = traces(&client.ns);
    let mut agent = start_agent(&lab, 0, &[]);
    assert_ne!(traces(&client.ns), before);
    agent.kill9();
    lab.manifest.remove("pod client");
    lab.manifest.write();
    agent.start();
    eventually("no trace is left in the pod", IO_LIMIT, || (traces(&client.ns) == before).then_some(()));
    let _echo = Server::echo(&server.ns, any(8080));
    assert_echo(&client.ns, server.at(8080), b"in clear, from outside the mesh");
}

#[test]
fn the_tunnel_to_an_agent_that_is_back_is_there_before_the_next_connection() {
    // One worker: its pool sees all connections.
    let mut pair = Pair::with(&[("--workers", "1")], |_| {});
    let _echo = pair.echo(8080);
    for _ in 0..3 {
        assert_echo(&pair.client.ns, pair.server.at(8080), b"again and again");
    }
    let leaves: [fn(&mut Agent); 2] = [Agent::kill9, Agent::stop];
    for (round, leave) in (1..).zip(leaves) {
        leave(&mut pair.far);
        pair.far.start();
        let ahead =
            |outcome: &str| pair.near.metric("warren_tunnels_ahead_total", &[&format!("outcome=\"{outcome}\"")]);
        let handshakes = || pair.near.metric("mtls_handshake_success_total", &[]);
        let back = || (ahead("dialled") >= f64::from(round)).then_some(());
        eventually("the tunnel is back without traffic", Duration::from_secs(20), back);
        let before = handshakes();
        assert_echo(&pair.client.ns, pair.server.at(8080), b"no handshake");
        assert!((handshakes() - before).abs() < 0.5, "a handshake was made for the connection");
        assert!((ahead("used") - f64::from(round)).abs() < 0.5, "{}", ahead("used"));
    }
    let record = pair.near.wait_audit("the handshake's record", |event| event["ahead"] == true);
    assert_eq!((record["event"].as_str(), record["connection_id"].as_str()), (Some("mtls_handshake"), Some("")));
    let names = (record["source_identity"].as_str(), record["destination_identity"].as_str());
    assert_eq!(names, (Some(&*pair.client.identity()), Some(&*pair.server.identity())));
}

#[test]
fn without_warm_tunnels_nobody_dials_but_for_a_connection() {
    let mut pair = Pair::with(&[("--workers", "1"), ("--warm-tunnels", "off")], |_| {});
    let _echo = pair.echo(8080);
    for _ in 0..3 {
        assert_echo(&pair.client.ns, pair.server.at(8080), b"again and again");
    }
    pair.far.stop();
    pair.far.start();
    std::thread::sleep(Duration::from_secs(1));
    assert!(pair.near.metric("mtls_handshake_success_total", &[]) < 1.5, "the first connection's");
    assert_echo(&pair.client.ns, pair.server.at(8080), b"which dials");
    assert!(pair.near.audit().iter().all(|event| event["ahead"].is_null()));
}
