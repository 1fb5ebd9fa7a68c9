//! What one side refuses, the other's client must see as an end, without a byte and without a hang.

use std::time::Duration;

use serde_json::Value;
use warren_test_support::Server;
use warren_test_support::client::{assert_echo, assert_refused, connect, ping_pong, wait_cut};
use warren_test_support::lab::TRUST_DOMAIN;

use crate::mesh::{Mesh, Way, any, assert_no_answer};
use crate::peer::Peer;

fn is_handshake(event: &Value, direction: &str, result: &str) -> bool {
    event["event"] == "mtls_handshake" && event["direction"] == direction && event["result"] == result
}

pub(crate) fn warrens_policy_ends_ztunnels_client(peer: &Peer) {
    let mut mesh = Mesh::with(peer, &[], |draft| {
        let rule = format!(
            "[{{from: [{{source: {{principals: [{TRUST_DOMAIN}/ns/prod/sa/theirs]}}}}], \
             to: [{{operation: {{ports: [\"8080\"]}}}}]}}]"
        );
        draft.lab.manifest.set_mtls(None, "STRICT");
        draft.lab.manifest.set_policy("only-8080", "ours", "ALLOW", &rule);
    });
    let (allowed, denied) = (Server::echo(&mesh.ours.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8081)));
    assert_echo(&mesh.theirs.ns, mesh.ours.at(8080), b"allowed");
    assert_no_answer(&mesh.theirs.ns, &mesh.ours, 8081);
    assert!(denied.peers().is_empty());
    let event = mesh.agent.wait_audit("the denial", |event| event["decision"] == "DENY");
    assert_eq!(event["source_identity"], mesh.theirs.identity(), "{event:#}");
    assert_eq!(event["response_code"], 401, "{event:#}");
    mesh.ztunnel.wait_log(&["error", "401"]);

    // A connection that lives loses its right: it ends at once, and the tunnel serves others as before.
    let mut open = connect(&mesh.theirs.ns, mesh.ours.at(8080)).expect("connect");
    assert_eq!(ping_pong(&mut open, b"still allowed").expect("answer"), b"still allowed");
    mesh.lab.manifest.set_policy("not-8080", "ours", "DENY", "[{to: [{operation: {ports: [\"8080\"]}}]}]");
    mesh.lab.apply(&[&mesh.agent]);
    wait_cut(&mut open, Duration::from_secs(5));
    assert_no_answer(&mesh.theirs.ns, &mesh.ours, 8080);
    mesh.lab.manifest.remove("policy not-8080");
    mesh.lab.apply(&[&mesh.agent]);
    assert_echo(&mesh.theirs.ns, mesh.ours.at(8080), b"allowed again");
    assert_eq!(allowed.peers().len(), 3);
}

pub(crate) fn ztunnels_policy_resets_warrens_client(peer: &Peer) {
    let mesh = Mesh::with(peer, &[], |draft| {
        draft.known.allowed = Some(vec![format!("{TRUST_DOMAIN}/ns/prod/sa/somebody-else")]);
    });
    let echo = Server::echo(&mesh.theirs.ns, any(8080));
    assert_refused(&mesh.ours.ns, mesh.theirs.at(8080), b"hello");
    assert!(echo.peers().is_empty());
    let event = mesh.agent.wait_audit("the peer's denial", |event| event["response_code"] == 401);
    assert_eq!(event["decision"], "DENY", "{event:#}");

    let mesh = Mesh::with(peer, &[], |draft| {
        draft.known.allowed = Some(vec![format!("{TRUST_DOMAIN}/ns/prod/sa/ours")]);
    });
    let _echo = Server::echo(&mesh.theirs.ns, any(8080));
    assert_echo(&mesh.ours.ns, mesh.theirs.at(8080), b"ztunnel reads our identity as we mean it");
}

pub(crate) fn ztunnel_refuses_a_warren_pod_that_is_not_whom_it_expects(peer: &Peer) {
    let mesh = Mesh::with(peer, &[], |draft| draft.known.pods[0].service_account = "somebody-else".to_owned());
    let echo = Server::echo(&mesh.ours.ns, any(8080));
    assert_no_answer(&mesh.theirs.ns, &mesh.ours, 8080);
    assert!(echo.peers().is_empty());
    mesh.ztunnel.wait_log(&["error", "identity verification error"]);
    mesh.agent.wait_audit("the handshake that ztunnel broke off", |event| is_handshake(event, "inbound", "failure"));
}

pub(crate) fn warren_refuses_a_ztunnel_pod_that_is_not_whom_it_expects(peer: &Peer) {
    let mesh = Mesh::with(peer, &[], |draft| {
        let mut believed = draft.theirs.document.clone();
        believed.service_account = "somebody-else".to_owned();
        draft.lab.manifest.set_pod(&believed);
    });
    let echo = Server::echo(&mesh.theirs.ns, any(8080));
    assert_refused(&mesh.ours.ns, mesh.theirs.at(8080), b"hello");
    assert!(echo.peers().is_empty());
    let event = mesh.agent.wait_audit("the refusal", |event| is_handshake(event, "outbound", "failure"));
    assert_eq!(event["failure_reason"], "identity_mismatch", "{event:#}");
}

pub(crate) fn each_side_refuses_a_foreign_trust_domain_under_the_same_root(peer: &Peer) {
    let mesh = Mesh::with(peer, &[], |draft| draft.known.pods[1].trust_domain = "foreign.test".to_owned());
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let echo = Server::echo(&server.ns, any(8080));
        match way {
            Way::ToZtunnel => drop(assert_refused(&client.ns, server.at(8080), b"hello")),
            Way::FromZtunnel => assert_no_answer(&client.ns, server, 8080),
        }
        assert!(echo.peers().is_empty(), "{way:?}");
    }
    let outbound = mesh.agent.wait_audit("our client's refusal", |event| is_handshake(event, "outbound", "failure"));
    assert_eq!(outbound["failure_reason"], "trust_domain", "{outbound:#}");
    let inbound = mesh.agent.wait_audit("our server's refusal", |event| is_handshake(event, "inbound", "failure"));
    assert_eq!(inbound["failure_reason"], "trust_domain", "{inbound:#}");
}

pub(crate) fn an_application_that_does_not_listen_is_a_refusal(peer: &Peer) {
    let mesh = Mesh::start(peer);
    assert_refused(&mesh.ours.ns, mesh.theirs.at(9999), b"hello");
    assert_no_answer(&mesh.theirs.ns, &mesh.ours, 9999);
    mesh.agent.wait_audit("ztunnel's 503", |event| event["direction"] == "outbound" && event["response_code"] == 503);
    mesh.ztunnel.wait_log(&["error", "503"]);
    // The tunnels of before serve on.
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _echo = Server::echo(&server.ns, any(8080));
        assert_echo(&client.ns, server.at(8080), b"listening");
    }
}

pub(crate) fn plaintext_follows_peer_authentication(peer: &Peer) {
    // Each side takes the other's pod for one outside the mesh.
    let mut mesh = Mesh::with(peer, &[], |draft| {
        draft.known.pods[0].hbone = false;
        let mut believed = draft.theirs.document.clone();
        believed.ambient = false;
        draft.lab.manifest.set_pod(&believed);
    });
    let (_echo, own) = (Server::echo(&mesh.theirs.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8080)));
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        assert_echo(&client.ns, server.at(8080), b"in clear");
    }
    assert_eq!(own.peer_ips(), [mesh.theirs.v4()]);
    mesh.lab.manifest.set_mtls(None, "STRICT");
    mesh.lab.apply(&[&mesh.agent]);
    assert_no_answer(&mesh.theirs.ns, &mesh.ours, 8080);
    assert_eq!(own.peers().len(), 1, "plaintext entered a STRICT pod");
}
