//! The server side of HBONE: one accepted connection and its CONNECT streams.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use warren_core::http2::{Config, Connection};
use warren_core::identity::SpiffeId;
use warren_core::tunnel::Baggage;

use super::driver::Driver;
use super::error::TunnelError;
use super::keepalive;
use super::session::Session;
use super::stream::{HboneStream, StreamHandle};
use crate::identity::IdentitySnapshot;
use crate::limits::Limits;
use crate::tls::{self, HandshakeFailure, PeerFacts, SharedPeer};

/// Takes an accepted TCP connection through TLS, within
/// `limits.handshake_timeout`. The caller records the outcome
/// ([`Telemetry::handshake`](crate::telemetry::Telemetry::handshake)): it alone
/// knows whose connection this is.
pub async fn accept(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
    limits: &Limits,
) -> Result<HboneServer, HandshakeFailure> {
    let (secured, peer) = tls::accept(tcp, snapshot, limits.handshake_timeout).await?;
    let expiry = expires_at(snapshot, &peer);
    let (session, driver) = Session::new(secured, Connection::server(config(limits)));
    tokio::task::spawn_local(drive(session.clone(), driver, limits.clone()));
    let (drain, draining) = watch::channel(false);
    Ok(HboneServer {
        session,
        peer: Arc::new(peer),
        expiry: Box::pin(tokio::time::sleep_until(expiry)),
        drained: Box::pin(drained(draining)),
        drain: DrainHandle(drain),
        leaving: false,
    })
}

fn config(limits: &Limits) -> Config {
    Config { max_header_list: limits.server_header_list, ..limits.http2() }
}

/// Runs the connection to its end.
async fn drive(session: Rc<Session>, driver: Driver, limits: Limits) {
    let alive = tokio::select! {
        biased;
        () = driver.run() => true,
        () = keepalive::until_dead(&session, limits.ping_interval, limits.ping_timeout) => false,
    };
    if !alive {
        session.state.borrow_mut().end(TunnelError::PeerDead, false);
    }
}

/// A connection is not used for new streams beyond the identities it proved.
fn expires_at(snapshot: &IdentitySnapshot, peer: &PeerFacts) -> Instant {
    let now: SystemTime = snapshot.clock().now();
    let theirs = peer.not_after.duration_since(now).unwrap_or_default();
    Instant::now() + snapshot.remaining().min(theirs)
}

async fn drained(mut draining: watch::Receiver<bool>) {
    if draining.wait_for(|drain| *drain).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks a server connection to finish: GOAWAY, then existing streams run to
/// their end. Works from any thread.
#[derive(Debug, Clone)]
pub struct DrainHandle(watch::Sender<bool>);

impl DrainHandle {
    /// Starts the graceful shutdown; repeating it changes nothing.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

/// An accepted HBONE connection. Dropped, it ends at once, with all its streams.
pub struct HboneServer {
    session: Rc<Session>,
    peer: SharedPeer,
    expiry: Pin<Box<Sleep>>,
    drained: Pin<Box<dyn Future<Output = ()>>>,
    drain: DrainHandle,
    leaving: bool,
}

impl Drop for HboneServer {
    fn drop(&mut self) {
        self.session.abort();
    }
}

impl HboneServer {
    /// The authenticated peer.
    pub fn peer(&self) -> &SpiffeId {
        &self.peer.id
    }

    /// What the handshake proved about the peer.
    pub fn peer_facts(&self) -> &Arc<PeerFacts> {
        &self.peer
    }

    /// A handle for graceful shutdown.
    pub fn drain(&self) -> DrainHandle {
        self.drain.clone()
    }

    /// The next CONNECT stream. `None` when the connection is over: closed by
    /// the peer, drained, or its SVID expired and the last stream ended. After
    /// an error comes `None`.
    pub async fn next(&mut self) -> Option<Result<InboundStream, TunnelError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<InboundStream, TunnelError>>> {
        let leave =
            !self.leaving && (self.drained.as_mut().poll(cx).is_ready() || self.expiry.as_mut().poll(cx).is_ready());
        if leave {
            self.leaving = true;
            self.session.drain();
        }
        let next = std::task::ready!(self.session.poll_asked(cx));
        Poll::Ready(next.map(|asked| {
            let asked = asked?;
            Ok(InboundStream { handle: asked.handle, parts: *asked.parts, peer: Arc::clone(&self.peer) })
        }))
    }
}

/// A CONNECT request that waits for its answer. Dropping it resets the stream.
pub struct InboundStream {
    handle: StreamHandle,
    parts: Parts,
    peer: SharedPeer,
}

impl InboundStream {
    /// The request head, not judged yet.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What the handshake proved about the peer.
    pub fn peer(&self) -> &Arc<PeerFacts> {
        &self.peer
    }

    /// Answers with an error status and no body; no reason travels (hbone.md §8).
    pub fn refuse(self, status: StatusCode) {
        // The stream may be gone already; then there is nobody to tell.
        self.handle.respond(status, &HeaderMap::new(), true);
    }

    /// Waits until the peer gives the stream up, for use while the application
    /// is being connected.
    pub async fn reset(&mut self) {
        poll_fn(|cx| self.handle.poll_stopped(cx)).await;
    }

    /// Answers 200. The application must be connected by now.
    pub fn accept(self, own: &Baggage) -> Result<HboneStream, TunnelError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = own.to_header() {
            headers.insert(warren_core::tunnel::headers::BAGGAGE, value);
        }
        if !self.handle.respond(StatusCode::OK, &headers, false) {
            return Err(TunnelError::not_opened("the client gave the stream up"));
        }
        Ok(HboneStream {
            handle: self.handle,
            peer: self.peer,
            early_sent: 0,
            app_ended: false,
            sends_much: Cell::default(),
            _guard: None,
        })
    }
}
