//! The server side of HBONE: one accepted connection and its CONNECT streams.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, timeout};
use warren_core::identity::SpiffeId;
use warren_core::tunnel::Baggage;

use super::error::TunnelError;
use super::keepalive;
use super::stream::HboneStream;
use super::watched::Watched;
use crate::identity::IdentitySnapshot;
use crate::limits::Limits;
use crate::tls::{self, HandshakeFailure, PeerFacts, SharedPeer};

/// Takes an accepted TCP connection through TLS and the HTTP/2 preface, both
/// within `limits.handshake_timeout`. The caller records the outcome
/// ([`Telemetry::handshake`](crate::telemetry::Telemetry::handshake)): it alone
/// knows whose connection this is.
pub async fn accept(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
    limits: &Limits,
) -> Result<HboneServer, HandshakeFailure> {
    let started = Instant::now();
    let (stream, peer) = tls::accept(tcp, snapshot, limits.handshake_timeout).await?;
    let (stream, _late) = Watched::new(stream);
    let rest = limits.handshake_timeout.saturating_sub(started.elapsed());
    let mut connection = match timeout(rest, builder(limits).handshake(stream)).await {
        Err(_) => return Err(HandshakeFailure::Timeout),
        Ok(Err(error)) => return Err(HandshakeFailure::Protocol(error.to_string())),
        Ok(Ok(connection)) => connection,
    };
    let dead: Pin<Box<dyn Future<Output = ()>>> = match connection.ping_pong() {
        Some(pings) => Box::pin(keepalive::until_dead(pings, limits.ping_interval, limits.ping_timeout)),
        None => Box::pin(std::future::pending()),
    };
    let expiry = expires_at(snapshot, &peer);
    let (drain, draining) = watch::channel(false);
    Ok(HboneServer {
        connection,
        peer: Arc::new(peer),
        dead,
        expiry: Box::pin(tokio::time::sleep_until(expiry)),
        drained: Box::pin(drained(draining)),
        drain: DrainHandle(drain),
        leaving: false,
        ended: false,
    })
}

fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.max_frame_size)
        .max_header_list_size(limits.server_header_list)
        .max_concurrent_streams(limits.server_max_streams)
        // A peer whose applications reset at once may be innocent: as many such
        // streams may wait as open ones (the default is 20).
        .max_pending_accept_reset_streams(usize::try_from(limits.server_max_streams).unwrap_or(usize::MAX))
        .data_frame_budget(limits.small_frame_budget)
        .max_send_buffer_size(limits.send_buffer);
    builder
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

/// An accepted HBONE connection. [`next`](Self::next) must be polled all the
/// time: it drives every stream of the connection.
pub struct HboneServer {
    connection: Connection<Watched, Bytes>,
    peer: SharedPeer,
    dead: Pin<Box<dyn Future<Output = ()>>>,
    expiry: Pin<Box<Sleep>>,
    drained: Pin<Box<dyn Future<Output = ()>>>,
    drain: DrainHandle,
    leaving: bool,
    ended: bool,
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
        if self.ended {
            return Poll::Ready(None);
        }
        if self.dead.as_mut().poll(cx).is_ready() {
            self.ended = true;
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            let _ = self.connection.poll_closed(cx);
            return Poll::Ready(Some(Err(TunnelError::PeerDead)));
        }
        let leave =
            !self.leaving && (self.drained.as_mut().poll(cx).is_ready() || self.expiry.as_mut().poll(cx).is_ready());
        if leave {
            self.leaving = true;
            self.connection.graceful_shutdown();
        }
        let next = std::task::ready!(self.connection.poll_accept(cx));
        Poll::Ready(next.map(|accepted| match accepted {
            Ok((request, respond)) => {
                let (parts, recv) = request.into_parts();
                Ok(InboundStream { parts, recv, respond, peer: Arc::clone(&self.peer) })
            }
            Err(error) => {
                self.ended = true;
                Err(TunnelError::http2(&error))
            }
        }))
    }
}

/// A CONNECT request that waits for its answer. Dropping it resets the stream.
pub struct InboundStream {
    parts: Parts,
    recv: RecvStream,
    respond: SendResponse<Bytes>,
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
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // The stream may be gone already; then there is nobody to tell.
        let _ = self.respond.send_response(response, true);
    }

    /// Waits until the peer gives the stream up, for use while the application
    /// is being connected.
    pub async fn reset(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers 200. The application must be connected by now.
    pub fn accept(mut self, own: &Baggage) -> Result<HboneStream, TunnelError> {
        let mut response = Response::new(());
        if let Some(value) = own.to_header() {
            response.headers_mut().insert(warren_core::tunnel::headers::BAGGAGE, value);
        }
        let send = self.respond.send_response(response, false).map_err(|error| TunnelError::http2(&error))?;
        let peer_baggage = Baggage::from_headers(&self.parts.headers);
        Ok(HboneStream {
            send,
            recv: self.recv,
            peer: self.peer,
            peer_baggage,
            early_sent: 0,
            app_ended: false,
            guard: None,
        })
    }
}
