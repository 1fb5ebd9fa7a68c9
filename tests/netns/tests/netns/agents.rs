//! Agents as processes: several on one kernel, at their limits, with other settings.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use warren_test_support::client::{assert_echo, assert_refused, connect, ping_pong};
use warren_test_support::{Capture, Lab, Server, eventually};

use crate::fixture::{Pair, any, start_agent};
use crate::inspect::{pinned, pinned_links};

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
    assert_eq!(pinned("link", pair.near.node()), links);
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
fn a_greedy_pod_leaves_room_for_its_neighbour() {
    let mut lab = Lab::new(2);
    let (greedy, modest, server) = (lab.pod(0, "greedy"), lab.pod(0, "modest"), lab.pod(1, "server"));
    lab.manifest.write();
    let near = lab.agent(0).open_files(2048).start();
    let _far = start_agent(&lab, 1, &[]);
    let _echo = Server::echo(&server.ns, any(8080));
    let to = server.at(8080);
    let held: Vec<_> = (0..1500)
        .filter_map(|_| greedy.ns.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(100))).ok())
        .collect();
    assert_eq!(held.len(), 1500, "the kernel lets them wait");
    for _ in 0..5 {
        let start = Instant::now();
        assert_echo(&modest.ns, to, b"a modest wish");
        assert!(start.elapsed() < Duration::from_secs(3), "served only after {:?}", start.elapsed());
    }
    let budget = near.status()["descriptors"].clone();
    assert!(budget["used"].as_u64() > Some(700), "greed was tested: {budget:#}");
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
