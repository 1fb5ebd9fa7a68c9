mod ahead;
mod endings;
mod sharing;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use warren_core::identity::SpiffeId;
use warren_core::tunnel::{Baggage, ConnectRequest};

use super::*;
use crate::copy;
use crate::identity::SvidSource as _;
use crate::limits::Limits;
use crate::testing::*;
use crate::tls::HandshakeFailure;

const SOON: Duration = Duration::from_secs(5);

/// A bare h2 server behind our TLS, to misbehave with.
async fn raw_server(
    listener: &TcpListener,
    snapshot: &crate::identity::IdentitySnapshot,
) -> h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes> {
    let (tcp, _) = listener.accept().await.unwrap();
    h2::server::handshake(other_server(tcp, snapshot).await).await.unwrap()
}

/// Answers 200 and keeps the stream open.
fn hold(stream: InboundStream) {
    let stream = stream.accept(&Baggage::default());
    spawn_local(async move {
        let _stream = stream.unwrap();
        std::future::pending::<()>().await;
    });
}

async fn refused_with(status: StatusCode) -> TunnelError {
    let ca = test_ca();
    let handle = move |stream: InboundStream| stream.refuse(status);
    let limits = Limits::default();
    let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), handle).await;
    let (_app, at_client) = tcp_pair().await;
    Client::new(&ca, &limits, address).open(&at_client).await.err().unwrap()
}

#[test]
fn the_request_and_the_response_carry_what_they_should() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let seen = Rc::new(RefCell::new(None));
        let log = seen.clone();
        let handle = move |stream: InboundStream| {
            let head = ConnectRequest::from_http(stream.parts(), [0; 24]).unwrap();
            *log.borrow_mut() = Some((head, stream.peer().id.clone()));
            hold(stream);
        };
        let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), handle).await;
        let client = Client::new(&ca, &limits, address);
        let (_app, at_client) = tcp_pair().await;
        let stream = client.open(&at_client).await.unwrap();
        assert_eq!(stream.peer().id, id("server"));
        let (head, peer) = seen.borrow_mut().take().unwrap();
        assert_eq!(head, connect_request("10.0.0.1:80"));
        assert_eq!(peer, id("client"));
    });
}

#[test]
fn anything_but_200_is_a_refusal() {
    on_worker(async {
        for status in
            [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_REQUEST, StatusCode::NO_CONTENT]
        {
            let error = refused_with(status).await;
            assert!(matches!(error, TunnelError::Refused(s) if s == status), "{error}");
            assert!(!error.may_retry());
        }
        let denied = refused_with(StatusCode::UNAUTHORIZED).await;
        assert_eq!(denied.response_flag().as_str(), "DENY");
    });
}

#[test]
fn the_wrong_peer_gets_no_bytes() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let (address, _) = serve(ca.snapshot(&id("imposter")), limits.clone(), hold).await;
        let (mut app, at_client) = tcp_pair().await;
        app.write_all(b"secret").await.unwrap();
        let error = Client::new(&ca, &limits, address).open(&at_client).await.err().unwrap();
        let TunnelError::Handshake(HandshakeFailure::IdentityMismatch { presented, .. }) = &error else {
            panic!("{error}");
        };
        assert_eq!(*presented, id("imposter"));
        assert!(ca.telemetry.metrics_text().contains("mtls_handshake_failure_total{reason=\"identity_mismatch\"} 1"));
    });
}

#[test]
fn a_refusal_of_our_certificate_is_told_as_such() {
    on_worker(async {
        // The server trusts our root but takes us for a stranger: its own trust
        // domain is another one.
        let (ours, theirs) = (ca_of("td"), ca_of("other"));
        let server_id = SpiffeId::new(&td("other"), "ns", "server").unwrap();
        let server = theirs.snapshot(&server_id);
        let limits = Limits::default();
        let (address, _) = serve(server.clone(), limits.clone(), hold).await;
        let mut client = Client::new(&ours, &limits, address);
        client.expected = vec![server_id];
        let snapshot = &client.snapshot;
        client.snapshot = Arc::new(crate::identity::IdentitySnapshot::new(
            snapshot.svid.clone(),
            server.bundle.clone(),
            1,
            snapshot.clock().clone(),
        ));
        let (_app, at_client) = tcp_pair().await;
        let error = client.open(&at_client).await.err().unwrap();
        let TunnelError::Handshake(failure @ HandshakeFailure::RefusedByPeer(_)) = &error else {
            panic!("{error}");
        };
        assert_eq!(failure.as_str(), "identity_mismatch");
    });
}

#[test]
fn client_bytes_do_not_wait_for_the_200() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let arrived = Rc::new(Notify::new());
        let told = arrived.clone();
        let answer = Rc::new(Notify::new());
        let go = answer.clone();
        // The server reads the early bytes before it answers, which only a
        // client that does not wait can satisfy.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let snapshot = ca.snapshot(&id("server"));
        spawn_local(async move {
            let mut connection = raw_server(&listener, &snapshot).await;
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut body = request.into_body();
            spawn_local(async move { while connection.accept().await.is_some() {} });
            assert_eq!(body.data().await.unwrap().unwrap(), "hello");
            told.notify_one();
            go.notified().await;
            let _stream = respond.send_response(Response::new(()), false).unwrap();
            std::future::pending::<()>().await;
        });
        let client = Client::new(&ca, &limits, address);
        let (mut app, at_client) = tcp_pair().await;
        app.write_all(b"hello").await.unwrap();
        let release = async {
            arrived.notified().await;
            answer.notify_one();
        };
        let (stream, ()) = tokio::join!(client.open(&at_client), release);
        assert_eq!(stream.unwrap().early_sent(), 5);
    });
}

#[test]
fn early_bytes_are_bounded_and_can_be_switched_off() {
    on_worker(async {
        let ca = test_ca();
        let slow = |stream: InboundStream| {
            spawn_local(async move {
                sleep(Duration::from_millis(200)).await;
                hold(stream);
            });
        };
        for (early_data, most) in [(true, 64 * 1024), (false, 0)] {
            let limits = Limits { early_data, ..Limits::default() };
            let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), slow).await;
            let client = Client::new(&ca, &limits, address);
            let (mut app, at_client) = tcp_pair().await;
            app.write_all(&vec![1; 300_000]).await.unwrap();
            assert_eq!(client.open(&at_client).await.unwrap().early_sent(), most);
        }
    });
}

#[test]
fn a_reset_of_the_application_ends_the_wait() {
    on_worker(async {
        let ca = test_ca();
        for early_data in [true, false] {
            let limits = Limits { early_data, ..Limits::default() };
            let gave_up = Rc::new(Notify::new());
            let told = gave_up.clone();
            let silent = move |mut stream: InboundStream| {
                let told = told.clone();
                spawn_local(async move {
                    stream.reset().await;
                    told.notify_one();
                });
            };
            let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), silent).await;
            let client = Client::new(&ca, &limits, address);
            let (app, at_client) = tcp_pair().await;
            let reset = async {
                sleep(Duration::from_millis(100)).await;
                copy::reset(app);
            };
            let (outcome, ()) = tokio::join!(timeout(SOON, client.open(&at_client)), reset);
            let error = outcome.expect("noticed").err().unwrap();
            assert!(matches!(error, TunnelError::AppReset), "{error}");
            timeout(SOON, gave_up.notified()).await.expect("the peer is told");
        }
    });
}

#[test]
fn applications_that_reset_at_once_do_not_hurt_their_neighbours() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let snapshot = ca.snapshot(&id("server"));
        let (calm, storm_over) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (until_storm, until_over) = (calm.clone(), storm_over.clone());
        let seen = Rc::new(Cell::new(0));
        let counter = seen.clone();
        spawn_local(async move {
            let mut server = raw_server(&listener, &snapshot).await;
            let (_request, mut respond) = server.accept().await.unwrap().unwrap();
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            tokio::select! {
                _ = server.accept() => panic!("a stream before the storm"),
                () = until_storm.notified() => {}
            }
            // A busy server: it finds all that happened meanwhile at once.
            until_over.notified().await;
            send.send_data(Bytes::from_static(b"alive"), false).unwrap();
            while let Some(Ok((_request, mut respond))) = server.accept().await {
                counter.set(counter.get() + 1);
                let _ = respond.send_response(Response::new(()), true);
            }
        });
        let client = Client::new(&ca, &limits, address);
        let (_app, at_client) = tcp_pair().await;
        let neighbour = client.open(&at_client).await.unwrap();
        calm.notify_one();
        for _ in 0..50 {
            let (app, at_client) = tcp_pair().await;
            let reset = async {
                sleep(Duration::from_millis(2)).await;
                copy::reset(app);
            };
            let (outcome, ()) = tokio::join!(timeout(SOON, client.open(&at_client)), reset);
            let error = outcome.expect("noticed").err().unwrap();
            assert!(matches!(error, TunnelError::AppReset), "{error}");
        }
        storm_over.notify_one();
        let data = timeout(SOON, neighbour.next_bytes()).await.expect("no hang");
        assert_eq!(data.expect("the connection lives"), b"alive");
        timeout(SOON, async {
            while seen.get() < 50 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the peer looks at every stream");
    });
}

#[test]
fn a_peer_that_never_answers_is_given_up() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { connect_response_timeout: Duration::from_millis(100), ..Limits::default() };
        let kept = Rc::new(RefCell::new(Vec::new()));
        let keep = kept.clone();
        let handle = move |stream| keep.borrow_mut().push(stream);
        let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), handle).await;
        let (_app, at_client) = tcp_pair().await;
        let error = Client::new(&ca, &limits, address).open(&at_client).await.err().unwrap();
        assert!(matches!(error, TunnelError::ResponseTimeout), "{error}");
    });
}

#[test]
fn an_unreachable_peer_is_told_from_a_silent_one() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { tcp_connect_timeout: Duration::from_millis(100), ..Limits::default() };
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let client = Client::new(&ca, &limits, closed);
        let (_app, at_client) = tcp_pair().await;
        let error = client.open(&at_client).await.err().unwrap();
        assert!(matches!(error, TunnelError::Dial { kind: std::io::ErrorKind::ConnectionRefused, .. }), "{error}");
        client.dials.stuck.set(true);
        let error = client.open(&at_client).await.err().unwrap();
        assert!(matches!(error, TunnelError::DialTimeout), "{error}");
        assert_eq!(error.response_flag().as_str(), "NETWORK_POLICY");
    });
}
