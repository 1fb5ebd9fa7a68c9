//! Policy on live traffic: plaintext in every mode, and changes that end what is open.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use warren_test_support::client::{assert_echo, assert_refused, connect, exchange, is_reset, ping_pong, wait_cut};
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::{Capture, Pod, Server};

use crate::dial;
use crate::fixture::{Pair, Single, any};

const CUT: Duration = Duration::from_secs(10);

/// A world of one node with a pod outside the mesh.
fn with_stranger(prepare: impl FnOnce(&mut warren_test_support::Lab, &Pod)) -> (Single, Pod) {
    let mut stranger = None;
    let world = Single::with(&[], |lab| {
        let pod = lab.stranger(0, "stranger");
        prepare(lab, &pod);
        stranger = Some(pod);
    });
    (world, stranger.unwrap())
}

#[test]
fn plaintext_into_strict_is_refused_and_reported() {
    let (world, stranger) = with_stranger(|lab, _| lab.manifest.set_mtls(None, "STRICT"));
    let echo = Server::echo(&world.server.ns, any(8080));
    let capture = Capture::start(world.lab.node(0));
    let error = assert_refused(&stranger.ns, world.server.at(8080), b"CANARY-strict");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "refused by the kernel");
    assert_refused(&stranger.ns, world.server.at6(8080), b"CANARY-strict");
    // Data in the SYN, another protocol, a chosen source port: all the same to the kernel.
    let own = SocketAddr::new(stranger.v4(), 15008);
    let tries = [
        stranger.ns.run(|| dial::multipath(world.server.at(8080))),
        stranger.ns.run(|| dial::bound(own, world.server.at(8080))),
        stranger.ns.run(|| dial::fast_open(world.server.at(8080), b"CANARY-strict")),
    ];
    for (n, attempt) in tries.into_iter().enumerate() {
        assert!(attempt.is_err_and(|error| is_reset(&error)), "attempt {n}");
    }
    capture.stop().assert_absent(b"CANARY-strict");
    assert!(echo.peers().is_empty());
    let event = world.agent.wait_audit("the refusal", |event| event["decision"] == "DENY" && event["mtls"] == false);
    assert!(event["source_identity"].is_null());
    assert_eq!(event["destination"]["pod"], "server");
    assert!(event["source"]["address"].as_str().unwrap().contains(&stranger.v4().to_string()), "{event:#}");
    assert_echo(&world.client.ns, world.server.at(8080), b"the mesh may");
}

#[test]
fn plaintext_into_permissive_passes_in_the_kernel_and_is_known() {
    let (world, stranger) = with_stranger(|_, _| {});
    let echo = Server::echo(&world.server.ns, any(8080));
    let mut stream = connect(&stranger.ns, world.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut stream, b"plain").unwrap(), b"plain");
    assert_echo(&stranger.ns, world.server.at6(8080), b"plain 6");
    assert_eq!(echo.peer_ips(), [stranger.v4(), stranger.v6()]);
    let status = world.agent.wait_status("the kernel's connection is listed", |status| {
        status["connections"].as_array().unwrap().iter().any(|c| c["transport"] == "kernel")
    });
    let listed = status["connections"].as_array().unwrap();
    assert!(listed.iter().any(|c| c["source"] == stream.local_addr().unwrap().to_string()), "{listed:#?}");
    drop(stream);
    let event =
        world.agent.wait_audit("the connection", |event| event["route"] == "kernel" && event["decision"] == "ALLOW");
    assert_eq!(event["mtls"], false);
}

#[test]
fn plaintext_into_permissive_with_policies_is_judged_by_the_agent() {
    let (world, stranger) = with_stranger(|lab, stranger| {
        let by_ip = format!(
            "[{{from: [{{source: {{ipBlocks: [\"{}\"]}}}}], to: [{{operation: {{ports: [\"8080\"]}}}}]}}, \
             {{from: [{{source: {{namespaces: [prod]}}}}]}}]",
            stranger.v4()
        );
        lab.manifest.set_policy("by-ip", "server", "ALLOW", &by_ip);
    });
    let (echo, other) = (Server::echo(&world.server.ns, any(8080)), Server::echo(&world.server.ns, any(8081)));
    assert_echo(&stranger.ns, world.server.at(8080), b"allowed by address");
    assert_refused(&stranger.ns, world.server.at(8081), b"another port");
    assert_refused(&stranger.ns, world.server.at6(8080), b"another address");
    assert_echo(&world.client.ns, world.server.at(8081), b"allowed by identity");
    assert_eq!(echo.peer_ips(), [stranger.v4()], "its address is kept");
    assert_eq!(other.peer_ips(), [world.client.v4()]);
    let denied = world.agent.wait_audit("the denial", |event| event["decision"] == "DENY");
    assert_eq!((&denied["policy"], &denied["mtls"]), (&"prod/by-ip".into(), &false.into()));
}

#[test]
fn an_application_may_restart_beside_plaintext_that_the_agent_carries() {
    let (world, stranger) = with_stranger(|lab, _| lab.manifest.set_policy("all", "server", "ALLOW", "[{}]"));
    let listener = || {
        world.server.ns.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 8080)).into())?;
            socket.listen(16).map(|()| TcpListener::from(socket))
        })
    };
    let first = listener().unwrap();
    let mut open = connect(&stranger.ns, world.server.at(8080)).unwrap();
    open.write_all(b"x").unwrap();
    let (mut accepted, _) = first.accept().unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    drop(first);
    listener().expect("the port is free although the agent's end of a connection stands on it");
    open.write_all(b"y").unwrap();
    accepted.read_exact(&mut [0]).expect("the old connection lives on");
}

#[test]
fn a_port_may_have_a_mode_of_its_own() {
    let (world, stranger) = with_stranger(|lab, _| {
        lab.manifest.set(
            "mtls",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: mtls, namespace: prod}\n\
             spec:\n  selector: {matchLabels: {app: server}}\n  mtls: {mode: STRICT}\n  portLevelMtls: {8081: {mode: PERMISSIVE}}",
        );
    });
    let (_strict, _open) = (Server::echo(&world.server.ns, any(8080)), Server::echo(&world.server.ns, any(8081)));
    assert_refused(&stranger.ns, world.server.at(8080), b"strict");
    assert_echo(&stranger.ns, world.server.at(8081), b"open");
}

#[test]
fn permissive_to_strict_ends_an_open_plaintext_connection() {
    let (mut world, stranger) = with_stranger(|_, _| {});
    let _echo = Server::echo(&world.server.ns, any(8080));
    let mut open = connect(&stranger.ns, world.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"plain").unwrap(), b"plain");
    let mut meshed = connect(&world.client.ns, world.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut meshed, b"mesh").unwrap(), b"mesh");
    world.lab.manifest.set_mtls(None, "STRICT");
    world.apply();
    wait_cut(&mut open, CUT);
    assert_refused(&stranger.ns, world.server.at(8080), b"no more");
    assert_eq!(ping_pong(&mut meshed, b"mesh").unwrap(), b"mesh", "the tunnelled one goes on");
}

#[test]
fn connections_older_than_the_enrolment_are_judged_as_well() {
    let mut lab = warren_test_support::Lab::new(1);
    let server = lab.pod(0, "server");
    let stranger = lab.stranger(0, "stranger");
    lab.manifest.write();
    let _echo = Server::echo(&server.ns, any(8080));
    let mut old = connect(&stranger.ns, server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut old, b"before").unwrap(), b"before");
    let agent = crate::fixture::start_agent(&lab, 0, &[]);
    assert_eq!(ping_pong(&mut old, b"after").unwrap(), b"after", "PERMISSIVE: enrolment does not end it");
    agent.wait_status("it is listed", |status| {
        status["connections"].as_array().unwrap().iter().any(|c| c["transport"] == "pre-enrolment")
    });
    lab.manifest.set_mtls(None, "STRICT");
    lab.apply(&[&agent]);
    wait_cut(&mut old, CUT);
}

#[test]
fn a_policy_change_ends_a_live_tunnelled_connection_and_no_other() {
    let mut friend = None;
    let mut pair = Pair::with(&[], |lab| friend = Some(lab.pod(0, "friend")));
    let friend = friend.unwrap();
    let _echo = pair.echo(8080);
    let mut judged = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    let mut spared = connect(&friend.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut judged, b"1").unwrap(), b"1");
    assert_eq!(ping_pong(&mut spared, b"1").unwrap(), b"1");
    let rule = format!("[{{from: [{{source: {{principals: [\"{TRUST_DOMAIN}/ns/prod/sa/client\"]}}}}]}}]");
    pair.lab.manifest.set_policy("not-client", "server", "DENY", &rule);
    let start = Instant::now();
    pair.apply();
    let end = wait_cut(&mut judged, CUT);
    assert!(end.is_some_and(|error| is_reset(&error)), "ended by a reset");
    assert!(start.elapsed() < CUT);
    assert_eq!(ping_pong(&mut spared, b"2").unwrap(), b"2");
    assert_refused(&pair.client.ns, pair.server.at(8080), b"new");
    let event =
        pair.far.wait_audit("the denial", |event| event["decision"] == "DENY" && event["policy"] == "prod/not-client");
    assert_eq!(event["source_identity"], pair.client.identity());

    pair.lab.manifest.remove("policy not-client");
    pair.apply();
    assert_echo(&pair.client.ns, pair.server.at(8080), b"allowed again");
}

#[test]
fn deny_all_and_namespace_and_port_rules_hold_between_nodes() {
    let mut pair = Pair::with(&[], |lab| {
        lab.manifest.set(
            "policy nothing",
            "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: nothing, namespace: prod}\nspec: {}",
        );
    });
    let echo = pair.echo(8080);
    assert_refused(&pair.client.ns, pair.server.at(8080), b"nothing is allowed");
    let rule = "[{from: [{source: {namespaces: [prod]}}], to: [{operation: {ports: [\"8080\"]}}]}]";
    pair.lab.manifest.set_policy("prod-8080", "server", "ALLOW", rule);
    pair.apply();
    let _other = pair.echo(8081);
    assert_echo(&pair.client.ns, pair.server.at(8080), b"allowed");
    assert_refused(&pair.client.ns, pair.server.at(8081), b"not this port");
    assert_eq!(echo.peers().len(), 1);
}

#[test]
fn a_document_that_is_not_understood_is_refused_by_line_and_the_rest_goes_on() {
    let mut pair = Pair::start();
    let _echo = pair.echo(8080);
    pair.lab.manifest.set_policy("odd", "client", "ALLOW", "[{from: [{source: {principles: [x]}}]}]");
    pair.lab.manifest.set_policy("blocks", "server", "DENY", "[{to: [{operation: {ports: [\"8081\"]}}]}]");
    pair.apply();
    let line = pair.lab.manifest.line_of("policy odd", "principles");
    let status = pair.near.status();
    let rejections: Vec<&str> =
        status["world"]["rejections"].as_array().unwrap().iter().filter_map(|r| r.as_str()).collect();
    let said = rejections.iter().find(|r| r.contains("odd")).unwrap_or_else(|| panic!("{rejections:?}"));
    assert!(said.contains(&format!("mesh.yaml:{line}")), "file and line ({line}): {said}");
    assert!(
        said.contains("principles") && said.contains("AuthorizationPolicy prod/odd"),
        "object, field and reason: {said}"
    );
    // The workload whose policy is not understood denies; its neighbour's good policy is in force.
    let _own = Server::echo(&pair.client.ns, any(8080));
    let _closed = pair.echo(8081);
    assert_refused(&pair.server.ns, pair.client.at(8080), b"fails closed");
    assert_echo(&pair.client.ns, pair.server.at(8080), b"unaffected");
    assert_refused(&pair.client.ns, pair.server.at(8081), b"the good one holds");
}

#[test]
fn a_file_that_is_no_yaml_leaves_the_last_good_world() {
    let pair = Pair::start();
    let _echo = pair.echo(8080);
    let before = pair.near.generation();
    let mut file = std::fs::OpenOptions::new().append(true).open(pair.lab.manifest.path()).unwrap();
    file.write_all(b"---\nkind: [unclosed\n").unwrap();
    pair.near.wait_status("the damage is reported", |status| {
        let world = &status["world"];
        !world["source_error"].is_null() || !world["rejections"].as_array().unwrap().is_empty()
    });
    assert!(pair.near.generation() >= before);
    assert_echo(&pair.client.ns, pair.server.at(8080), b"still serving");
    std::fs::remove_file(pair.lab.manifest.path()).unwrap();
    pair.near.wait_status("the loss is reported", |status| !status["world"]["source_error"].is_null());
    assert_echo(&pair.client.ns, pair.server.at(8080), b"still serving");
    assert!(exchange(&pair.server.ns, pair.client.at(8080), b"").is_err());
}
