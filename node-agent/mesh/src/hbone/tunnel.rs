//! One pooled client connection: what is known of it, and the task that drives
//! it.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;
use warren_core::http2::{Config, Connection};
use warren_core::pool::{TunnelState, expiry_lead};

use super::driver::Driver;
use super::error::TunnelError;
use super::keepalive;
use super::pool::Usage;
use super::session::Session;
use super::stream::StreamHandle;
use crate::clock::Clock;
use crate::identity::{IdentitySnapshot, TrustBundle};
use crate::limits::Limits;
use crate::tls::{HandshakeFailure, Secured, SharedPeer, peer_still_trusted};

/// One sleeps no longer than this for the wall clock, which may be set.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

/// What the pool is told of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It has had no stream for long.
    Unused,
    /// The next connection would rather have another: it became heavy, its SVID expires soon, or its peer goes away.
    Worse,
    /// The connection is over.
    Over,
}

/// A client connection, shared by the pool and its streams.
pub(super) struct Tunnel {
    session: Rc<Session>,
    pub(super) peer: SharedPeer,
    /// Of its pool key.
    pub(super) usage: Rc<Usage>,
    /// Dialled ahead, and not used yet.
    ahead: Cell<bool>,
    state: Rc<State>,
    not_after: SystemTime,
    /// How long before that a successor is wanted.
    lead: Duration,
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
    /// Speaks HTTP/2 on a finished TLS connection and starts its driver. `origin` is how its key is used, and whether
    /// it was dialled ahead. `changed` is told what happens to it; out of the pool it lives only as long as its streams.
    pub(super) fn start(
        secured: Secured,
        peer: SharedPeer,
        snapshot: &IdentitySnapshot,
        limits: &Limits,
        origin: (Rc<Usage>, bool),
        changed: impl Fn(Change, &Weak<Self>) + 'static,
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
            usage: origin.0,
            ahead: Cell::new(origin.1),
            state: Rc::clone(&state),
            not_after: snapshot.svid.not_after(),
            lead: expiry_lead(snapshot.remaining()),
            clock: Arc::clone(snapshot.clock()),
            judged: std::cell::RefCell::new(Arc::clone(&snapshot.bundle)),
        });
        let weak = Rc::downgrade(&tunnel);
        let expiring = expires_within(tunnel.lead, tunnel.not_after, Arc::clone(&tunnel.clock));
        let changed = move |change| changed(change, &weak);
        tokio::task::spawn_local(drive(session, driver, state, limits.clone(), expiring, changed));
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
            svid_lead: self.lead,
        }
    }

    /// When the SVID it was made with expires.
    pub(super) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it expires soon, and `newer` later.
    pub(super) fn is_succeeded_by(&self, newer: &Self) -> bool {
        let remaining = self.not_after.duration_since(self.clock.now()).unwrap_or_default();
        remaining <= self.lead && newer.not_after > self.not_after
    }

    /// Whether it was dialled ahead and gets its first stream now.
    pub(super) fn first_use_of_ahead(&self) -> bool {
        self.ahead.replace(false)
    }

    /// Why the peer ended it before anybody used it, if it refused our certificate: of that our side hears after its
    /// handshake is done.
    pub(super) fn refused_before_use(&self) -> Option<HandshakeFailure> {
        match &self.session.state.borrow().over {
            Some(TunnelError::Handshake(failure)) if self.ahead.get() => Some(failure.clone()),
            _ => None,
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
async fn drive(
    session: Rc<Session>,
    driver: Driver,
    state: Rc<State>,
    limits: Limits,
    expiring: impl Future<Output = ()>,
    changed: impl Fn(Change),
) {
    let dead = keepalive::until_dead(&session, limits.ping_interval, limits.ping_timeout);
    let unused = unused(&state, limits.pool_unused);
    let running = driver.run();
    tokio::pin!(dead, unused, running, expiring);
    let (mut retired, mut told) = (false, false);
    let alive = loop {
        tokio::select! {
            biased;
            () = &mut running => break true,
            () = &mut dead => break false,
            () = session.worse.notified() => changed(Change::Worse),
            () = &mut unused, if !retired => {
                retired = true;
                state.closing.set(true);
                changed(Change::Unused);
            }
            () = &mut expiring, if !told => {
                told = true;
                changed(Change::Worse);
            }
        }
    };
    state.closing.set(true);
    if !alive {
        session.state.borrow_mut().end(TunnelError::PeerDead, false);
    }
    changed(Change::Over);
}

/// Returns when so much, or less, is left until `not_after`.
async fn expires_within(lead: Duration, not_after: SystemTime, clock: Arc<dyn Clock>) {
    loop {
        let remaining = not_after.duration_since(clock.now()).unwrap_or_default();
        let Some(left) = remaining.checked_sub(lead).filter(|left| !left.is_zero()) else { return };
        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
    }
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
