//! Peers that mean no good, at the tunnel port: they get nothing, and nobody else is worse off.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use warren_test_support::client::{IO_LIMIT, assert_echo, connect};
use warren_test_support::hbone::{Ask, Oddity, dial, dial_oddly, flood};
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::pki::{Authority, Credentials, Leaf};
use warren_test_support::{Pod, Server, eventually};

use crate::fixture::{Single, any};

/// One agent with `client` and `server`; `outside` is the attacker, with a certificate of the mesh if it likes.
struct Siege {
    world: Single,
    outside: Pod,
    authority: Authority,
}

impl Siege {
    fn start() -> Self {
        let mut outside = None;
        let world = Single::with(&[], |lab| outside = Some(lab.stranger(0, "outside")));
        let authority = Authority::from_ca_dir(&world.lab.dir().join("ca"));
        Self { world, outside: outside.unwrap(), authority }
    }

    fn gate(&self) -> SocketAddr {
        self.world.server.at(15008)
    }

    fn credentials(&self) -> Credentials {
        self.authority.issue(&Leaf::valid(&format!("spiffe://{TRUST_DOMAIN}/ns/prod/sa/outside")))
    }
}

#[test]
fn silent_and_babbling_connections_do_not_keep_others_out() {
    let siege = Siege::start();
    let _echo = Server::echo(&siege.world.server.ns, any(8080));
    let start = Instant::now();
    let mut held: Vec<TcpStream> = (0..600).map(|_| connect(&siege.outside.ns, siege.gate()).unwrap()).collect();
    for stream in held.iter_mut().step_by(2) {
        // The start of a TLS record that never ends.
        let _ = stream.write_all(&[0x16, 0x03, 0x01, 0x3f, 0xff, 0x01]);
    }
    for _ in 0..5 {
        assert_echo(&siege.world.client.ns, siege.world.server.at(8080), b"a neighbour is served meanwhile");
    }
    // The agent ends them by itself.
    for stream in &mut held {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "held open for {:?}", start.elapsed());
        }
    }
    assert!(start.elapsed() < Duration::from_secs(25), "ended after {:?}", start.elapsed());
}

#[test]
fn odd_handshakes_get_no_tunnel() {
    let siege = Siege::start();
    let echo = Server::echo(&siege.world.server.ns, any(8080));
    let ask = Ask::connect(&siege.world.server.at(8080).to_string(), b"CANARY");
    for oddity in [Oddity::NoCertificate, Oddity::OtherProtocol, Oddity::NoProtocol] {
        let answer = dial_oddly(&siege.outside.ns, siege.gate(), siege.credentials(), oddity, &ask);
        assert!(answer.is_err(), "{oddity:?}: {answer:?}");
        siege.world.agent.wait_audit("the failed handshake", |event| {
            event["event"] == "mtls_handshake" && event["result"] == "failure"
        });
    }
    assert!(echo.peers().is_empty());
}

#[test]
fn a_flood_of_streams_that_are_reset_at_once_is_survived() {
    let mut siege = Siege::start();
    let echo = Server::echo(&siege.world.server.ns, any(8080));
    let target = siege.world.server.at(8080).to_string();
    let before = siege.world.agent.rss();
    for _ in 0..5 {
        let _ = flood(&siege.outside.ns, siege.gate(), siege.credentials(), &target, 2000);
    }
    assert!(siege.world.agent.alive());
    assert_echo(&siege.world.client.ns, siege.world.server.at(8080), b"still here");
    let growth = siege.world.agent.rss().saturating_sub(before);
    assert!(growth < 64 << 20, "grew by {growth} bytes");
    eventually("no connection is left over", IO_LIMIT, || {
        siege.world.agent.status()["connections"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    drop(echo);
}

#[test]
fn heads_of_every_absurd_shape_are_answered_or_refused() {
    let siege = Siege::start();
    let echo = Server::echo(&siege.world.server.ns, any(8080));
    let target = siege.world.server.at(8080).to_string();
    let long = "x".repeat(8000);
    let host = format!("{long}.prod.svc.cluster.local:80");
    let with = |name: &'static str, value: &str| {
        let mut ask = Ask::connect(&target, b"fine");
        ask.headers.push((name, value.to_owned()));
        ask
    };
    // Headers are for telemetry only: none of them may cost a connection.
    for ask in [
        with("baggage", &long),
        with("baggage", "=,=,k8s.namespace.name==,,"),
        with("forwarded", "for=;;;host=\"\";for=\"nonsense"),
        with("traceparent", "00-zz-zz-zz"),
        with("x-forwarded-for", "10.0.0.1"),
    ] {
        let answers = dial(&siege.outside.ns, siege.gate(), siege.credentials(), std::slice::from_ref(&ask)).unwrap();
        assert_eq!((answers[0].status, &answers[0].body[..]), (200, &b"fine"[..]), "{:?}", ask.headers);
    }
    let served = echo.peers().len();
    for authority in [host.as_str(), "0.0.0.0:8080", "[::]:8080", "127.0.0.1:8080", "localhost:8080", "[::1]:1", "1:1"]
    {
        let answers = dial(&siege.outside.ns, siege.gate(), siege.credentials(), &[Ask::connect(authority, b"CANARY")]);
        if let Ok(answers) = answers {
            assert!([400, 503].contains(&answers[0].status), "{authority}: {answers:?}");
        }
    }
    assert_eq!(echo.peers().len(), served, "no such head reached the application");
    assert_echo(&siege.world.client.ns, siege.world.server.at(8080), b"still here");
}
