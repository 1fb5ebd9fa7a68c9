//! Captured connections between two nodes: what an application can see must be as without Warren, and what crosses
//! the wire must be TLS.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use warren_test_support::client::{
    IO_LIMIT, assert_echo, check_pattern, connect, exchange, is_reset, ping_pong, prepare, send_pattern, wait_cut,
};
use warren_test_support::lab::Family;
use warren_test_support::{Capture, Server, eventually};

use crate::dial;
use crate::fixture::{Pair, Single, any};

#[test]
fn all_families_travel_in_tunnels_and_the_application_sees_the_client() {
    let pair = Pair::start();
    let echo = pair.echo(8080);
    let capture = Capture::start(pair.lab.node(0));
    let mapped = match pair.server.v4() {
        IpAddr::V4(ip) => SocketAddr::from((ip.to_ipv6_mapped(), 8080)),
        IpAddr::V6(_) => unreachable!("v4()"),
    };
    for (to, canary) in [(pair.server.at(8080), "CANARY-4"), (pair.server.at6(8080), "CANARY-6"), (mapped, "CANARY-M")]
    {
        let mut stream = connect(&pair.client.ns, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to, "getpeername is what was dialled");
        assert_eq!(ping_pong(&mut stream, canary.as_bytes()).unwrap(), canary.as_bytes());
    }
    let packets = capture.stop();
    for canary in ["CANARY-4", "CANARY-6", "CANARY-M"] {
        packets.assert_absent(canary.as_bytes());
    }
    assert!(packets.assert_only_tls() > 1000, "tunnels were seen");
    assert_eq!(echo.peer_ips(), [pair.client.v4(), pair.client.v6(), pair.client.v4()]);
}

#[test]
fn every_size_arrives_byte_exact_both_ways() {
    let pair = Pair::start();
    let _echo = pair.echo(8080);
    for size in [0, 1, 2, 1000, 16 * 1024, 65_536, 1_048_577, 64 << 20] {
        let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sender =
            std::thread::spawn(move || send_pattern(&mut writer, size).and_then(|()| writer.shutdown(Shutdown::Write)));
        assert_eq!(check_pattern(&mut stream).unwrap(), size);
        sender.join().unwrap().unwrap();
    }
}

#[test]
fn either_side_may_end_its_half_first() {
    let pair = Pair::start();
    let _late = Server::start(&pair.server.ns, any(8080), |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("after your end: {}", all.len()).as_bytes()).unwrap();
    });
    let (ended, server_saw) = mpsc::channel();
    let _early = Server::start(&pair.server.ns, any(8081), move |mut stream| {
        stream.write_all(b"all I have").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        let _ = ended.send(stream.read_to_end(&mut all).map(|_| all));
    });
    let answer = exchange(&pair.client.ns, pair.server.at(8080), b"12345").unwrap();
    assert_eq!(answer, b"after your end: 5");

    let mut stream = connect(&pair.client.ns, pair.server.at(8081)).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"all I have");
    stream.write_all(b"said after the server's end").unwrap();
    drop(stream);
    assert_eq!(server_saw.recv_timeout(IO_LIMIT).unwrap().unwrap(), b"said after the server's end");
}

#[test]
fn a_reset_from_either_side_arrives_as_a_reset() {
    let pair = Pair::start();
    let (report, server_saw) = mpsc::channel();
    let _server = Server::start(&pair.server.ns, any(8080), move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"R" {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        } else {
            stream.write_all(b"+").unwrap();
            let _ = report.send(stream.read(&mut byte));
        }
    });
    let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    stream.write_all(b"R").unwrap();
    let error = wait_cut(&mut stream, Duration::from_secs(5)).expect("a reset, not a clean end");
    assert!(is_reset(&error), "{error}");

    let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut stream, b"C").unwrap(), b"+");
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let error = server_saw.recv_timeout(IO_LIMIT).unwrap().expect_err("a reset, not a clean end");
    assert!(is_reset(&error), "{error}");
}

#[test]
fn a_slow_reader_stops_its_writer_and_fills_no_agent() {
    const TOTAL: u64 = 192 << 20;
    let pair = Pair::start();
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (report, server_saw) = mpsc::channel();
    let _server = Server::start(&pair.server.ns, any(8080), move |mut stream| {
        let _ = wait.lock().unwrap().recv();
        let _ = report.send(check_pattern(&mut stream));
    });
    let _echo = pair.echo(8081);
    assert_echo(&pair.client.ns, pair.server.at(8081), b"warm");
    let before = [pair.near.rss(), pair.far.rss()];

    let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut sent = 0;
    let mut chunk = vec![0; 64 * 1024];
    let stalled = loop {
        warren_test_support::client::pattern(sent, &mut chunk);
        match stream.write(&chunk) {
            Ok(n) => sent += n as u64,
            Err(e) => break e,
        }
        assert!(sent < TOTAL, "the writer was never stopped");
    };
    assert_eq!(stalled.kind(), std::io::ErrorKind::WouldBlock, "{stalled}");
    for (agent, before) in [&pair.near, &pair.far].into_iter().zip(before) {
        let growth = agent.rss().saturating_sub(before);
        assert!(growth < 32 << 20, "{} grew by {growth} bytes for one slow reader", agent.node());
    }
    // Others go on meanwhile, in the same tunnel.
    assert_echo(&pair.client.ns, pair.server.at(8081), b"not starved");

    go.send(()).unwrap();
    stream.set_write_timeout(Some(IO_LIMIT)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server_saw.recv_timeout(IO_LIMIT).unwrap().unwrap(), sent);
}

#[test]
fn several_slow_readers_do_not_shut_others_out() {
    let pair = Pair::start();
    let _echo = pair.echo(8081);
    // They accept, and never read.
    let _deaf = Server::start(&pair.server.ns, any(8080), |stream| {
        std::thread::sleep(Duration::from_secs(30));
        drop(stream);
    });
    assert_echo(&pair.client.ns, pair.server.at(8081), b"warm");
    let before = [pair.near.rss(), pair.far.rss()];
    let chunk = vec![7; 256 * 1024];
    let fill = || {
        let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(400))).unwrap();
        while stream.write(&chunk).is_ok() {}
        stream
    };
    let stuck: Vec<TcpStream> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..12).map(|_| scope.spawn(fill)).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    for _ in 0..5 {
        assert_echo(&pair.client.ns, pair.server.at(8081), b"not starved");
    }
    for (agent, before) in [&pair.near, &pair.far].into_iter().zip(before) {
        let growth = agent.rss().saturating_sub(before);
        assert!(growth < 128 << 20, "{} grew by {growth} bytes for {} slow readers", agent.node(), stuck.len());
    }
}

#[test]
fn a_thousand_connections_at_once() {
    const COUNT: usize = 1000;
    let pair = Pair::start();
    let echo = pair.echo(8080);
    let to = pair.server.at(8080);
    // All are open before the first of them speaks.
    let streams: Vec<TcpStream> = pair.client.ns.run(|| {
        std::thread::scope(|scope| {
            let openers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(move || {
                        (0..COUNT / 8).map(|_| TcpStream::connect_timeout(&to, IO_LIMIT)).collect::<Result<Vec<_>, _>>()
                    })
                })
                .collect();
            openers.into_iter().flat_map(|opener| opener.join().unwrap().unwrap()).collect()
        })
    });
    let mut streams: Vec<TcpStream> = streams.into_iter().map(|stream| prepare(stream).unwrap()).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("{n:08}").as_bytes()).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("connection {n}: {e}"));
        assert_eq!(answer, format!("{n:08}").as_bytes());
    }
    assert_eq!(echo.peers().len(), COUNT);
    assert!(echo.peer_ips().iter().all(|ip| *ip == pair.client.v4()));
    drop(streams);
    for agent in [&pair.near, &pair.far] {
        agent.wait_status("all connections are gone", |status| {
            status["connections"].as_array().is_some_and(Vec::is_empty)
        });
    }
}

#[test]
fn many_streams_at_once_stay_byte_exact() {
    let pair = Pair::start();
    let _echo = pair.echo(8080);
    let transfers: Vec<_> = (0..24u64)
        .map(|n| {
            let mut stream = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
            std::thread::spawn(move || {
                let size = (n + 1) * 100_003;
                let mut writer = stream.try_clone()?;
                let sender = std::thread::spawn(move || {
                    send_pattern(&mut writer, size).and_then(|()| writer.shutdown(Shutdown::Write))
                });
                let got = check_pattern(&mut stream)?;
                sender.join().unwrap()?;
                Ok::<_, std::io::Error>((size, got))
            })
        })
        .collect();
    for transfer in transfers {
        let (sent, got) = transfer.join().unwrap().unwrap();
        assert_eq!(sent, got);
    }
}

#[test]
fn thousands_of_short_connections_run_out_of_nothing() {
    const EACH: usize = 1000;
    let pair = Pair::start();
    let echo = pair.echo(8080);
    let before = [pair.near.descriptors(), pair.far.descriptors()];
    std::thread::scope(|scope| {
        for to in [pair.server.at(8080), pair.server.at(8080), pair.server.at6(8080)] {
            let ns = &pair.client.ns;
            scope.spawn(move || (0..EACH).for_each(|n| assert_echo(ns, to, format!("number {n}").as_bytes())));
        }
    });
    assert_eq!(echo.peers().len(), 3 * EACH);
    for (agent, before) in [&pair.near, &pair.far].into_iter().zip(before) {
        eventually("descriptors are given back", IO_LIMIT, || (agent.descriptors() <= before + 8).then_some(()));
    }
}

#[test]
fn pods_of_one_family_and_of_one_node() {
    let mut pods = Vec::new();
    let pair = Pair::with(&[], |lab| {
        pods.push(lab.pod_of(0, "four", Family::V4, true));
        pods.push(lab.pod_of(0, "six", Family::V6, true));
    });
    let [four, six] = &pods[..] else { unreachable!("two pods") };
    let _echo = pair.echo(8080);
    let (_echo4, _echo6) = (Server::echo(&four.ns, four.at(8080)), Server::echo(&six.ns, six.at(8080)));
    let capture = Capture::start(pair.lab.node(0));
    assert_echo(&four.ns, pair.server.at(8080), b"CANARY-a");
    assert_echo(&six.ns, pair.server.at6(8080), b"CANARY-b");
    assert_echo(&pair.server.ns, four.at(8080), b"CANARY-c");
    assert_echo(&pair.server.ns, six.at(8080), b"CANARY-d");
    assert_echo(&pair.client.ns, four.at(8080), b"CANARY-e");
    assert_echo(&pair.client.ns, six.at(8080), b"CANARY-f");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();
}

#[test]
fn services_are_balanced_and_a_pod_may_meet_itself() {
    let mut second = None;
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    let vip6: IpAddr = "fd00:96::10".parse().unwrap();
    let pair = Pair::with(&[], |lab| {
        let mut pod = lab.pod(0, "second");
        pod.document.labels.insert("app".to_owned(), "server".to_owned());
        lab.manifest.set_pod(&pod.document);
        second = Some(pod);
        lab.manifest.set_service("shop", "server", &[vip, vip6], &[(80, 8080)]);
        lab.manifest.set_service("own", "client", &["10.96.0.11".parse().unwrap()], &[(80, 8080)]);
    });
    let second = second.unwrap();
    let (echo, echo2) = (pair.echo(8080), Server::echo(&second.ns, any(8080)));
    for _ in 0..40 {
        assert_echo(&pair.client.ns, SocketAddr::new(vip, 80), b"to the VIP");
    }
    assert_echo(&pair.client.ns, SocketAddr::new(vip6, 80), b"to the IPv6 VIP");
    let counts = (echo.peers().len(), echo2.peers().len());
    assert!(counts.0 >= 5 && counts.1 >= 5, "41 connections were spread {counts:?}");

    let own = Server::echo(&pair.client.ns, any(8080));
    for address in ["127.0.0.1:8080", "[::1]:8080", "10.96.0.11:80"] {
        assert_echo(&pair.client.ns, address.parse().unwrap(), b"to myself");
    }
    assert_echo(&pair.client.ns, pair.client.at(8080), b"by pod IP");
    assert_echo(&pair.client.ns, pair.client.at6(8080), b"by pod IP");
    assert_eq!(own.peers().len(), 5);
}

#[test]
fn what_cannot_be_reached_is_refused_at_once() {
    let pair = Pair::with(&[], |lab| {
        lab.manifest.set_service("empty", "nobody", &["10.96.0.20".parse().unwrap()], &[(80, 80)]);
        lab.manifest.set_service("shop", "server", &["10.96.0.21".parse().unwrap()], &[(80, 8080)]);
    });
    let capture = Capture::start(pair.lab.node(0));
    let targets = [
        (pair.server.at(9), "nothing listens there"),
        (pair.server.at6(9), "nothing listens there"),
        ("10.96.77.77:80".parse().unwrap(), "a VIP that no service has"),
        ("10.96.0.20:80".parse().unwrap(), "a service without endpoints"),
        ("10.96.0.21:81".parse().unwrap(), "a port that the service lacks"),
        (pair.server.at(15008), "a port of the mesh's own"),
    ];
    for (to, why) in targets {
        let start = Instant::now();
        let error = exchange(&pair.client.ns, to, b"CANARY-refused").expect_err(why);
        assert!(is_reset(&error), "{to}, {why}: {error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{to}, {why}: only after {:?}", start.elapsed());
    }
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-refused");
    packets.assert_only_tls();
    for vip in ["10.96.77.77:80", "10.96.0.20:80", "10.96.0.21:81"] {
        let event = pair.near.wait_audit(vip, |event| event["destination"]["address"] == vip);
        assert!(event["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{event:#}");
        assert_eq!(event["mtls"], false);
    }
}

#[test]
fn an_application_may_restart_on_its_port_while_captured_flows_are_open() {
    let pair = Pair::start();
    let listener = |port| {
        pair.server.ns.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            // No SO_REUSEADDR: not every application sets it.
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
            socket.listen(16)?;
            Ok::<std::net::TcpListener, std::io::Error>(socket.into())
        })
    };
    let first = listener(8080).unwrap();
    let mut flow = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    flow.write_all(b"x").unwrap();
    let (mut accepted, _) = first.accept().unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    drop(first);
    let second = listener(8080).expect("the port is free although a captured flow to it is open");
    let mut other = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    other.write_all(b"new").unwrap();
    let (mut fresh, _) = second.accept().unwrap();
    let mut text = [0; 3];
    fresh.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"new");
    flow.write_all(b"y").unwrap();
    accepted.read_exact(&mut [0]).expect("the old flow lives on");

    // A captured connection that happens to have local port 8081 takes it from no application.
    let _far = Server::echo(&pair.client.ns, any(8083));
    let outgoing = pair.server.ns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 8081)).into())?;
        socket.connect_timeout(&pair.client.at(8083).into(), IO_LIMIT)?;
        Ok::<TcpStream, std::io::Error>(socket.into())
    });
    let mut outgoing = prepare(outgoing.unwrap()).unwrap();
    assert_eq!(ping_pong(&mut outgoing, b"captured").unwrap(), b"captured");
    listener(8081).expect("an application's bind() succeeds beside a captured socket on that port");
    // The other end of a captured connection stands in the client's pod with the *server's* port as its own.
    let in_client = pair.client.ns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 8080)).into())?;
        socket.listen(1)
    });
    in_client.expect("bind(8080) in the pod that has a captured connection to some port 8080");
    drop(outgoing);
}

#[test]
fn a_client_that_dials_in_unusual_ways_is_served() {
    let pair = Pair::start();
    let echo = pair.echo(8080);
    let capture = Capture::start(pair.lab.node(0));
    for to in [pair.server.at(8080), pair.server.at6(8080)] {
        let mut stream = prepare(pair.client.ns.run(|| dial::nonblocking(to)).unwrap()).unwrap();
        assert_eq!(ping_pong(&mut stream, b"CANARY-nonblocking").unwrap(), b"CANARY-nonblocking");

        let own = SocketAddr::new(if to.is_ipv4() { pair.client.v4() } else { pair.client.v6() }, 4321);
        let mut stream = prepare(pair.client.ns.run(|| dial::bound(own, to)).unwrap()).unwrap();
        assert_eq!(ping_pong(&mut stream, b"CANARY-bound").unwrap(), b"CANARY-bound");
        assert_eq!(stream.local_addr().unwrap(), own);

        let mut stream = prepare(pair.client.ns.run(|| dial::fast_open(to, b"CANARY-fastopen")).unwrap()).unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"CANARY-fastopen");

        let mut stream = prepare(pair.client.ns.run(|| dial::deferred(to)).unwrap()).unwrap();
        assert_eq!(ping_pong(&mut stream, b"CANARY-deferred").unwrap(), b"CANARY-deferred");

        let mut stream = prepare(pair.client.ns.run(|| dial::multipath(to)).unwrap()).unwrap();
        assert_eq!(ping_pong(&mut stream, b"CANARY-mptcp").unwrap(), b"CANARY-mptcp");
    }
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();
    eventually("all were seen by the application", IO_LIMIT, || (echo.peers().len() == 10).then_some(()));
}

#[test]
fn an_address_in_a_captured_range_at_which_the_world_knows_nothing_is_refused_or_passed_by_configuration() {
    for (fate, passes) in [("refuse", false), ("plain", true)] {
        let mut stranger = None;
        let single = Single::with(&[("--unknown-destination", fate)], |lab| {
            stranger = Some(lab.stranger(0, "stranger"));
            lab.manifest.set(
                "mesh",
                "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: mesh.test, \
                 captureRanges: [10.10.0.0/16]}",
            );
        });
        let to = stranger.as_ref().unwrap().at(8080);
        let _echo = Server::echo(&stranger.as_ref().unwrap().ns, any(8080));
        assert_eq!(exchange(&single.client.ns, to, b"?").is_ok(), passes, "{fate}");
        let event =
            single.agent.wait_audit("the connection", |event| event["destination"]["address"] == to.to_string());
        let wanted = if passes { ("ALLOW", "plain") } else { ("DENY", "none") };
        assert_eq!((event["decision"].as_str().unwrap(), event["route"].as_str().unwrap()), wanted, "{event:#}");
    }
}
