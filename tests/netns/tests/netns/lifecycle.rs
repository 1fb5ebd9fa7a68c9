//! Agents that die, return, and leave; pods that go and come back as another.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use warren_test_support::client::{
    IO_LIMIT, assert_echo, assert_refused, connect, finish_exchange, is_reset, ping_pong, prepare, wait_cut,
};
use warren_test_support::lab::Family;
use warren_test_support::{Capture, Lab, NetNs, Server, eventually};

use crate::fixture::{Pair, Single, any, start_agent};

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
    assert_eq!(pinned_links(pair.near.node()), links, "capture outlives the agent");
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
fn a_directory_of_manifests_is_read_and_followed() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    lab.manifest.write();
    let dir = lab.dir().join("world");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(lab.manifest.path(), dir.join("10-pods.yaml")).unwrap();
    std::fs::write(dir.join("notes.txt"), "not a manifest").unwrap();
    let agent = lab.agent(0).world(&dir).start();
    let _echo = Server::echo(&server.ns, any(8080));
    assert_echo(&client.ns, server.at(8080), b"from the first file");
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                metadata: {name: closed, namespace: prod}\nspec: {action: DENY, rules: [{}]}\n";
    std::fs::write(dir.join("20-policy.yaml"), deny).unwrap();
    agent.wait_status("the second file is in force", |status| {
        status["world"]["objects"].as_array().is_some_and(|objects| !objects.is_empty())
    });
    assert_refused(&client.ns, server.at(8080), b"closed");
    std::fs::remove_file(dir.join("20-policy.yaml")).unwrap();
    agent.wait_status("the second file is gone", |status| {
        status["world"]["objects"].as_array().is_some_and(Vec::is_empty)
    });
    assert_echo(&client.ns, server.at(8080), b"open again");
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

/// Ids of the links pinned for a node.
fn pinned_links(node: &str) -> Vec<u64> {
    let shown = warren_test_support::command::run("bpftool", &["-j", "-f", "link", "show"]);
    let links: Value = serde_json::from_str(&shown).expect("bpftool prints JSON");
    let prefix = format!("/sys/fs/bpf/warren/{node}/");
    let ours = links.as_array().expect("links").iter().filter(|link| {
        let pins = link["pinned"].as_array();
        pins.is_some_and(|pins| pins.iter().any(|pin| pin.as_str().is_some_and(|path| path.starts_with(&prefix))))
    });
    ours.filter_map(|link| link["id"].as_u64()).collect()
}

/// Ids of the maps pinned for a node.
fn pinned_maps(node: &str) -> Vec<u64> {
    let shown = warren_test_support::command::run("bpftool", &["-j", "-f", "map", "show"]);
    let maps: Value = serde_json::from_str(&shown).expect("bpftool prints JSON");
    let prefix = format!("/sys/fs/bpf/warren/{node}/");
    let ours = maps.as_array().expect("maps").iter().filter(|map| {
        let pins = map["pinned"].as_array();
        pins.is_some_and(|pins| pins.iter().any(|pin| pin.as_str().is_some_and(|path| path.starts_with(&prefix))))
    });
    ours.filter_map(|map| map["id"].as_u64()).collect()
}

fn exists(kind: &str, id: u64) -> bool {
    let mut command = std::process::Command::new("bpftool");
    command.args([kind, "show", "id", &id.to_string()]);
    warren_test_support::command::output(&mut command).status.success()
}

/// Everything in a pod's namespace that an agent may change.
fn traces(ns: &NetNs) -> String {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        for what in [&["rule"][..], &["route", "show", "table", "all"], &["addr"]] {
            all += &ns.check("ip", &[&[family], what].concat());
        }
    }
    all += &ns.check("tc", &["qdisc"]);
    all += &ns.check("tc", &["filter", "show", "dev", "lo", "ingress"]);
    all += &ns.check("tc", &["filter", "show", "dev", "lo", "egress"]);
    for key in
        ["tcp_fwmark_accept", "fwmark_reflect", "conf/lo/route_localnet", "conf/lo/rp_filter", "conf/all/rp_filter"]
    {
        all += &format!("{key} {}", ns.read(&format!("/proc/sys/net/ipv4/{key}")));
    }
    all + &ns.check("ss", &["-Hltn"])
}

#[test]
fn nothing_is_left_after_cleanup() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    lab.manifest.write();
    let before = [traces(&client.ns), traces(&server.ns)];
    let mut agent = start_agent(&lab, 0, &[]);
    let echo = Server::echo(&server.ns, any(8080));
    assert_echo(&client.ns, server.at(8080), b"works");
    drop(echo);
    assert_ne!(traces(&client.ns), before[0], "enrolment leaves traces that can be seen");
    let (links, maps) = (pinned_links(agent.node()), pinned_maps(agent.node()));
    assert!(!links.is_empty() && !maps.is_empty());
    agent.stop();
    let done = agent.cleanup();
    assert!(done.status.success(), "{}", warren_test_support::command::text(&done));
    eventually("links and maps are gone", IO_LIMIT, || {
        let left = links.iter().any(|id| exists("link", *id)) || maps.iter().any(|id| exists("map", *id));
        (!left).then_some(())
    });
    assert!(!std::path::Path::new("/sys/fs/bpf/warren").join(agent.node()).exists(), "pins");
    assert_eq!([traces(&client.ns), traces(&server.ns)], before);
    // And the pods talk as if nothing had ever been there.
    let _echo = Server::echo(&server.ns, any(8080));
    let capture = Capture::start(lab.node(0));
    assert_echo(&client.ns, server.at(8080), b"in clear again");
    capture.stop().assert_present(b"in clear again");
    let again = agent.cleanup();
    assert!(
        again.status.success(),
        "a second cleanup finds nothing to do: {}",
        warren_test_support::command::text(&again)
    );
}

#[test]
fn a_pod_that_leaves_the_mesh_is_released_and_holds_no_descriptor() {
    let mut world = Single::with(&[], |_| {});
    let echo = Server::echo(&world.server.ns, any(8080));
    assert_echo(&world.client.ns, world.server.at(8080), b"in the mesh");
    drop(echo);
    let before = world.agent.descriptors();
    let pod = world.lab.pod(0, "third");
    let fresh = traces(&pod.ns);
    world.apply();
    world.agent.wait_status("enrolled", |status| pods_enrolled(status) == 3);
    assert_ne!(traces(&pod.ns), fresh);
    world.lab.manifest.remove("pod third");
    world.apply();
    world.agent.wait_status("released", |status| status["pods"].as_array().is_some_and(|pods| pods.len() == 2));
    eventually("no trace is left in the pod", IO_LIMIT, || (traces(&pod.ns) == fresh).then_some(()));
    eventually("its descriptors are closed", IO_LIMIT, || (world.agent.descriptors() <= before).then_some(()));
}

fn pods_enrolled(status: &Value) -> usize {
    status["pods"].as_array().map_or(0, |pods| pods.iter().filter(|pod| pod["state"] == "enrolled").count())
}

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
fn two_agents_on_one_kernel_do_not_disturb_each_other() {
    let mut neighbour = None;
    let mut pair = Pair::with(&[], |lab| neighbour = Some(lab.pod(0, "neighbour")));
    let neighbour = neighbour.unwrap();
    let _echo = Server::echo(&neighbour.ns, any(8080));
    let mut open = connect(&pair.client.ns, neighbour.at(8080)).unwrap();
    let mut alive = |what: &str| assert_eq!(ping_pong(&mut open, b"tick").expect(what), b"tick");
    let links = pinned_links(pair.near.node());
    alive("at first");
    pair.far.kill9();
    alive("the other agent was killed");
    assert!(pair.far.cleanup().status.success());
    alive("the other agent was cleaned up");
    pair.far.start();
    alive("the other agent came back");
    assert_eq!(pinned_links(pair.near.node()), links);
    assert_echo(&pair.client.ns, neighbour.at(8080), b"new connections as well");
    let _far = pair.echo(8081);
    assert_echo(&pair.client.ns, pair.server.at(8081), b"and between the two");
}

#[test]
fn an_agent_out_of_descriptors_lives_and_recovers() {
    let mut lab = Lab::new(2);
    let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
    lab.manifest.write();
    let mut near = lab.agent(0).open_files(160).start();
    let _far = start_agent(&lab, 1, &[]);
    let _echo = Server::echo(&server.ns, any(8080));
    assert_echo(&client.ns, server.at(8080), b"before");
    let to = server.at(8080);
    let held: Vec<_> = (0..400)
        .filter_map(|_| client.ns.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(200))).ok())
        .collect();
    let cpu = near.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let spent = near.cpu() - cpu;
    assert!(near.alive(), "{}", near.log_tail(40));
    assert!(spent < Duration::from_millis(600), "spins at the limit: {spent:?} of CPU in one second");
    assert!(near.descriptors() <= 160);
    near.status();
    drop(held);
    eventually("it serves again", Duration::from_secs(20), || {
        let mut stream = connect(&client.ns, to).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        ping_pong(&mut stream, b"after").ok()
    });
    assert!(near.alive());
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
fn cleanup_after_a_crash_and_a_deleted_pod_succeeds() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    lab.manifest.write();
    let before = traces(&server.ns);
    let mut agent = start_agent(&lab, 0, &[]);
    agent.kill9();
    drop(client);
    let done = agent.cleanup();
    assert!(done.status.success(), "{}", warren_test_support::command::text(&done));
    assert_eq!(traces(&server.ns), before);
    assert!(!std::path::Path::new("/sys/fs/bpf/warren").join(agent.node()).exists(), "pins");
}

#[test]
fn a_running_agent_can_be_neither_doubled_nor_cleaned_away() {
    let pair = Pair::start();
    let _echo = pair.echo(8080);
    let mut open = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"1").unwrap(), b"1");
    let second = pair.lab.agent(0).refuse();
    assert!(!second.status.success(), "a second agent of the same node ran");
    let cleanup = pair.near.cleanup();
    assert!(!cleanup.status.success(), "cleaned up under a running agent");
    assert_eq!(ping_pong(&mut open, b"2").unwrap(), b"2");
    assert_echo(&pair.client.ns, pair.server.at(8080), b"new ones as well");
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
fn other_marks_tables_and_numbers_of_workers() {
    let flags = [("--mark", "0x10000/0xf0000"), ("--route-table", "99"), ("--workers", "3")];
    let pair = Pair::with(&flags, |_| {});
    let echo = pair.echo(8080);
    let rules = pair.client.ns.check("ip", &["rule"]);
    assert!(rules.contains("fwmark 0x10000/0xf0000 lookup 99"), "{rules}");
    let capture = Capture::start(pair.lab.node(0));
    for _ in 0..24 {
        assert_echo(&pair.client.ns, pair.server.at(8080), b"CANARY-4");
        assert_echo(&pair.client.ns, pair.server.at6(8080), b"CANARY-6");
    }
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();
    assert_eq!(echo.peers().len(), 48);
}

#[test]
fn what_a_namespace_had_of_its_own_is_kept_and_restored() {
    let mut lab = Lab::new(2);
    let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
    lab.manifest.write();
    // Another tool's rules, some of them where the capture wants to be; a setting; a queueing discipline on lo.
    for rule in ["pref 1 from 192.0.2.1 lookup 100", "pref 2 fwmark 0x9 lookup 101", "pref 500 to 192.0.2.2 lookup 102"]
    {
        let words: Vec<&str> = rule.split(' ').collect();
        client.ns.check("ip", &[&["rule", "add"], &words[..]].concat());
    }
    client.ns.check("ip", &["route", "add", "unreachable", "192.0.2.0/24", "table", "100"]);
    client.ns.set_sysctl("net/ipv4/tcp_fwmark_accept", "1");
    client.ns.check("tc", &["qdisc", "add", "dev", "lo", "clsact"]);
    let before = traces(&client.ns);
    let mut near = start_agent(&lab, 0, &[]);
    let _far = start_agent(&lab, 1, &[]);
    assert_eq!(near.pod("client")["state"], "enrolled", "{:#}", near.pod("client"));
    let _echo = Server::echo(&server.ns, any(8080));
    let capture = Capture::start(lab.node(0));
    assert_echo(&client.ns, server.at(8080), b"CANARY-beside-others");
    assert_echo(&client.ns, server.at6(8080), b"CANARY-beside-others");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();
    near.stop();
    assert!(near.cleanup().status.success());
    assert_eq!(traces(&client.ns), before);
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
fn thirty_pods_are_enrolled_and_released_together() {
    let mut lab = Lab::new(1);
    let pods: Vec<_> = (0..30).map(|n| lab.pod(0, &format!("p{n}"))).collect();
    lab.manifest.write();
    let before = traces(&pods[29].ns);
    let mut agent = start_agent(&lab, 0, &[]);
    assert_eq!(pods_enrolled(&agent.status()), 30);
    let servers: Vec<_> = pods.iter().map(|pod| Server::echo(&pod.ns, any(8080))).collect();
    for (n, pod) in pods.iter().enumerate() {
        assert_echo(&pod.ns, pods[(n + 7) % 30].at(8080), b"round the ring");
    }
    assert!(servers.iter().all(|server| server.peers().len() == 1));
    drop(servers);
    agent.stop();
    assert!(agent.cleanup().status.success());
    assert_eq!(traces(&pods[29].ns), before);
}
