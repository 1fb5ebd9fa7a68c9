//! Every way past the capture that is known: none may put a byte of a captured connection on the wire in clear.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use warren_test_support::client::{assert_echo, connect, exchange, ping_pong, prepare};
use warren_test_support::wait::never;
use warren_test_support::{Capture, Lab, Server, eventually};

use crate::dial;
use crate::fixture::{Pair, Probe, User, any, start_agent};

const CANARY: &str = "CANARY-escape";

/// Asserts that nothing but tunnels crossed the wire, and the canary nowhere.
#[track_caller]
fn assert_clean(capture: Capture) {
    let packets = capture.stop();
    packets.assert_absent(CANARY.as_bytes());
    packets.assert_only_tls();
}

/// The server on both families. It is PERMISSIVE: plaintext that escapes is welcome there, so it would be seen.
fn both_families(pair: &Pair, port: u16) -> [SocketAddr; 2] {
    [pair.server.at(port), pair.server.at6(port)]
}

#[test]
fn binding_to_a_device_first() {
    let pair = Pair::start();
    let (_echo, probe) = (pair.echo(8080), Probe::new(&pair.lab));
    let capture = Capture::start(pair.lab.node(0));
    for to in both_families(&pair, 8080) {
        for user in User::ALL {
            user.probe(&probe, &pair.client.ns, to, CANARY, &["device=eth0"]);
        }
        let url = format!("http://{to}/{CANARY}");
        User::Nobody.program(&pair.client.ns, "curl", &["-sg", "-m", "3", "--interface", "eth0", &url]);
    }
    assert_clean(capture);
}

#[test]
fn binding_to_a_device_and_unmarking_while_it_connects() {
    let pair = Pair::start();
    let (_echo, probe) = (pair.echo(8080), Probe::new(&pair.lab));
    let capture = Capture::start(pair.lab.node(0));
    for to in both_families(&pair, 8080) {
        for user in User::ALL {
            user.probe(&probe, &pair.client.ns, to, CANARY, &["rebind=eth0"]);
        }
    }
    assert_clean(capture);
}

#[test]
fn binding_to_a_device_and_unmarking_an_open_connection() {
    let pair = Pair::start();
    let _echo = pair.echo(8080);
    let capture = Capture::start(pair.lab.node(0));
    let ways: [fn(SocketAddr) -> std::io::Result<TcpStream>; 2] = [|to| TcpStream::connect(to), dial::multipath];
    for (to, way) in both_families(&pair, 8080).into_iter().flat_map(|to| ways.map(|way| (to, way))) {
        let mut stream = prepare(pair.client.ns.run(|| way(to)).unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert_eq!(ping_pong(&mut stream, b"fine").unwrap(), b"fine");
        let socket = socket2::SockRef::from(&stream);
        pair.client.ns.run(|| {
            let _ = socket.bind_device(None);
            let _ = socket.bind_device(Some(b"eth0"));
        });
        let _ = socket.set_mark(0);
        // Whether the connection survives such treatment is its owner's concern.
        let _ = ping_pong(&mut stream, CANARY.as_bytes());
    }
    assert_clean(capture);
}

#[test]
fn a_socket_older_than_the_enrolment_is_captured_when_it_connects() {
    let mut lab = Lab::new(2);
    let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
    lab.manifest.write();
    let sockets = [server.at(8080), server.at6(8080)].map(|to| {
        let socket = || Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
        // One of them has had a device, a mark and a port of its own since then.
        let prepared = client.ns.run(|| {
            let prepared = socket();
            prepared.bind_device(Some(b"eth0")).unwrap();
            prepared.set_mark(7).unwrap();
            let own = SocketAddr::new(if to.is_ipv4() { client.v4() } else { client.v6() }, 5555);
            prepared.bind(&own.into()).unwrap();
            prepared
        });
        (to, [client.ns.run(socket), prepared])
    });
    let (_near, _far) = (start_agent(&lab, 0, &[]), start_agent(&lab, 1, &[]));
    let _echo = Server::echo(&server.ns, any(8080));
    let capture = Capture::start(lab.node(0));
    for (to, sockets) in sockets {
        for socket in sockets {
            if socket.connect_timeout(&to.into(), Duration::from_secs(5)).is_ok() {
                let mut stream = prepare(socket.into()).unwrap();
                assert_eq!(ping_pong(&mut stream, CANARY.as_bytes()).unwrap(), CANARY.as_bytes());
            }
        }
    }
    assert_clean(capture);
}

#[test]
fn unmarking_before_the_answer_with_the_agent_away() {
    let mut pair = Pair::with(&[("--away-wait", "20s")], |_| {});
    let _echo = pair.echo(8080);
    assert_echo(&pair.client.ns, pair.server.at(8080), b"works");
    pair.near.kill9();
    let capture = Capture::start(pair.lab.node(0));
    let sockets: Vec<(Socket, SocketAddr)> = both_families(&pair, 8080)
        .into_iter()
        .map(|to| {
            let socket = pair.client.ns.run(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&to.into());
                let _ = socket.set_mark(0);
                let _ = socket.bind_device(None);
                let _ = socket.bind_device(Some(b"eth0"));
                socket
            });
            (socket, to)
        })
        .collect();
    // The kernel sends the SYN again after 1 s and after 3 s.
    never("a connection succeeded without an agent", Duration::from_millis(3500), || {
        sockets.iter().find_map(|(socket, to)| socket.peer_addr().is_ok().then_some(to))
    });
    for (mut socket, _) in sockets {
        let _ = socket.write_all(CANARY.as_bytes());
    }
    assert_clean(capture);
}

#[test]
fn dissolving_the_association_and_connecting_anew() {
    let mut outside = None;
    let pair = Pair::with(&[], |lab| outside = Some(lab.stranger(1, "outside")));
    let outside = outside.unwrap();
    let (_echo, plain) = (pair.echo(8080), Server::echo(&outside.ns, any(8080)));
    let reuse = |first: SocketAddr, second: SocketAddr| {
        pair.client.ns.run(|| {
            let socket = Socket::new(Domain::for_address(first), Type::STREAM, Some(Protocol::TCP))?;
            socket.connect_timeout(&first.into(), Duration::from_secs(5))?;
            rustix::net::connect_unspec(&socket)?;
            socket.connect_timeout(&second.into(), Duration::from_secs(5))?;
            prepare(socket.into())
        })
    };
    let capture = Capture::start(pair.lab.node(0));
    for (mesh, open) in [(pair.server.at(8080), outside.at(8080)), (pair.server.at6(8080), outside.at6(8080))] {
        let mut captured = reuse(open, mesh).unwrap();
        assert_eq!(ping_pong(&mut captured, CANARY.as_bytes()).unwrap(), CANARY.as_bytes(), "outside, then captured");
        let mut captured = reuse(mesh, mesh).unwrap();
        assert_eq!(ping_pong(&mut captured, CANARY.as_bytes()).unwrap(), CANARY.as_bytes(), "captured twice");
        let mut free = reuse(mesh, open).unwrap();
        assert_eq!(ping_pong(&mut free, b"OPEN").unwrap(), b"OPEN", "captured, then outside");
    }
    let packets = capture.stop();
    packets.assert_absent(CANARY.as_bytes());
    packets.assert_present(b"OPEN");
    assert!(
        packets
            .syns_to(8080)
            .iter()
            .all(|syn| syn.destination.ip() == outside.v4() || syn.destination.ip() == outside.v6())
    );
    assert_eq!(plain.peers().len(), 4);
}

#[test]
fn a_forged_source_on_the_loopback_gets_no_identity() {
    let mut victim = None;
    let pair = Pair::with(&[], |lab| {
        victim = Some(lab.pod(0, "victim"));
        let principal = "principals: [\"cluster.local/ns/prod/sa/victim\"]";
        lab.manifest.set_policy(
            "victim-only",
            "server",
            "ALLOW",
            &format!("[{{from: [{{source: {{{principal}}}}}]}}]"),
        );
    });
    let victim = victim.unwrap();
    let (echo, probe) = (pair.echo(8080), Probe::new(&pair.lab));
    assert_echo(&victim.ns, pair.server.at(8080), b"the victim may");
    let capture = Capture::start(pair.lab.node(0));
    for (source, to) in [(victim.at(0), pair.server.at(8080)), (victim.at6(0), pair.server.at6(8080))] {
        for mark in ["mark=1399", "mark=0"] {
            let options =
                [format!("source={source}"), mark.to_owned(), "transparent=1".to_owned(), "device=lo".to_owned()];
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let said = User::RootWithNetRaw.probe(&probe, &pair.client.ns, to, CANARY, &options);
            assert!(said.contains("failed"), "a forged {source} was served: {said}");
        }
    }
    assert_clean(capture);
    assert_eq!(echo.peers().len(), 1, "only the victim itself was let in");
}

/// Everything that listens in the client pod: nothing but the agent does.
fn listeners(pair: &Pair) -> Vec<SocketAddr> {
    let table = pair.client.ns.check("ss", &["-Hltn"]);
    table.lines().map(|line| line.split_whitespace().nth(3).unwrap().parse().unwrap()).collect()
}

#[test]
fn the_agents_listeners_can_be_neither_dialled_nor_joined() {
    let pair = Pair::start();
    let echo = pair.echo(8080);
    let listeners = listeners(&pair);
    assert!(!listeners.is_empty(), "the agent listens in the pod");
    let capture = Capture::start(pair.lab.node(0));
    let mut stolen = Vec::new();
    for at in &listeners {
        let answer = exchange(&pair.client.ns, *at, CANARY.as_bytes());
        assert!(answer.as_ref().map_or(true, Vec::is_empty), "{at} answered {answer:?}");
        stolen.extend(join(&pair, *at));
        let wildcard = if at.is_ipv4() { SocketAddr::from(([0, 0, 0, 0], at.port())) } else { any(at.port()) };
        stolen.extend(join(&pair, wildcard));
        // From outside the pod as well.
        let _ = exchange(&pair.server.ns, SocketAddr::new(pair.client.v4(), at.port()), b"no TLS");
    }
    for _ in 0..20 {
        assert_echo(&pair.client.ns, pair.server.at(8080), CANARY.as_bytes());
    }
    assert!(stolen.iter().all(|thief| thief.accept().is_err()), "a second listener got a captured connection");
    assert_eq!(echo.peers().len(), 20);
    assert_clean(capture);
}

/// Tries to listen beside the agent, as root, with every option that lets sockets share a port.
fn join(pair: &Pair, at: SocketAddr) -> Option<TcpListener> {
    pair.client.ns.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).ok()?;
        socket.set_reuse_address(true).ok()?;
        socket.set_reuse_port(true).ok()?;
        socket.bind(&at.into()).ok()?;
        socket.listen(16).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(socket.into())
    })
}

#[test]
fn a_listener_of_the_pod_gets_no_captured_connection() {
    let pair = Pair::start();
    let (echo, own) = (pair.echo(8080), Server::echo(&pair.client.ns, any(8080)));
    let hbone = Server::echo(&pair.server.ns, pair.server.at(15008));
    for to in both_families(&pair, 8080) {
        assert_echo(&pair.client.ns, to, b"to the server, not to my own wildcard listener");
    }
    assert_eq!((echo.peers().len(), own.peers().len(), hbone.peers().len()), (2, 0, 0));
}

/// Rules of one family that a fresh namespace does not have, as arguments for `ip rule add` and `del`.
fn rules(pair: &Pair, family: &str) -> Vec<Vec<String>> {
    let text = pair.client.ns.check("ip", &[family, "rule"]);
    let spec = |line: &str| {
        let (pref, rest) = line.split_once(':')?;
        let words = rest.split_whitespace().map(str::to_owned);
        Some(["pref".to_owned(), pref.to_owned()].into_iter().chain(words).collect())
    };
    text.lines().filter_map(spec).collect()
}

#[test]
fn each_rule_deleted_in_turn() {
    // The auditor would put them back too soon to see anything.
    let pair = Pair::with(&[("--audit-interval", "120s")], |_| {});
    let (_echo, probe) = (pair.echo(8080), Probe::new(&pair.lab));
    let capture = Capture::start(pair.lab.node(0));
    let mut deleted = 0;
    for (family, to) in [("-4", pair.server.at(8080)), ("-6", pair.server.at6(8080))] {
        let present = rules(&pair, family);
        assert!(present.len() > 3, "capture has rules of its own: {present:?}");
        for rule in present {
            let words: Vec<&str> = rule.iter().map(String::as_str).collect();
            pair.client.ns.check("ip", &[&[family, "rule", "del"], &words[..]].concat());
            User::Nobody.probe(&probe, &pair.client.ns, to, CANARY, &[]);
            User::RootWithNetRaw.probe(&probe, &pair.client.ns, to, CANARY, &["device=eth0"]);
            pair.client.ns.check("ip", &[&[family, "rule", "add"], &words[..]].concat());
            deleted += 1;
        }
        eventually("all rules are back and traffic flows", Duration::from_secs(5), || {
            exchange(&pair.client.ns, to, b"again").ok()
        });
    }
    assert!(deleted >= 8);
    assert_clean(capture);
}

#[test]
fn the_auditor_restores_rules_routes_and_sysctls() {
    let pair = Pair::with(&[("--audit-interval", "1s")], |_| {});
    let _echo = pair.echo(8080);
    let state = || {
        ["-4", "-6"].map(|family| {
            let routes = pair.client.ns.check("ip", &[family, "route", "show", "table", "15577"]);
            (pair.client.ns.check("ip", &[family, "rule"]), routes)
        })
    };
    let before = state();
    let accept = "/proc/sys/net/ipv4/tcp_fwmark_accept";
    assert_eq!(pair.client.ns.read(accept).trim(), "1");
    for family in ["-4", "-6"] {
        for rule in rules(&pair, family).iter().filter(|rule| rule.iter().any(|word| word == "fwmark")) {
            let words: Vec<&str> = rule.iter().map(String::as_str).collect();
            pair.client.ns.check("ip", &[&[family, "rule", "del"], &words[..]].concat());
        }
        pair.client.ns.check("ip", &[family, "route", "flush", "table", "15577"]);
    }
    pair.client.ns.set_sysctl("net/ipv4/tcp_fwmark_accept", "0");
    assert_ne!(before, state());
    eventually("the auditor puts everything back", Duration::from_secs(10), || {
        (state() == before && pair.client.ns.read(accept).trim() == "1").then_some(())
    });
    assert_echo(&pair.client.ns, pair.server.at(8080), b"restored");
    assert_echo(&pair.client.ns, pair.server.at6(8080), b"restored");
    let status = pair.near.status();
    let findings = status["findings"].as_array().unwrap();
    assert!(!findings.is_empty() && findings.iter().all(|finding| finding["repaired"] == true), "{findings:#?}");
}

#[test]
fn a_refused_connection_is_given_to_nobody_else_in_the_pod() {
    let pair = Pair::start();
    let own = Server::echo(&pair.client.ns, any(9));
    let error = exchange(&pair.client.ns, pair.server.at(9), CANARY.as_bytes()).unwrap_err();
    assert!(warren_test_support::client::is_reset(&error));
    let mut inside: TcpStream = connect(&pair.client.ns, "127.0.0.1:9".parse().unwrap()).unwrap();
    inside.write_all(b"mine").unwrap();
    inside.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(own.peers().len(), 1, "only the pod's own call");
}
