use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_core::identity::SpiffeId;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::identity::{IdentitySnapshot, TrustBundle};
use crate::testing::*;

const LIMIT: Duration = Duration::from_secs(5);

type Outcome = Result<PeerFacts, HandshakeFailure>;

/// One handshake; each side ends with a byte from the other, because a TLS 1.3
/// client learns of its refusal only then.
async fn handshake(client: &IdentitySnapshot, expected: &[SpiffeId], server: &IdentitySnapshot) -> (Outcome, Outcome) {
    let (at_client, at_server) = tcp_pair().await;
    let client = async {
        let (mut stream, peer) = connect(at_client, client, expected, LIMIT).await?;
        stream.receive().await?;
        Ok(peer)
    };
    let server = async {
        let (mut stream, peer) = accept(at_server, server, LIMIT).await?;
        stream.send(b"x").await?;
        Ok(peer)
    };
    tokio::join!(client, server)
}

fn with(snapshot: &IdentitySnapshot, change: impl FnOnce(&mut IdentitySnapshot)) -> IdentitySnapshot {
    let mut new = IdentitySnapshot::new(
        snapshot.svid.clone(),
        snapshot.bundle.clone(),
        snapshot.generation,
        snapshot.clock().clone(),
    );
    change(&mut new);
    new
}

fn reason(outcome: &Outcome) -> &'static str {
    outcome.as_ref().err().map_or("success", HandshakeFailure::as_str)
}

#[test]
fn both_sides_learn_who_the_other_is() {
    on_worker(async {
        let ca = test_ca();
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let (at_client, at_server) = handshake(&client, &[id("server")], &server).await;
        let (at_client, at_server) = (at_client.unwrap(), at_server.unwrap());
        assert_eq!(at_client.id, id("server"));
        assert_eq!(at_server.id, id("client"));
        assert_eq!(at_server.serial, client.svid.serial());
        assert_eq!(at_client.not_after, server.svid.not_after());
        assert!(at_client.cipher_suite.contains("AES_128_GCM"), "{}", at_client.cipher_suite);
        assert!(at_client.issuer.contains("Warren intermediate node"), "{}", at_client.issuer);
    });
}

#[test]
fn the_client_takes_the_expected_identity_only() {
    on_worker(async {
        let ca = test_ca();
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let (at_client, at_server) = handshake(&client, &[id("other")], &server).await;
        assert_eq!(
            at_client.unwrap_err(),
            HandshakeFailure::IdentityMismatch { expected: vec![id("other")], presented: id("server") }
        );
        let alert = PeerAlert(rustls::AlertDescription::AccessDenied);
        assert_eq!(at_server.unwrap_err(), HandshakeFailure::RefusedByPeer(alert));

        let (at_client, _) = handshake(&client, &[], &server).await;
        assert_eq!(reason(&at_client), "identity_mismatch");
        let several = [id("other"), id("server")];
        assert!(handshake(&client, &several, &server).await.0.is_ok());
    });
}

#[test]
fn expired_and_not_yet_valid_are_told_apart() {
    on_worker(async {
        let dir = Rc::new(TempDir::new());
        let now = SystemTime::now();
        let at = |t| Arc::new(ManualClock::new(t));
        let today = ca_in(&dir, &at(now), "td");
        let tomorrow = ca_in(&dir, &at(now + Duration::from_secs(86_400)), "td");
        let (old, new) = (today.snapshot(&id("old")), tomorrow.snapshot(&id("new")));

        let (client, server) = handshake(&new, &[id("old")], &old).await;
        assert_eq!((reason(&client), reason(&server)), ("certificate_expired", "certificate_expired"));
        // TLS has one alert for both; our own side knows better.
        let (client, server) = handshake(&old, &[id("new")], &new).await;
        assert_eq!((reason(&client), reason(&server)), ("not_yet_valid", "certificate_expired"));
        // And the server judges its client the same way.
        let late = IdentitySnapshot::new(old.svid.clone(), old.bundle.clone(), 1, new.clock().clone());
        let (client, server) = handshake(&late, &[id("new")], &new).await;
        assert_eq!((reason(&client), reason(&server)), ("certificate_expired", "certificate_expired"));
    });
}

#[test]
fn a_missing_intermediate_is_named() {
    on_worker(async {
        let ca = test_ca();
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let forgetful = with(&server, |s| s.svid = Arc::new(s.svid.without_intermediates()));
        let (at_client, at_server) = handshake(&client, &[id("server")], &forgetful).await;
        assert!(
            matches!(&at_client, Err(HandshakeFailure::MissingIssuer(issuer)) if issuer.contains("Warren intermediate")),
            "{at_client:?}"
        );
        assert_eq!(reason(&at_server), "chain_validation_failed");

        let forgetful = with(&client, |s| s.svid = Arc::new(s.svid.without_intermediates()));
        let (at_client, at_server) = handshake(&forgetful, &[id("server")], &server).await;
        assert_eq!(reason(&at_server), "missing_issuer");
        let alert = PeerAlert(rustls::AlertDescription::UnknownCA);
        assert_eq!(at_client.unwrap_err(), HandshakeFailure::RefusedByPeer(alert));
    });
}

#[test]
fn a_root_of_another_ca_does_not_vouch() {
    on_worker(async {
        let (ours, theirs) = (test_ca(), test_ca());
        let (client, server) = (ours.snapshot(&id("client")), theirs.snapshot(&id("server")));
        let (at_client, _) = handshake(&client, &[id("server")], &server).await;
        assert_eq!(reason(&at_client), "chain_validation_failed");
        // Nor does an empty bundle trust anybody.
        let bundle = Arc::new(TrustBundle::new(td("td"), vec![]).unwrap());
        let nobody = with(&server, |s| s.bundle = bundle);
        let client = theirs.snapshot(&id("client"));
        let (_, at_server) = handshake(&client, &[id("server")], &nobody).await;
        assert!(at_server.is_err());
    });
}

#[test]
fn a_foreign_trust_domain_is_refused_even_if_its_root_were_trusted() {
    on_worker(async {
        let (ours, theirs) = (ca_of("td"), ca_of("foreign"));
        let foreign = SpiffeId::new(&td("foreign"), "ns", "client").unwrap();
        let client = theirs.snapshot(&foreign);
        let server = ours.snapshot(&id("server"));
        let roots = [ours.snapshot(&id("server")).bundle.roots(), client.bundle.roots()].concat();
        let pooled = Arc::new(TrustBundle::new(td("td"), roots.clone()).unwrap());
        let server = with(&server, |s| s.bundle = pooled);
        let both = Arc::new(TrustBundle::new(td("td"), roots).unwrap());
        let client = with(&client, |s| s.bundle = both);
        let (at_client, at_server) = handshake(&client, &[id("server")], &server).await;
        assert_eq!(at_server.unwrap_err(), HandshakeFailure::TrustDomain { own: td("td"), presented: foreign });
        let alert = PeerAlert(rustls::AlertDescription::AccessDenied);
        assert_eq!(at_client.unwrap_err(), HandshakeFailure::RefusedByPeer(alert));
    });
}

#[test]
fn plaintext_is_not_tls() {
    on_worker(async {
        let ca = test_ca();
        let server = ca.snapshot(&id("server"));
        let (mut client, at_server) = tcp_pair().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let failure = accept(at_server, &server, LIMIT).await.err().unwrap();
        assert_eq!(failure, HandshakeFailure::NotTls);
    });
}

#[test]
fn a_silent_peer_times_out_and_a_closed_one_breaks() {
    on_worker(async {
        let ca = test_ca();
        let server = ca.snapshot(&id("server"));
        let (_client, at_server) = tcp_pair().await;
        let failure = accept(at_server, &server, Duration::from_millis(50)).await.err().unwrap();
        assert_eq!(failure, HandshakeFailure::Timeout);
        let (client, at_server) = tcp_pair().await;
        drop(client);
        let failure = accept(at_server, &server, LIMIT).await.err().unwrap();
        assert_eq!(failure.as_str(), "io");
    });
}

#[test]
fn the_hello_names_no_server_and_offers_only_h2_and_tls_13() {
    on_worker(async {
        let ca = test_ca();
        let client = ca.snapshot(&id("client"));
        let (at_client, mut at_server) = tcp_pair().await;
        let hello = async {
            let mut acceptor = Acceptor::default();
            loop {
                let mut bytes = [0; 4096];
                let n = at_server.read(&mut bytes).await.unwrap();
                acceptor.read_tls(&mut &bytes[..n]).unwrap();
                if let Some(accepted) = acceptor.accept().map_err(|(e, _)| e).unwrap() {
                    break accepted;
                }
            }
        };
        let expected = [id("server")];
        let connecting = connect(at_client, &client, &expected, LIMIT);
        tokio::pin!(connecting);
        let accepted = tokio::select! {
            accepted = hello => accepted,
            _ = &mut connecting => unreachable!("nobody answers"),
        };
        let hello = accepted.client_hello();
        assert_eq!(hello.server_name(), None);
        assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"h2"]);
        // 0x00ff only says that renegotiation is understood.
        let suites: Vec<u16> = hello.cipher_suites().iter().map(|s| u16::from(*s)).collect();
        assert!(suites.iter().all(|s| [0x1301, 0x1302, 0x00ff].contains(s)), "{suites:x?}");
    });
}

#[test]
fn no_session_can_be_resumed() {
    on_worker(async {
        let ca = test_ca();
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let (at_client, at_server) = tcp_pair().await;
        let expected = [id("server")];
        let accepting = async {
            let (mut server, _) = accept(at_server, &server, LIMIT).await.unwrap();
            server.send(b"x").await.unwrap();
            server
        };
        let (mut client, _server) = tokio::join!(other_client(at_client, &client, &expected), accepting);
        client.read_u8().await.unwrap();
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(client.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    });
}

/// Talks both ways, with a change of keys on either side and a change that the other asked for.
async fn talk(ours: &mut Secured, theirs: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), size: usize) {
    let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
    for (piece, _) in data.chunks(16_384).zip(0..) {
        ours.send(piece).await.unwrap();
    }
    let mut read = vec![0; size];
    theirs.read_exact(&mut read).await.unwrap();
    assert!(read == data);
    theirs.write_all(&data).await.unwrap();
    theirs.flush().await.unwrap();
    let mut back = Vec::new();
    while back.len() < size {
        back.extend(ours.receive().await.unwrap());
    }
    assert!(back == data);
}

#[test]
fn records_are_those_of_another_implementation_also_after_new_keys() {
    on_worker(async {
        let ca = test_ca();
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let expected = [id("server")];

        let (at_client, at_server) = tcp_pair().await;
        let (ours, mut theirs) =
            tokio::join!(connect(at_client, &client, &expected, LIMIT), other_server(at_server, &server));
        let (mut ours, _) = ours.unwrap();
        talk(&mut ours, &mut theirs, 100_000).await;
        ours.update_keys().await;
        talk(&mut ours, &mut theirs, 10).await;
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        talk(&mut ours, &mut theirs, 10).await;
        assert!(ours.opener.take_owed_update());
        ours.update_keys().await;
        talk(&mut ours, &mut theirs, 10).await;

        let (at_client, at_server) = tcp_pair().await;
        let (mut theirs, ours) =
            tokio::join!(other_client(at_client, &client, &expected), accept(at_server, &server, LIMIT));
        let (mut ours, _) = ours.unwrap();
        talk(&mut ours, &mut theirs, 100_000).await;
        ours.update_keys().await;
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        talk(&mut ours, &mut theirs, 10).await;
    });
}

#[test]
fn an_issued_leaf_has_the_profile_of_an_svid() {
    let ca = test_ca();
    let snapshot = ca.snapshot(&id("server"));
    let chain = snapshot.svid.chain();
    assert_eq!(chain.len(), 2, "leaf and intermediate, no root");
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert!(leaf.subject().iter().next().is_none(), "the subject is empty");
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical, "the SAN is critical when the subject is empty");
    assert_eq!(san.value.general_names.len(), 1);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature only");
    let eku = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.server_auth && eku.client_auth && eku.other.is_empty());
    let now = ca.clock.now();
    let from = snapshot.svid.not_before();
    let back = now.duration_since(from).unwrap();
    assert!(back >= Duration::from_secs(10) && back < Duration::from_secs(12), "{back:?}");
}

#[test]
fn a_ca_certificate_is_no_leaf() {
    let ca = test_ca();
    let snapshot = ca.snapshot(&id("server"));
    let facts = LeafFacts::parse(&snapshot.svid.chain()[1]).unwrap();
    assert!(facts.identity().is_err());
    let root = LeafFacts::parse(&snapshot.bundle.roots()[0]).unwrap();
    assert!(root.identity().is_err());
}
