//! Who is at the other end: hand-made HBONE peers with good, bad and stolen certificates, on both sides.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use warren_test_support::client::{assert_echo, assert_refused, exchange};
use warren_test_support::hbone::{Ask, Manner, TunnelServer, dial, wait_asked};
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::pki::{Authority, Credentials, Leaf};
use warren_test_support::{Agent, Capture, Lab, Pod, Server};

use crate::fixture::{Single, any, start_agent};

/// One agent; `client` is its pod, `server` is said to live on a node where no agent runs: the test plays it.
struct World {
    agent: Agent,
    client: Pod,
    server: Pod,
    authority: Authority,
    lab: Lab,
}

impl World {
    fn start() -> Self {
        let mut lab = Lab::new(2);
        let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
        lab.manifest.write();
        let agent = start_agent(&lab, 0, &[]);
        let authority = Authority::from_ca_dir(&lab.dir().join("ca"));
        Self { agent, client, server, authority, lab }
    }

    fn tunnel_server(&self, credentials: Credentials, manner: Manner) -> TunnelServer {
        TunnelServer::start(&self.server.ns, self.server.at(15008), &self.authority, credentials, manner)
    }

    /// The client calls while the tunnel server presents these credentials: it must be refused, for this reason.
    #[track_caller]
    fn assert_not_accepted(&self, credentials: Credentials, reason: &str) -> Value {
        let before = self.agent.audit().len();
        let server = self.tunnel_server(credentials, Manner::Echo);
        assert_refused(&self.client.ns, self.server.at(8080), b"CANARY-peer");
        assert!(server.asked().is_empty(), "a CONNECT was sent to a peer that should not be trusted");
        self.agent.wait_audit(&format!("a handshake that failed with {reason}"), |event| {
            self.agent.audit().len() > before && is_failure(event, reason)
        })
    }
}

fn is_failure(event: &Value, reason: &str) -> bool {
    event["event"] == "mtls_handshake" && event["result"] == "failure" && event["failure_reason"] == reason
}

fn spiffe(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/prod/sa/{service_account}")
}

#[test]
fn a_foreign_server_gets_what_the_protocol_prescribes() {
    let world = World::start();
    let server = world.tunnel_server(world.authority.issue(&Leaf::valid(&world.server.identity())), Manner::Echo);
    let capture = Capture::start(world.lab.node(0));
    assert_echo(&world.client.ns, world.server.at(8080), b"CANARY-through-a-foreign-server");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();

    let asked = wait_asked(&server, 1).remove(0);
    assert_eq!((asked.method.as_str(), asked.sni), ("CONNECT", false));
    assert_eq!(asked.authority, world.server.at(8080).to_string());
    let header = |name: &str| asked.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let baggage = header("baggage").expect("baggage");
    assert!(baggage.contains("k8s.namespace.name=prod") && baggage.contains("k8s.cluster.name=lab"), "{baggage}");
    let forwarded = header("forwarded").expect("forwarded");
    assert!(forwarded.starts_with(&format!("for=\"{}:", world.client.v4())), "{forwarded}");
    let trace = header("traceparent").expect("traceparent");
    assert!(trace.len() == 55 && trace.starts_with("00-") && trace.ends_with("-00"), "{trace}");
    let client = world.client.identity();
    let leaf = &asked.chain[0];
    assert!(leaf.windows(client.len()).any(|window| window == client.as_bytes()), "the client presents its pod's id");
    assert!(asked.chain.len() >= 2, "leaf and intermediate are sent");
}

#[test]
fn a_server_that_is_somebody_else_is_refused_with_both_names() {
    let world = World::start();
    let event = world.assert_not_accepted(world.authority.issue(&Leaf::valid(&spiffe("thief"))), "identity_mismatch");
    let text = event.to_string();
    assert!(text.contains(&spiffe("thief")) && text.contains(&world.server.identity()), "{event:#}");
    // The connection's own event says that it failed.
    world.agent.wait_audit("the connection's event", |event| {
        event["event"] == "connection" && event["response_flags"] == "TLS_FAILURE" && event["mtls"] == false
    });
}

#[test]
fn a_server_whose_certificate_is_not_good_is_refused_with_the_reason() {
    let world = World::start();
    let id = world.server.identity();
    let ca = &world.authority;
    world.assert_not_accepted(ca.issue(&Leaf::expired(&id)), "certificate_expired");
    world.assert_not_accepted(ca.issue(&Leaf::not_yet_valid(&id)), "not_yet_valid");
    world.assert_not_accepted(ca.intermediate().issue_bare(&Leaf::valid(&id)), "missing_issuer");
    let foreign = Leaf::valid("spiffe://elsewhere.test/ns/prod/sa/server");
    world.assert_not_accepted(ca.issue(&foreign), "trust_domain");
    let mut two = Leaf::valid(&id);
    two.uris.push(spiffe("client"));
    world.assert_not_accepted(ca.issue(&two), "chain_validation_failed");
    // Afterwards a good one is accepted: no failure sticks to the destination.
    let _server = world.tunnel_server(ca.intermediate().issue(&Leaf::valid(&id)), Manner::Echo);
    assert_echo(&world.client.ns, world.server.at(8080), b"now");
}

#[test]
fn a_server_of_an_unknown_root_or_without_tls_is_refused() {
    let world = World::start();
    let unknown = Authority::unknown();
    let before = world.agent.audit().len();
    {
        let _server = world.tunnel_server(unknown.issue(&Leaf::valid(&world.server.identity())), Manner::Echo);
        assert_refused(&world.client.ns, world.server.at(8080), b"CANARY");
        world.agent.wait_audit("an issuer nobody trusts", |event| {
            is_failure(event, "missing_issuer") || is_failure(event, "chain_validation_failed")
        });
    }
    assert!(world.agent.audit().len() > before);
    let plain = Server::start(&world.server.ns, world.server.at(15008), |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert_refused(&world.client.ns, world.server.at(8080), b"CANARY");
    world.agent.wait_audit("no TLS", |event| is_failure(event, "not_tls"));
    assert!(!plain.peers().is_empty());
}

#[test]
fn whatever_a_server_answers_but_200_is_a_reset() {
    let world = World::start();
    for status in [401, 503, 204] {
        let good = world.authority.issue(&Leaf::valid(&world.server.identity()));
        let server = world.tunnel_server(good, Manner::Status(status));
        assert_refused(&world.client.ns, world.server.at(8080), b"CANARY");
        assert_eq!(wait_asked(&server, 1).len(), 1, "a refusal is not tried again");
        world.agent.wait_audit("the connection's event", |event| {
            event["direction"] == "outbound" && event["response_code"] == status
        });
    }
}

#[test]
fn client_bytes_go_ahead_of_the_answer_unless_told_otherwise() {
    for (flags, early) in [(&[][..], true), (&["--no-early-data"][..], false)] {
        let mut lab = Lab::new(2);
        let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
        lab.manifest.write();
        let agent = flags.iter().fold(lab.agent(0), |agent, flag| agent.switch(flag)).start();
        let authority = Authority::from_ca_dir(&lab.dir().join("ca"));
        let good = authority.issue(&Leaf::valid(&server.identity()));
        let manner = Manner::Hold(Duration::from_millis(300));
        let tunnel = TunnelServer::start(&server.ns, server.at(15008), &authority, good, manner);
        assert_echo(&client.ns, server.at(8080), b"impatient");
        let asked = wait_asked(&tunnel, 1).remove(0);
        let expected = if early { &b"impatient"[..] } else { &[] };
        assert_eq!(asked.early, expected, "{flags:?}");
        drop(agent);
    }
}

/// One agent with a pod `server`; `outside` dials it with a certificate of our making.
struct Inbound {
    world: Single,
    outside: Pod,
    authority: Authority,
}

impl Inbound {
    fn start(prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut outside = None;
        let world = Single::with(&[], |lab| {
            outside = Some(lab.stranger(0, "outside"));
            prepare(lab);
        });
        let authority = Authority::from_ca_dir(&world.lab.dir().join("ca"));
        Self { outside: outside.unwrap(), authority, world }
    }

    fn dial(&self, credentials: Credentials, asks: &[Ask]) -> std::io::Result<Vec<warren_test_support::hbone::Answer>> {
        dial(&self.outside.ns, self.world.server.at(15008), credentials, asks)
    }

    fn authority_of(&self, port: u16) -> String {
        SocketAddr::new(self.world.server.v4(), port).to_string()
    }
}

#[test]
fn a_foreign_client_is_served_and_its_address_kept() {
    let inbound = Inbound::start(|_| {});
    let echo = Server::echo(&inbound.world.server.ns, any(8080));
    let good = inbound.authority.issue(&Leaf::valid(&spiffe("outside")));
    let asks =
        [Ask::connect(&inbound.authority_of(8080), b"hello"), Ask::connect(&inbound.authority_of(8080), b"again")];
    let answers = inbound.dial(good, &asks).unwrap();
    assert_eq!((answers[0].status, &answers[0].body[..]), (200, &b"hello"[..]));
    assert_eq!((answers[1].status, &answers[1].body[..]), (200, &b"again"[..]));
    let baggage = answers[0].baggage.as_deref().expect("the response describes the destination");
    assert!(baggage.contains("k8s.namespace.name=prod"), "{baggage}");
    assert_eq!(echo.peer_ips(), [inbound.outside.v4(); 2]);
}

#[test]
fn each_refusal_has_its_status() {
    let inbound = Inbound::start(|lab| {
        let rule = format!("[{{from: [{{source: {{principals: [\"{TRUST_DOMAIN}/ns/prod/sa/friend\"]}}}}]}}]");
        lab.manifest.set_policy("friend-only", "server", "ALLOW", &rule);
    });
    let echo = Server::echo(&inbound.world.server.ns, any(8080));
    let connect = |authority: &str| Ask::connect(authority, b"CANARY");
    let get = Ask { method: http::Method::GET, ..connect(&inbound.authority_of(8080)) };
    let expected = [
        (connect(&inbound.authority_of(15008)), 503, "a port of the mesh's own"),
        (connect(&inbound.authority_of(9)), 503, "nothing listens there"),
        (connect("no-such.prod.svc.cluster.local:8080"), 503, "no such service"),
        (connect("192.0.2.1:8080"), 400, "an address that was not dialled"),
        (connect(&inbound.world.server.v4().to_string()), 400, "an authority without a port"),
        (get, 400, "not CONNECT"),
    ];
    for (ask, status, why) in expected {
        let friend = inbound.authority.issue(&Leaf::valid(&spiffe("friend")));
        let answers = inbound.dial(friend, &[ask]).unwrap();
        assert_eq!(answers[0].status, status, "{why}");
    }
    let enemy = inbound.authority.issue(&Leaf::valid(&spiffe("enemy")));
    let answers = inbound.dial(enemy, &[connect(&inbound.authority_of(8080))]).unwrap();
    assert_eq!(answers[0].status, 401);
    assert!(echo.peers().is_empty(), "none of these reached the application");
    let denied = inbound
        .world
        .agent
        .wait_audit("the denial", |event| event["decision"] == "DENY" && event["response_code"] == 401);
    assert_eq!(denied["source_identity"], spiffe("enemy"));
    assert_eq!(denied["policy"], "prod/friend-only");

    let friend = inbound.authority.issue(&Leaf::valid(&spiffe("friend")));
    assert_eq!(inbound.dial(friend, &[connect(&inbound.authority_of(8080))]).unwrap()[0].status, 200);
}

#[test]
fn a_client_whose_certificate_is_not_good_gets_no_tunnel() {
    let inbound = Inbound::start(|_| {});
    let echo = Server::echo(&inbound.world.server.ns, any(8080));
    let ca = &inbound.authority;
    let id = spiffe("outside");
    let ask = [Ask::connect(&inbound.authority_of(8080), b"CANARY")];
    let bad = [
        (ca.issue(&Leaf::expired(&id)), "certificate_expired"),
        (ca.issue(&Leaf::not_yet_valid(&id)), "not_yet_valid"),
        (ca.intermediate().issue_bare(&Leaf::valid(&id)), "missing_issuer"),
        (ca.issue(&Leaf::valid("spiffe://elsewhere.test/ns/prod/sa/x")), "trust_domain"),
        (ca.issue(&Leaf { uris: Vec::new(), ..Leaf::valid(&id) }), "chain_validation_failed"),
    ];
    for (credentials, reason) in bad {
        let tunnel = inbound.dial(credentials, &ask);
        assert!(tunnel.is_err(), "{reason}: {tunnel:?}");
        inbound.world.agent.wait_audit(reason, |event| event["direction"] == "inbound" && is_failure(event, reason));
    }
    let unknown = Authority::unknown().issue(&Leaf::valid(&id));
    assert!(inbound.dial(unknown, &ask).is_err());
    // A port scan is not an attack, but it is seen.
    let _ = exchange(&inbound.outside.ns, inbound.world.server.at(15008), b"GET / HTTP/1.1\r\n\r\n");
    inbound.world.agent.wait_audit("no TLS", |event| is_failure(event, "not_tls"));
    assert!(echo.peers().is_empty());
    assert_eq!(inbound.dial(ca.intermediate().issue(&Leaf::valid(&id)), &ask).unwrap()[0].status, 200);
}
