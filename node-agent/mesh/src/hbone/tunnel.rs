//! One pooled client connection: what is known of it, and the task that drives
//! it.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;
use warren_core::http2::{Config, Connection};
use warren_core::pool::TunnelState;

use super::driver::Driver;
use super::error::TunnelError;
use super::keepalive;
use super::session::Session;
use super::stream::StreamHandle;
use crate::clock::Clock;
use crate::identity::{IdentitySnapshot, TrustBundle};
use crate::limits::Limits;
use crate::tls::{Secured, SharedPeer, peer_still_trusted};

/// A client connection, shared by the pool and its streams.
pub(super) struct Tunnel {
    session: Rc<Session>,
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
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.session.leave_when_idle();
    }
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
    pub(super) fn start(
        secured: Secured,
        peer: SharedPeer,
        snapshot: &IdentitySnapshot,
        limits: &Limits,
        retire: impl Fn(&Weak<Self>) + 'static,
    ) -> Rc<Self> {
        let (session, driver) = Session::new(secured, Connection::client(config(limits)));
        let state = Rc::new(State {
            streams: Cell::new(0),
            closing: Cell::new(false),
            unused_since: Cell::new(Instant::now()),
            idle: Notify::new(),
        });
        let tunnel = Rc::new(Self {
            session: session.clone(),
            peer,
            state: Rc::clone(&state),
            not_after: snapshot.svid.not_after(),
            clock: Arc::clone(snapshot.clock()),
            judged: std::cell::RefCell::new(Arc::clone(&snapshot.bundle)),
        });
        let weak = Rc::downgrade(&tunnel);
        tokio::task::spawn_local(drive(session, driver, state, limits.clone(), move || retire(&weak)));
        tunnel
    }

    /// What the check-out rule wants to know.
    pub(super) fn observe(&self, limits: &Limits) -> TunnelState {
        let streams = self.state.streams.get();
        let unused = match streams {
            0 => self.state.unused_since.get().elapsed(),
            _ => Duration::ZERO,
        };
        let own_limit = u32::try_from(limits.pool_streams_per_connection).unwrap_or(u32::MAX);
        let session = self.session.state.borrow();
        TunnelState {
            streams,
            peer_limit: session.connection.peer_max_streams(),
            own_limit,
            heavy: self.session.is_heavy(),
            closing: self.state.closing.get() || session.peer_leaving || session.over.is_some(),
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

    /// Opens a stream with a CONNECT request.
    pub(super) fn open(&self, request: &http::Request<()>) -> Result<StreamHandle, TunnelError> {
        self.session.open(request)
    }
}

fn config(limits: &Limits) -> Config {
    Config { max_header_list: limits.client_header_list, ..limits.http2() }
}

/// Runs the connection to its end. Leaving the pool drops the `Tunnel`; the
/// connection then closes once its streams are over.
async fn drive(session: Rc<Session>, driver: Driver, state: Rc<State>, limits: Limits, retire: impl Fn()) {
    let dead = keepalive::until_dead(&session, limits.ping_interval, limits.ping_timeout);
    let unused = unused(&state, limits.pool_unused);
    let running = driver.run();
    tokio::pin!(dead, unused, running);
    let alive = tokio::select! {
        biased;
        () = &mut running => true,
        () = &mut dead => false,
        () = &mut unused => {
            state.closing.set(true);
            retire();
            tokio::select! {
                biased;
                () = &mut running => true,
                () = &mut dead => false,
            }
        }
    };
    state.closing.set(true);
    if !alive {
        session.state.borrow_mut().end(TunnelError::PeerDead, false);
    }
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
