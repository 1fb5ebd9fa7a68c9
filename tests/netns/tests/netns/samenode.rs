//! Two pods of one node: the kernel carries their connections from socket to socket, past whatever they share.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use serde_json::Value;
use warren_test_support::client::{
    assert_echo, assert_refused, check_pattern, connect, exchange, finish_exchange, is_reset, ping_pong, prepare,
    send_pattern, wait_cut,
};
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::manifest::PodDocument;
use warren_test_support::packet::Packet;
use warren_test_support::spy::{Segment, mac_of};
use warren_test_support::wait::never;
use warren_test_support::{Agent, Capture, Lab, Pod, Server, Spy, eventually};

use crate::dial;
use crate::fixture::{any, start_agent};
use crate::inspect::{exists, pinned};

const SOON: Duration = Duration::from_secs(10);

/// One bridged node with an agent, and two pods of the mesh that accept nothing in clear. Fields drop in this order.
pub(crate) struct Near {
    pub(crate) agent: Agent,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) lab: Lab,
}

impl Near {
    #[track_caller]
    pub(crate) fn with(flags: &[(&str, &str)], prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut lab = Lab::bridged();
        let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
        lab.manifest.set_mtls(None, "STRICT");
        prepare(&mut lab);
        lab.manifest.write();
        let agent = start_agent(&lab, 0, flags);
        Self { agent, client, server, lab }
    }

    #[track_caller]
    fn start() -> Self {
        Self::with(&[], |_| {})
    }

    /// With pods that the manifest does not mention.
    #[track_caller]
    fn start_with_strangers<const N: usize>(names: [&str; N]) -> (Self, [Pod; N]) {
        let mut strangers = None;
        let world = Self::with(&[], |lab| strangers = Some(names.map(|name| lab.stranger(0, name))));
        (world, strangers.expect("made"))
    }

    /// Connects until a connection takes the kernel path: the first ones ask for the verdict.
    #[track_caller]
    pub(crate) fn warm(&self, client: &Pod, to: SocketAddr) {
        eventually("connections take the kernel path", SOON, || {
            let stream = connect(&client.ns, to).expect("a connection");
            (self.route(stream) == "kernel").then_some(())
        });
    }

    /// Ends a connection to an echo server, and tells how it was carried.
    #[track_caller]
    fn route(&self, stream: TcpStream) -> String {
        let from = stream.local_addr().expect("connected");
        finish_exchange(stream, b"").expect("a clean end");
        self.ended(from, "outbound")["route"].as_str().expect("a route").to_owned()
    }

    /// The audit event that an end of a connection left.
    #[track_caller]
    pub(crate) fn ended(&self, from: SocketAddr, direction: &str) -> Value {
        self.agent.wait_audit("the end of a connection", |event| {
            event["direction"] == direction && event["source"]["address"] == from.to_string()
        })
    }

    #[track_caller]
    fn apply(&self) {
        self.lab.apply(&[&self.agent]);
    }

    /// The kernel's own word on how many connections took the kernel path.
    pub(crate) fn admitted(&self) -> f64 {
        self.agent.metric("warren_kernel_admitted", &[])
    }
}

/// Only this one may connect to the server.
fn only(world: &mut Lab, service_account: &str) {
    let rule = format!("[{{from: [{{source: {{principals: [\"{TRUST_DOMAIN}/ns/prod/sa/{service_account}\"]}}}}]}}]");
    world.manifest.set_policy("only", "server", "ALLOW", &rule);
}

#[test]
fn connections_within_a_node_take_the_kernel_path_and_are_known() {
    let world = Near::start();
    let echo = Server::echo(&world.server.ns, any(8080));
    assert_echo(&world.client.ns, world.server.at(8080), b"the first goes through the agent");
    for to in [world.server.at(8080), world.server.at6(8080)] {
        world.warm(&world.client, to);
        let capture = Capture::start(world.lab.node(0));
        let mut stream = connect(&world.client.ns, to).unwrap();
        let from = stream.local_addr().unwrap();
        assert_eq!(ping_pong(&mut stream, b"12345").unwrap(), b"12345");
        assert_eq!(echo.peers().last().unwrap().port(), from.port(), "the application sees its client");
        let status = world.agent.wait_status("both ends are listed", |status| {
            let of = |one: &&Value| one["source"] == from.to_string() && one["transport"] == "kernel";
            status["connections"].as_array().unwrap().iter().filter(of).count() == 2
        });
        assert!(status.to_string().contains(&world.client.identity()), "{status:#}");
        finish_exchange(stream, b"").unwrap();
        assert!(capture.stop().syns_to(15008).is_empty(), "no tunnel");
        for direction in ["outbound", "inbound"] {
            let event = world.ended(from, direction);
            assert_eq!((&event["route"], &event["mtls"]), (&"kernel".into(), &false.into()), "{event:#}");
            assert_eq!(event["authenticated_by"], "kernel");
            assert_eq!(event["source_identity"], world.client.identity());
            assert_eq!(event["destination_identity"], world.server.identity());
            assert_eq!((&event["decision"], &event["response_flags"]), (&"ALLOW".into(), &"-".into()));
            assert_eq!((&event["bytes_sent"], &event["bytes_received"]), (&5.into(), &5.into()), "{event:#}");
        }
        assert_eq!(world.ended(from, "inbound")["policy"], "default-allow");
    }
    for reporter in ["source", "destination"] {
        let labels =
            [&format!("reporter=\"{reporter}\"")[..], &format!("source_principal=\"{}\"", world.client.identity())];
        assert!(world.agent.metric("istio_tcp_connections_closed_total", &labels) >= 2.0);
        assert!(world.agent.metric("istio_tcp_received_bytes_total", &labels) >= 10.0);
    }
}

#[test]
fn the_kernel_path_can_be_switched_off() {
    let world = Near::with(&[("--same-node", "tunnel")], |_| {});
    let _echo = Server::echo(&world.server.ns, any(8080));
    for _ in 0..5 {
        let stream = connect(&world.client.ns, world.server.at(8080)).unwrap();
        assert_eq!(world.route(stream), "tunnel");
    }
}

#[test]
fn bytes_arrive_as_they_were_sent_and_ends_are_ends() {
    const LENGTH: u64 = 64 << 20;
    let world = Near::start();
    let sink = |mut stream: TcpStream| {
        std::thread::sleep(Duration::from_millis(300));
        let got = check_pattern(&mut stream).unwrap_or(0);
        // The client has ended its half and hears the answer all the same.
        let _ = stream.write_all(&got.to_le_bytes());
    };
    let _echo = Server::echo(&world.server.ns, any(8080));
    let _sink = Server::start(&world.server.ns, any(8081), sink);
    let _source = Server::start(&world.server.ns, any(8082), |mut stream| drop(send_pattern(&mut stream, LENGTH)));
    let _rude = Server::start(&world.server.ns, any(8083), |stream| {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    for ip in [world.server.v4(), world.server.v6()] {
        world.warm(&world.client, SocketAddr::new(ip, 8080));
        for port in [8081, 8082, 8083] {
            // Asks for the verdict, until it is there.
            eventually("the kernel has a verdict", SOON, || {
                let before = world.admitted();
                drop(connect(&world.client.ns, SocketAddr::new(ip, port)));
                std::thread::sleep(Duration::from_millis(50));
                (world.admitted() > before).then_some(())
            });
        }
        let before = world.admitted();
        let mut up = connect(&world.client.ns, SocketAddr::new(ip, 8081)).unwrap();
        send_pattern(&mut up, LENGTH).unwrap();
        up.shutdown(Shutdown::Write).unwrap();
        let mut got = [0; 8];
        up.read_exact(&mut got).unwrap();
        assert_eq!(u64::from_le_bytes(got), LENGTH);
        let mut down = connect(&world.client.ns, SocketAddr::new(ip, 8082)).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(check_pattern(&mut down).unwrap(), LENGTH);
        let cut = connect(&world.client.ns, SocketAddr::new(ip, 8083));
        let cut = cut.map(|mut stream| wait_cut(&mut stream, SOON).expect("a reset stays one"));
        assert!(is_reset(&cut.unwrap_or_else(|error| error)));
        let closed = exchange(&world.client.ns, SocketAddr::new(ip, 9), b"").unwrap_err();
        assert!(is_reset(&closed), "nobody listens: {closed}");
        eventually("all three took the kernel path", SOON, || (world.admitted() >= before + 3.0).then_some(()));
    }
    let dropped = world.agent.metric("warren_kernel_wire_dropped", &[]);
    assert_eq!(dropped, 2.0, "nothing but the self-test's frame of each pod");
}

#[test]
fn every_way_to_connect_is_admitted_or_carried() {
    let world = Near::start();
    let echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let own = SocketAddr::new(world.client.v4(), 0);
    let mapped = SocketAddr::new(format!("::ffff:{}", world.server.v4()).parse().unwrap(), 8080);
    let ways: [(&str, &(dyn Fn() -> std::io::Result<TcpStream> + Sync)); 5] = [
        ("nonblocking", &|| dial::nonblocking(to)),
        ("bound", &|| dial::bound(own, to)),
        ("deferred", &|| dial::deferred(to)),
        ("multipath", &|| dial::multipath(to)),
        ("mapped", &|| TcpStream::connect(mapped)),
    ];
    for (name, way) in ways {
        let stream = world.client.ns.run(way).and_then(prepare).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(finish_exchange(stream, name.as_bytes()).unwrap(), name.as_bytes());
    }
    assert!(echo.peer_ips().iter().all(|ip| *ip == world.client.v4()));
}

#[test]
fn the_agents_dials_and_admitted_connections_may_have_the_same_ports() {
    // The agent's first ones, of which it has used a few for what asked for the verdict.
    const PORTS: RangeInclusive<u16> = 1024..=1055;
    let vip = "10.96.0.10".parse().unwrap();
    let world = Near::with(&[], |lab| lab.manifest.set_service("shop", "server", &[vip], &[(80, 8080)]));
    let echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let admitted = || -> Vec<TcpStream> {
        let own = PORTS.map(|port| SocketAddr::new(world.client.v4(), port));
        own.map(|own| world.client.ns.run(|| reuse(own, to)).and_then(prepare).expect("admitted")).collect()
    };
    let carried = || -> Vec<TcpStream> {
        (0..8).map(|_| connect(&world.client.ns, SocketAddr::new(vip, 80)).expect("carried")).collect()
    };
    // Whoever comes first.
    for admitted_first in [true, false] {
        let before = world.admitted();
        let mut streams: Vec<_> = if admitted_first { [admitted(), carried()] } else { [carried(), admitted()] }
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(world.admitted() - before, PORTS.len() as f64);
        for _ in 0..3 {
            for (number, stream) in streams.iter_mut().enumerate() {
                let message = [u8::try_from(number).unwrap(); 100];
                let answer = ping_pong(stream, &message).expect("an answer");
                assert_eq!(answer, message, "number {number}, admitted first: {admitted_first}");
            }
        }
        let clients = echo.peers();
        let same: BTreeSet<SocketAddr> = clients[clients.len() - streams.len()..].iter().copied().collect();
        assert!(same.len() < streams.len(), "no two had the same port: {clients:?}");
        for stream in streams {
            finish_exchange(stream, b"").unwrap();
        }
    }
}

#[test]
fn captured_and_admitted_connections_may_have_the_same_port() {
    const PORT: u16 = 40_000;
    let world = Near::start();
    let _echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    // Its kernel has no other to choose.
    world.client.ns.set_sysctl("net/ipv4/ip_local_port_range", &format!("{PORT} {PORT}"));
    let mut captured = connect(&world.client.ns, to).unwrap();
    assert_eq!(captured.local_addr().unwrap().port(), PORT);
    let mut admitted = eventually("a connection takes the kernel path from the same port", SOON, || {
        let before = world.admitted();
        let stream = connect(&world.client.ns, to).ok()?;
        (world.admitted() > before).then_some(stream)
    });
    assert_eq!(admitted.local_addr().unwrap().port(), PORT);
    for _ in 0..3 {
        assert_eq!(ping_pong(&mut captured, b"captured").unwrap(), b"captured");
        assert_eq!(ping_pong(&mut admitted, b"admitted").unwrap(), b"admitted");
    }
    assert_eq!(world.route(admitted), "kernel");
    finish_exchange(captured, b"").unwrap();
}

/// Tells a pod that `claimed` is here until it believes it.
#[track_caller]
fn lie(liar: &Spy, (pod, ip): (&Pod, IpAddr), claimed: IpAddr) {
    let mac = liar.mac().map(|byte| format!("{byte:02x}")).join(":");
    eventually("the lie is believed", SOON, || {
        liar.claim((ip, mac_of(&pod.ns)), claimed);
        pod.ns.check("ip", &["neigh", "show", &claimed.to_string()]).contains(&mac).then_some(())
    });
}

#[test]
fn a_neighbour_that_lies_about_addresses_reads_nothing() {
    let (world, [spy, alice, bob]) = Near::start_with_strangers(["spy", "alice", "bob"]);
    let _echo = Server::echo(&world.server.ns, any(8080));
    let _plain = Server::echo(&bob.ns, any(8080));
    let liar = Spy::new(&spy.ns);
    for v4 in [true, false] {
        let of = |pod: &Pod| if v4 { pod.v4() } else { pod.v6() };
        // The control: told to pods that talk in clear, the same lie brings their bytes here.
        let mut plain = connect(&alice.ns, SocketAddr::new(of(&bob), 8080)).unwrap();
        assert_eq!(ping_pong(&mut plain, b"before").unwrap(), b"before");
        lie(&liar, (&alice, of(&alice)), of(&bob));
        plain.write_all(b"CANARY-plain").unwrap();
        assert!(liar.reads(b"CANARY-plain", SOON), "a spy that reads nothing proves nothing");

        let to = SocketAddr::new(of(&world.server), 8080);
        world.warm(&world.client, to);
        let mut old = connect(&world.client.ns, to).unwrap();
        assert_eq!(ping_pong(&mut old, b"before").unwrap(), b"before");
        lie(&liar, (&world.client, of(&world.client)), of(&world.server));
        lie(&liar, (&world.server, of(&world.server)), of(&world.client));
        let mut new = connect(&world.client.ns, to).unwrap();
        for stream in [&mut old, &mut new] {
            assert_eq!(ping_pong(stream, b"CANARY-near").unwrap(), b"CANARY-near", "and it harms nobody");
        }
        assert!(!liar.reads(b"CANARY-near", Duration::from_millis(300)));
        assert_eq!([world.route(old), world.route(new)], ["kernel", "kernel"]);
    }
}

/// What the last segment of a connection that the server's side saw would be followed by: as seen on the node.
pub(crate) fn next_segment(packets: &[Packet], from: SocketAddr, to: SocketAddr) -> (u32, u32) {
    let end = |from: SocketAddr, to: SocketAddr| {
        let of = packets.iter().filter(|packet| packet.source == from && packet.destination == to);
        of.map(|packet| {
            let syn = u32::from(packet.flags & 0x02 != 0);
            packet.sequence.wrapping_add(u32::try_from(packet.payload.len()).unwrap()).wrapping_add(syn)
        })
        .next_back()
    };
    (end(from, to).expect("the connection was seen"), end(to, from).expect("its answers, too"))
}

#[test]
fn a_forged_segment_of_an_admitted_connection_is_dropped() {
    let (world, [spy, alice, bob]) = Near::start_with_strangers(["spy", "alice", "bob"]);
    let forger = Spy::new(&spy.ns);
    // Each server tells what it reads.
    let (tell, heard) = std::sync::mpsc::channel();
    let listen = move |mut stream: TcpStream| {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let _ = tell.send(buffer[..length].to_vec());
            let _ = stream.write_all(b"ok");
        }
    };
    let _plain = Server::start(&bob.ns, any(8080), listen.clone());
    let _near = Server::start(&world.server.ns, any(8080), listen);
    for v4 in [true, false] {
        let of = |pod: &Pod| if v4 { pod.v4() } else { pod.v6() };
        for (client, server, believed) in [(&alice, &bob, true), (&world.client, &world.server, false)] {
            let to = SocketAddr::new(of(server), 8080);
            if !believed {
                world.warm(client, to);
            }
            let capture = Capture::start(world.lab.node(0));
            let mut stream = connect(&client.ns, to).unwrap();
            let from = stream.local_addr().unwrap();
            stream.write_all(b"hello").unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
            assert_eq!(heard.recv_timeout(SOON).unwrap(), b"hello");
            std::thread::sleep(Duration::from_millis(100));
            let (sequence, acknowledged) = next_segment(&capture.stop().0, from, to);
            let forged = Segment { from, to, sequence, acknowledged, flags: 0x18, payload: b"forged" };
            forger.forge(mac_of(&server.ns), &forged);
            if believed {
                assert_eq!(heard.recv_timeout(SOON).unwrap(), b"forged", "the control: in clear a forgery is believed");
                continue;
            }
            if let (IpAddr::V6(_), frame) = (to.ip(), forger.segment(mac_of(&server.ns), &forged)) {
                forger.send(&behind_options(&frame));
            }
            forger.send(&tagged(&forger.segment(mac_of(&server.ns), &forged)));
            assert!(heard.recv_timeout(Duration::from_millis(500)).is_err(), "a forgery was believed");
            // Nor do a reset and the other direction.
            forger.forge(mac_of(&server.ns), &Segment { flags: 0x14, payload: b"", ..forged });
            let back = Segment { from: to, to: from, sequence: acknowledged, acknowledged: sequence, ..forged };
            forger.forge(mac_of(&client.ns), &Segment { flags: 0x14, payload: b"", ..back });
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(b"still").unwrap();
            assert_eq!(heard.recv_timeout(SOON).unwrap(), b"still");
        }
    }
    eventually("they were dropped", SOON, || {
        (world.agent.metric("warren_kernel_wire_dropped", &[]) >= 11.0).then_some(())
    });
}

/// The same IPv6 frame with an empty header of destination options before its payload.
fn behind_options(frame: &[u8]) -> Vec<u8> {
    let (mut head, body) = (frame[..54].to_vec(), &frame[54..]);
    let length = u16::from_be_bytes([head[18], head[19]]) + 8;
    head[18..20].copy_from_slice(&length.to_be_bytes());
    let next = std::mem::replace(&mut head[20], 60);
    [&head[..], &[next, 0, 1, 4, 0, 0, 0, 0], body].concat()
}

/// The same frame with a tag of priority alone, which a receiver ignores.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0x20, 0x00], &frame[12..]].concat()
}

#[test]
fn a_forged_syn_inherits_no_verdict() {
    let (world, [spy]) = Near::start_with_strangers(["spy"]);
    let forger = Spy::new(&spy.ns);
    let echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let mut open = connect(&world.client.ns, to).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    let from = open.local_addr().unwrap();
    let accepted = echo.peers().len();
    for port in [from.port(), from.port() ^ 1, 4242] {
        let from = SocketAddr::new(from.ip(), port);
        let syn = Segment { from, to, sequence: 7, acknowledged: 0, flags: 0x02, payload: b"" };
        forger.forge(mac_of(&world.server.ns), &syn);
    }
    std::thread::sleep(Duration::from_millis(300));
    let _ = forger.packets();
    never("a forged SYN was accepted", Duration::from_millis(300), || (echo.peers().len() > accepted).then_some(()));
    assert_eq!(world.route(open), "kernel");
}

#[test]
fn neither_port_nor_address_nor_service_account_inherits_a_verdict() {
    let mut twin = None;
    let mut world = Near::with(&[], |lab| {
        let twin = twin.insert(lab.pod(0, "twin"));
        lab.manifest.set_pod(&PodDocument { service_account: "client".to_owned(), ..twin.document.clone() });
        let rule = "[{from: [{source: {ipBlocks: [\"10.10.0.1\"]}}], to: [{operation: {ports: [\"8080\"]}}]}]";
        lab.manifest.set_policy("by-address", "server", "ALLOW", rule);
    });
    let twin = twin.unwrap();
    assert_eq!(world.client.v4().to_string(), "10.10.0.1");
    let (echo, _other) = (Server::echo(&world.server.ns, any(8080)), Server::echo(&world.server.ns, any(8081)));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    // The same identity at another address, and another port of the same pair.
    for _ in 0..3 {
        assert_refused(&twin.ns, to, b"twin");
        assert_refused(&world.client.ns, world.server.at(8081), b"another port");
        assert_refused(&world.client.ns, world.server.at6(8080), b"another address");
    }
    assert!(echo.peer_ips().iter().all(|ip| *ip == world.client.v4()));

    // The port of an admitted connection, used again when the verdict is gone.
    let own = SocketAddr::new(world.client.v4(), 33_333);
    let stream = world.client.ns.run(|| dial::bound(own, to)).and_then(prepare).unwrap();
    assert_eq!(world.route(stream), "kernel");
    world.lab.manifest.set_policy("by-address", "server", "ALLOW", "[{from: [{source: {ipBlocks: [\"10.10.9.9\"]}}]}]");
    world.apply();
    let accepted = echo.peers().len();
    let again = world.client.ns.run(|| reuse(own, to)).and_then(prepare);
    assert!(again.and_then(|stream| finish_exchange(stream, b"again")).is_err_and(|error| is_reset(&error)));
    assert_eq!(echo.peers().len(), accepted);
}

/// Connects from an address that a connection in TIME_WAIT may still stand on.
fn reuse(own: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[test]
fn a_pod_that_takes_over_an_address_inherits_no_verdict() {
    let world = Near::with(&[], |lab| only(lab, "client"));
    let echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    // The client is deleted, and somebody else gets its address and its path.
    let Near { agent, client, server: _server, mut lab } = world;
    let thief = lab.recreate(client);
    lab.manifest.set_pod(&PodDocument { service_account: "thief".to_owned(), ..thief.document.clone() });
    lab.apply(&[&agent]);
    let accepted = echo.peers().len();
    for _ in 0..3 {
        assert!(exchange(&thief.ns, to, b"thief").is_err_and(|error| is_reset(&error)));
    }
    assert_eq!(echo.peers().len(), accepted);
    drop(agent);
}

#[test]
fn a_policy_that_denies_ends_what_its_verdict_admitted() {
    let mut world = Near::start();
    let echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let mut open = connect(&world.client.ns, to).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    only(&mut world.lab, "somebody-else");
    world.apply();
    assert!(wait_cut(&mut open, SOON).is_some_and(|error| is_reset(&error)));
    let event = world.agent.wait_audit("the denial", |event| event["decision"] == "DENY");
    assert_eq!((&event["policy"], &event["route"]), (&"prod/only".into(), &"kernel".into()));
    assert_eq!(event["source_identity"], world.client.identity());
    let accepted = echo.peers().len();
    assert_refused(&world.client.ns, to, b"new");
    assert_eq!(echo.peers().len(), accepted);
    world.lab.manifest.remove("policy only");
    world.apply();
    world.warm(&world.client, to);
}

#[test]
fn another_identity_ends_what_the_old_one_was_admitted_for() {
    let mut world = Near::with(&[], |lab| only(lab, "client"));
    let _echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let mut open = connect(&world.client.ns, to).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    let other = PodDocument { service_account: "other".to_owned(), ..world.client.document.clone() };
    world.lab.manifest.set_pod(&other);
    world.apply();
    assert!(wait_cut(&mut open, SOON).is_some_and(|error| is_reset(&error)));
    assert_refused(&world.client.ns, to, b"new");
}

#[test]
fn admitted_connections_outlive_the_agent_and_are_judged_by_the_next() {
    let mut world = Near::with(&[("--away-wait", "3s")], |lab| only(lab, "client"));
    let _echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let mut open = connect(&world.client.ns, to).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    world.agent.kill9();
    assert_eq!(ping_pong(&mut open, b"2").unwrap(), b"2");
    // For a while the verdicts hold; then nobody could withdraw them, and none is good.
    assert_echo(&world.client.ns, to, b"the verdict holds");
    let start = Instant::now();
    eventually("new connections are refused", SOON, || {
        exchange(&world.client.ns, to, b"x").is_err_and(|error| is_reset(&error)).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(6));
    assert_eq!(ping_pong(&mut open, b"3").unwrap(), b"3");
    world.agent.start();
    assert_eq!(ping_pong(&mut open, b"4").unwrap(), b"4");
    let from = open.local_addr().unwrap().to_string();
    world.agent.wait_status("both ends are known to the next agent", |status| {
        let of = |one: &&Value| one["source"] == from && one["transport"] == "kernel";
        status["connections"].as_array().unwrap().iter().filter(of).count() == 2
    });
    world.warm(&world.client, to);
    only(&mut world.lab, "somebody-else");
    world.apply();
    assert!(wait_cut(&mut open, SOON).is_some_and(|error| is_reset(&error)));
}

#[test]
fn a_pod_with_two_interfaces_goes_through_the_agent() {
    let world = Near::start();
    let _echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    world.client.ns.check("ip", &["link", "add", "extra", "type", "veth", "peer", "name", "other"]);
    world.client.ns.check("ip", &["link", "set", "extra", "up"]);
    eventually("it is noticed", SOON, || {
        let stream = connect(&world.client.ns, to).expect("a connection");
        (world.route(stream) == "tunnel").then_some(())
    });
}

#[test]
fn a_pod_that_leaves_takes_its_admitted_connections_along() {
    let mut world = Near::start();
    let _echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let mut open = connect(&world.client.ns, to).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    // The namespace lives on, and could talk on in clear.
    world.lab.manifest.remove("pod client");
    let capture = Capture::start(world.lab.node(0));
    world.apply();
    assert!(wait_cut(&mut open, SOON).is_some_and(|error| is_reset(&error)));
    assert_refused(&world.client.ns, to, b"CANARY-left");
    capture.stop().assert_absent(b"CANARY-left");
}

#[test]
fn a_cleanup_ends_admitted_connections_and_leaves_nothing_on_links() {
    let mut world = Near::start();
    let _echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    world.warm(&world.client, to);
    let mut open = connect(&world.client.ns, to).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    let links = pinned("link", world.agent.node());
    let wires = std::path::Path::new("/sys/fs/bpf/warren").join(world.agent.node()).join("v3/wires");
    assert_eq!(std::fs::read_dir(&wires).unwrap().count(), 2 * 2, "two programs on the link of each pod");
    world.agent.stop();
    assert_eq!(ping_pong(&mut open, b"2").unwrap(), b"2", "a stopped agent does not end them");
    let done = world.agent.cleanup();
    assert!(done.status.success(), "{}", warren_test_support::command::text(&done));
    assert!(wait_cut(&mut open, SOON).is_some_and(|error| is_reset(&error)));
    eventually("no link is left", SOON, || (!links.iter().any(|id| exists("link", *id))).then_some(()));
    assert_echo(&world.client.ns, to, b"as if nothing had been");
}
