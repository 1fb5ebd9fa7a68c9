//! One pooled client connection: what is known of it, and the task that drives
//! it.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::sync::Notify;
use tokio::time::Instant;
use warren_core::pool::TunnelState;

use super::error::TunnelError;
use super::keepalive;
use super::watched::{LateFailure, Watched};
use crate::clock::Clock;
use crate::identity::{IdentitySnapshot, TrustBundle};
use crate::limits::Limits;
use crate::tls::{SharedPeer, TlsStream, peer_still_trusted};

/// A client connection, shared by the pool and its streams.
pub(super) struct Tunnel {
    requests: SendRequest<Bytes>,
    pub(super) peer: SharedPeer,
    state: Rc<State>,
    not_after: SystemTime,
    clock: Arc<dyn Clock>,
    /// The bundle under which the peer was judged last.
    judged: std::cell::RefCell<Arc<TrustBundle>>,
}

struct State {
    streams: Cell<u32>,
    closing: Cell<bool>,
    unused_since: Cell<Instant>,
    /// Told whenever the last stream ends.
    idle: Notify,
    late: LateFailure,
}

/// Counts a stream on its connection while it lives.
pub(crate) struct StreamGuard(Rc<State>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let left = self.0.streams.get().saturating_sub(1);
        self.0.streams.set(left);
        if left == 0 {
            self.0.unused_since.set(Instant::now());
            self.0.idle.notify_one();
        }
    }
}

impl Tunnel {
    /// Speaks HTTP/2 on a finished TLS connection and starts its driver. When
    /// the connection is unused for `limits.pool_unused`, or over, `retire` is
    /// called; it then lives only as long as its streams.
    pub(super) async fn start(
        stream: TlsStream,
        peer: SharedPeer,
        snapshot: &IdentitySnapshot,
        limits: &Limits,
        retire: impl Fn(&Weak<Self>) + 'static,
    ) -> Result<Rc<Self>, TunnelError> {
        let (stream, late) = Watched::new(stream);
        let handshake = builder(limits).handshake(stream).await;
        let (requests, connection) = handshake.map_err(|e| TunnelError::http2(&e))?;
        let state = Rc::new(State {
            streams: Cell::new(0),
            closing: Cell::new(false),
            unused_since: Cell::new(Instant::now()),
            idle: Notify::new(),
            late,
        });
        let tunnel = Rc::new(Self {
            requests,
            peer,
            state: Rc::clone(&state),
            not_after: snapshot.svid.not_after(),
            clock: Arc::clone(snapshot.clock()),
            judged: std::cell::RefCell::new(Arc::clone(&snapshot.bundle)),
        });
        let weak = Rc::downgrade(&tunnel);
        let driver = drive(connection, state, limits.clone(), move || retire(&weak));
        tokio::task::spawn_local(driver);
        Ok(tunnel)
    }

    /// What the check-out rule wants to know.
    pub(super) fn observe(&self, limits: &Limits) -> TunnelState {
        let streams = self.state.streams.get();
        let unused = match streams {
            0 => self.state.unused_since.get().elapsed(),
            _ => Duration::ZERO,
        };
        let own_limit = u32::try_from(limits.pool_streams_per_connection).unwrap_or(u32::MAX);
        let peer_limit = self.requests.current_max_send_streams();
        TunnelState {
            streams,
            peer_limit: u32::try_from(peer_limit).unwrap_or(u32::MAX),
            own_limit,
            closing: self.state.closing.get(),
            unused,
            unused_limit: limits.pool_unused,
            svid_remaining: self.not_after.duration_since(self.clock.now()).unwrap_or_default(),
        }
    }

    /// Whether the peer is still acceptable under the bundle of today; verified
    /// again only when the bundle changed.
    pub(super) fn trusted_under(&self, bundle: &Arc<TrustBundle>) -> bool {
        if Arc::ptr_eq(&self.judged.borrow(), bundle) {
            return true;
        }
        let trusted = peer_still_trusted(&self.peer, bundle, self.clock.as_ref());
        if trusted {
            *self.judged.borrow_mut() = Arc::clone(bundle);
        }
        trusted
    }

    /// No new streams on this connection.
    pub(super) fn close_for_new(&self) {
        self.state.closing.set(true);
    }

    /// Counts a stream; call before the first await after check-out.
    pub(super) fn stream_guard(&self) -> StreamGuard {
        self.state.streams.set(self.state.streams.get() + 1);
        StreamGuard(Rc::clone(&self.state))
    }

    pub(super) fn requests(&self) -> SendRequest<Bytes> {
        self.requests.clone()
    }

    /// The handshake failure behind an HTTP/2 error, if there was one.
    pub(super) fn explain(&self, error: TunnelError) -> TunnelError {
        match self.state.late.borrow().as_ref() {
            Some(failure) => TunnelError::Handshake(failure.clone()),
            None => error,
        }
    }
}

fn builder(limits: &Limits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.max_frame_size)
        .max_header_list_size(limits.client_header_list)
        .data_frame_budget(limits.small_frame_budget)
        .max_send_buffer_size(limits.send_buffer)
        .initial_max_send_streams(limits.pool_streams_per_connection)
        .enable_push(false);
    builder
}

/// Runs the connection to its end. Leaving the pool drops the last
/// `SendRequest`; h2 then closes the connection once its streams are over.
async fn drive(mut connection: Connection<Watched, Bytes>, state: Rc<State>, limits: Limits, retire: impl Fn()) {
    let pings = connection.ping_pong();
    let dead = async {
        match pings {
            Some(pings) => {
                keepalive::until_dead(pings, limits.ping_interval, limits.ping_timeout).await;
            }
            None => std::future::pending().await,
        }
    };
    let unused = unused(&state, limits.pool_unused);
    tokio::pin!(dead, unused);
    let mut connection = Box::pin(connection);
    tokio::select! {
        _ = &mut connection => {}
        () = &mut dead => {}
        () = &mut unused => {
            state.closing.set(true);
            retire();
            tokio::select! {
                _ = &mut connection => {}
                () = &mut dead => {}
            }
        }
    }
    state.closing.set(true);
    retire();
}

/// Returns when the connection has had no stream for `limit`.
async fn unused(state: &State, limit: Duration) {
    loop {
        if state.streams.get() > 0 {
            state.idle.notified().await;
            continue;
        }
        let deadline = state.unused_since.get() + limit;
        if Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}
