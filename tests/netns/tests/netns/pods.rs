//! Pods that come and go, change, and come back as another.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use warren_test_support::client::{
    self, IO_LIMIT, assert_echo, assert_refused, connect, finish_exchange, is_reset, ping_pong, prepare, wait_cut,
};
use warren_test_support::lab::Family;
use warren_test_support::{Capture, Lab, NetNs, Server, eventually};

use crate::fixture::{Pair, any, start_agent};
use crate::inspect::{pods_enrolled, traces};

#[test]
fn path_and_address_of_a_dead_pod_reused_by_another_identity() {
    let mut pair = Pair::start();
    let _echo = pair.echo(8080);
    assert_echo(&pair.client.ns, pair.server.at(8080), b"first");
    pair.far.wait_audit("the first identity", |event| event["source_identity"] == pair.client.identity());
    let first = pair.near.pod("client");
    let (old_link, old) =
        (pair.client.host_link.clone(), std::mem::replace(&mut pair.client, pair.lab.stranger(0, "spare")));
    pair.lab.manifest.remove("pod client");
    pair.apply();
    let mut new = pair.lab.recreate(old);
    assert!(!pair.lab.has_link(0, &old_link), "the old namespace died although an agent had watched it");
    new.document.service_account = "heir".to_owned();
    pair.lab.manifest.set_pod(&new.document);
    pair.apply();
    pair.near.wait_status("enrolled", |status| pods_enrolled(status) == 1);
    assert_echo(&new.ns, pair.server.at(8080), b"second");
    pair.far.wait_audit("the new identity", |event| event["source_identity"] == new.identity());
    let second = pair.near.pod("client");
    assert_ne!(first["cookie"], second["cookie"]);
    assert_ne!(first["identity"], second["identity"]);
    let _own = Server::echo(&new.ns, any(8080));
    assert_echo(&pair.server.ns, new.at(8080), b"and inbound");
}

#[test]
fn a_namespace_swapped_behind_the_agents_back_is_a_new_pod() {
    let mut pair = Pair::start();
    let _echo = pair.echo(8080);
    let first = pair.near.pod("client")["cookie"].clone();
    // No manifest change: the path alone now leads elsewhere, as when a sandbox is restarted.
    let spare = pair.lab.stranger(0, "spare");
    let old = std::mem::replace(&mut pair.client, spare);
    let new = pair.lab.recreate(old);
    pair.near.wait_status("the new namespace is enrolled", |status| {
        let pods = status["pods"].as_array().unwrap();
        pods.iter().any(|pod| pod["name"] == "client" && pod["state"] == "enrolled" && pod["cookie"] != first)
    });
    let capture = Capture::start(pair.lab.node(0));
    assert_echo(&new.ns, pair.server.at(8080), b"CANARY-swapped");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-swapped");
    packets.assert_only_tls();
}

#[test]
fn a_pod_that_cannot_be_enrolled_is_reported_and_left_alone() {
    let mut lab = Lab::new(1);
    let good = lab.pod(0, "good");
    let bare = NetNs::create(&format!("{}-bare", lab.id()));
    let mut document = good.document.clone();
    document.name = "bare".to_owned();
    document.uid = "bare-uid".to_owned();
    document.netns = bare.path().to_owned();
    document.ips = vec!["10.10.0.99".parse().unwrap()];
    lab.manifest.set_pod(&document);
    document.name = "absent".to_owned();
    document.uid = "absent-uid".to_owned();
    document.netns = "/run/netns/no-such-namespace".into();
    document.ips = vec!["10.10.0.98".parse().unwrap()];
    lab.manifest.set_pod(&document);
    lab.manifest.write();
    let before = traces(&bare);
    let agent = start_agent(&lab, 0, &[]);
    for name in ["bare", "absent"] {
        let pod = agent.pod(name);
        assert_eq!(pod["state"], "failed", "{pod:#}");
        assert!(pod["error"]["step"].as_str().is_some_and(|step| !step.is_empty()), "{pod:#}");
        assert!(pod["error"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{pod:#}");
    }
    assert_eq!(traces(&bare), before, "not half-enrolled");
    assert_eq!(agent.pod("good")["state"], "enrolled");
    let _echo = Server::echo(&good.ns, any(8080));
    assert_echo(&good.ns, good.at(8080), b"the good one works");
}

#[test]
fn addresses_and_services_may_change_while_everything_runs() {
    let mut pair = Pair::start();
    let echo = pair.echo(8080);
    let mut open = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    // A second address for each pod.
    let extra: [std::net::IpAddr; 2] = ["10.10.7.7".parse().unwrap(), "10.11.7.7".parse().unwrap()];
    for (pod, node, ip) in [(&mut pair.client, 0, extra[0]), (&mut pair.server, 1, extra[1])] {
        pod.ns.check("ip", &["addr", "add", &format!("{ip}/32"), "dev", "eth0"]);
        pair.lab.node(node).check("ip", &["route", "add", &format!("{ip}/32"), "dev", &pod.host_link]);
        pod.document.ips.push(ip);
        pair.lab.manifest.set_pod(&pod.document);
    }
    pair.lab.manifest.set_service("late", "server", &["10.96.0.99".parse().unwrap()], &[(80, 8080)]);
    pair.apply();
    let capture = Capture::start(pair.lab.node(0));
    assert_echo(&pair.client.ns, SocketAddr::new(extra[1], 8080), b"CANARY-new-address");
    assert_echo(&pair.client.ns, "10.96.0.99:80".parse().unwrap(), b"CANARY-new-service");
    assert_eq!(ping_pong(&mut open, b"CANARY-old-connection").unwrap(), b"CANARY-old-connection");
    let _own = Server::echo(&pair.client.ns, any(8080));
    assert_echo(&pair.client.ns, SocketAddr::new(extra[0], 8080), b"CANARY-to-myself");
    let from_extra = pair.client.ns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(extra[0], 0).into())?;
        socket.connect_timeout(&pair.server.at(8080).into(), IO_LIMIT)?;
        prepare(socket.into())
    });
    assert_eq!(ping_pong(&mut from_extra.unwrap(), b"CANARY-from-it").unwrap(), b"CANARY-from-it");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();
    assert_eq!(echo.peer_ips().last(), Some(&extra[0]));

    // What leaves the world is captured no more, or refused where a range still covers it.
    pair.lab.manifest.remove("service late");
    pair.apply();
    let gone = pair.client.ns.run(|| TcpStream::connect_timeout(&"10.96.0.99:80".parse().unwrap(), IO_LIMIT));
    let gone = gone.and_then(|stream| finish_exchange(prepare(stream)?, b"x"));
    assert!(gone.is_err_and(|error| warren_test_support::client::is_reset(&error)));
}

#[test]
fn a_namespace_without_ipv6_or_known_by_a_process_is_enrolled() {
    let mut lab = Lab::new(2);
    let server = lab.pod(1, "server");
    let bare = lab.pod_of(0, "bare", Family::V4, true);
    bare.ns.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    let mut by_process = lab.pod(0, "by-process");
    let mut sleeper = by_process.ns.spawn(std::process::Command::new("sleep").arg("300"));
    by_process.document.netns = format!("/proc/{}/ns/net", sleeper.id()).into();
    lab.manifest.set_pod(&by_process.document);
    lab.manifest.write();
    let (near, _far) = (start_agent(&lab, 0, &[]), start_agent(&lab, 1, &[]));
    let _echo = Server::echo(&server.ns, any(8080));
    let capture = Capture::start(lab.node(0));
    for pod in [&bare, &by_process] {
        let status = near.pod(&pod.document.name);
        assert_eq!(status["state"], "enrolled", "{status:#}");
        assert_echo(&pod.ns, server.at(8080), b"CANARY");
    }
    let packets = capture.stop();
    packets.assert_absent(b"CANARY");
    packets.assert_only_tls();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn an_address_that_another_identity_took_over_is_refused_until_the_world_says_so() {
    let mut lab = Lab::new(2);
    let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
    lab.manifest.write();
    let stale = lab.dir().join("stale.yaml");
    std::fs::copy(lab.manifest.path(), &stale).unwrap();
    let near = lab.agent(0).world(&stale).start();
    let far = start_agent(&lab, 1, &[]);
    let echo = Server::echo(&server.ns, any(8080));
    assert_echo(&client.ns, server.at(8080), b"the one that is meant");
    drop(echo);

    // The far node has a new pod at the old address; the near node has not heard of it yet.
    lab.manifest.remove("pod server");
    lab.apply(&[&far]);
    let mut heir = lab.recreate(server);
    heir.document.service_account = "heir".to_owned();
    lab.manifest.set_pod(&heir.document);
    lab.apply(&[&far]);
    far.wait_status("the heir is enrolled", |status| pods_enrolled(status) == 1);
    let echo = Server::echo(&heir.ns, any(8080));
    assert_refused(&client.ns, heir.at(8080), b"CANARY-for-the-old-one");
    assert!(echo.peers().is_empty());
    let event = near.wait_audit("both names", |event| event["failure_reason"] == "identity_mismatch");
    assert!(event.to_string().contains("sa/heir") && event.to_string().contains("sa/server"), "{event:#}");

    std::fs::copy(lab.manifest.path(), &stale).unwrap();
    eventually("the near node has heard of it", IO_LIMIT, || (near.generation() > 1).then_some(()));
    assert_echo(&client.ns, heir.at(8080), b"for the new one");
}

#[test]
fn connections_of_a_pod_that_leaves_are_reset_rather_than_left_hanging() {
    let mut pair = Pair::start();
    let _echo = pair.echo(8080);
    let _gift = Server::start(&pair.server.ns, any(8081), |mut stream| {
        let _ = client::send_pattern(&mut stream, 600_000);
    });
    let mut open = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"open").unwrap(), b"open");
    // The agents are done with this one while most of it waits in the kernel for its reader.
    let mut owed = connect(&pair.client.ns, pair.server.at6(8081)).unwrap();
    owed.shutdown(Shutdown::Write).unwrap();
    owed.read_exact(&mut [0; 1000]).unwrap();
    pair.near.wait_status("one connection is left", |status| status["connections"].as_array().unwrap().len() == 1);
    pair.lab.manifest.remove("pod client");
    pair.apply();
    let end = wait_cut(&mut open, Duration::from_secs(3));
    assert!(end.is_some_and(|error| is_reset(&error)), "a reset, not a clean end");
    owed.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let end = std::io::copy(&mut owed, &mut std::io::sink());
    assert!(end.as_ref().is_err_and(is_reset), "a reset, not silence or a clean end: {end:?}");
}
