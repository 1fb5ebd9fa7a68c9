//! A worker's pool of client connections (hbone.md §14).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use warren_core::pool::{Checkout, PoolKey, checkout, is_ready};
use warren_core::tunnel::ConnectRequest;

use super::early::EarlyData;
use super::error::TunnelError;
use super::exchange::exchange;
use super::stream::HboneStream;
use super::tunnel::{StreamGuard, Tunnel};
use crate::identity::IdentitySnapshot;
use crate::limits::Limits;
use crate::telemetry::{Parties, Telemetry, TunnelAhead};

mod dial;
mod flight;
mod life;
mod usage;
mod warm;

pub use dial::{Connecting, Dialler, Occasion};
pub(super) use usage::Usage;

use dial::{Dials, Purpose};
use flight::{Flight, Landing};

/// What a connection wants from the pool.
pub struct Open<'a> {
    /// Everything that must be equal to share a tunnel.
    pub key: PoolKey,
    /// The source pod's identity, for a new tunnel; its SVID must name
    /// `key.source`.
    pub snapshot: Arc<IdentitySnapshot>,
    /// The CONNECT request.
    pub request: &'a ConnectRequest,
    /// Whose connection it is, for the handshake record.
    pub parties: Parties,
    /// Whether this peer may be sent client bytes before its 200; the limits must allow it as well.
    pub early_data: bool,
}

/// Client connections of one pod on one worker. Cheap to clone; not `Send`. Dropping the last clone lets the
/// connections end once their streams are over.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    dials: Rc<Dials>,
    keys: RefCell<HashMap<PoolKey, Entry>>,
    flights: RefCell<HashMap<PoolKey, Rc<Flight>>>,
    /// Tasks that dial ahead: one per key at most.
    tasks: RefCell<JoinSet<()>>,
    /// Nothing is dialled ahead any more.
    stopped: Cell<bool>,
}

/// What there is of one key. Without a tunnel it stays only as long as a task dials ahead for it.
#[derive(Default)]
struct Entry {
    tunnels: Vec<Rc<Tunnel>>,
    usage: Rc<Usage>,
    /// A task sees to its next tunnel.
    warming: bool,
}

impl Pool {
    /// An empty pool whose tunnels `dialler` reaches.
    pub fn new(limits: Arc<Limits>, telemetry: Arc<Telemetry>, dialler: impl Dialler + 'static) -> Self {
        Self(Rc::new(Inner {
            dials: Rc::new(Dials::new(limits, telemetry, Box::new(dialler))),
            keys: RefCell::default(),
            flights: RefCell::default(),
            tasks: RefCell::default(),
            stopped: Cell::new(false),
        }))
    }

    /// Opens a tunnelled connection: finds or dials a tunnel, sends CONNECT with
    /// the application's first bytes, and waits for the 200. Tried once more if
    /// the peer certainly has not seen the first try.
    pub async fn open(&self, open: Open<'_>, app: &TcpStream) -> Result<HboneStream, TunnelError> {
        let limits = &self.0.dials.limits;
        let mut early = EarlyData::new(limits, open.early_data);
        let mut retried = false;
        loop {
            let (tunnel, guard) = self.tunnel(&open).await?;
            match exchange(&tunnel, guard, open.request, limits, app, &mut early).await {
                Err(error) if error.may_retry() && !retried => {
                    retried = true;
                    self.0.retire(&open.key, &Rc::downgrade(&tunnel));
                }
                Err(TunnelError::Handshake(failure)) => {
                    // The peer judged our certificate after our side was done.
                    let purpose = Purpose { parties: &open.parties, ahead: false };
                    self.0.dials.record(&open.key, purpose, Err(&failure), Duration::ZERO);
                    return Err(TunnelError::Handshake(failure));
                }
                outcome => {
                    if matches!(outcome, Ok(_) | Err(TunnelError::Refused(_))) {
                        self.0.served(&open.key, &tunnel);
                    }
                    return outcome;
                }
            }
        }
    }

    /// The pod's SVID or the roots it trusts are others now: what no longer counts gets no new streams, and successors
    /// are dialled.
    pub fn identity_changed(&self) {
        let keys: Vec<PoolKey> = self.0.keys.borrow().keys().cloned().collect();
        for key in keys {
            if let Some(occasion) = self.0.dials.dialler.occasion(&key)
                && let Some(entry) = self.0.keys.borrow_mut().get_mut(&key)
            {
                entry.tunnels.retain(|tunnel| tunnel.trusted_under(&occasion.snapshot.bundle));
            }
            self.0.want(&key);
        }
    }

    /// Dials nothing ahead any more; connections still dial what they need.
    pub fn stop_dialling_ahead(&self) {
        self.0.stopped.set(true);
        self.0.tasks.borrow_mut().abort_all();
    }

    /// Number of pooled connections.
    pub fn connections(&self) -> usize {
        self.0.keys.borrow().values().map(|entry| entry.tunnels.len()).sum()
    }

    /// A tunnel with room for a stream, which is already counted.
    async fn tunnel(&self, open: &Open<'_>) -> Result<(Rc<Tunnel>, StreamGuard), TunnelError> {
        loop {
            if let Some(found) = self.0.check_out(open) {
                return Ok(found);
            }
            let waiting = self.0.flights.borrow().get(&open.key).cloned();
            match waiting {
                Some(flight) => flight.landed().await?,
                None => {
                    let landing = self.0.take_off(&open.key);
                    // Boxed: few connections dial, and all would carry a handshake's state for as long as they live.
                    let dialled = Box::pin(self.dial(open)).await;
                    landing.land(dialled.as_ref().err().cloned());
                    // A stream is taken before anybody else runs, so a dialler
                    // never starves behind those who waited.
                    return dialled.map(|tunnel| self.0.taken(tunnel));
                }
            }
        }
    }

    async fn dial(&self, open: &Open<'_>) -> Result<Rc<Tunnel>, TunnelError> {
        let Open { key, snapshot, parties, .. } = open;
        let dialled = self.0.dials.dial_for_connection(key, snapshot, parties).await;
        if dialled.is_err()
            && let Some(usage) = self.0.usage(key)
        {
            usage.tried();
        }
        let (secured, peer) = dialled?;
        let mut keys = self.0.keys.borrow_mut();
        let entry = keys.entry(key.clone()).or_default();
        Ok(self.0.admit(entry, key, (secured, peer), snapshot, None))
    }
}

impl Inner {
    /// Takes a stream on a pooled tunnel; drops from the pool what the rule
    /// retires, and passes over what it says is better left alone.
    fn check_out(&self, open: &Open<'_>) -> Option<(Rc<Tunnel>, StreamGuard)> {
        let mut keys = self.keys.borrow_mut();
        let list = &mut keys.get_mut(&open.key)?.tunnels;
        let limits = &self.dials.limits;
        let mut at = 0;
        while let Some(tunnel) = list.get(at).cloned() {
            let verdict = if tunnel.trusted_under(&open.snapshot.bundle) {
                checkout(&tunnel.observe(limits))
            } else {
                Checkout::Retire
            };
            match verdict {
                Checkout::Use => return Some(self.taken(tunnel)),
                Checkout::UseLast => {
                    list.remove(at);
                    return Some(self.taken(tunnel));
                }
                Checkout::Avoid => at += 1,
                Checkout::Retire => {
                    list.remove(at);
                }
            }
        }
        if list.len() >= limits.pool_tunnels {
            // Enough connections to one peer: the one with the fewest streams is shared after all.
            let fewest = list.iter().min_by_key(|tunnel| tunnel.observe(limits).streams).cloned();
            return fewest.map(|tunnel| self.taken(tunnel));
        }
        None
    }

    fn taken(&self, tunnel: Rc<Tunnel>) -> (Rc<Tunnel>, StreamGuard) {
        if tunnel.first_use_of_ahead() {
            self.dials.telemetry.metrics().tunnel_ahead(TunnelAhead::Used);
        }
        let guard = tunnel.stream_guard();
        (tunnel, guard)
    }

    /// The peer answered a connection on this tunnel; if the next one would not find it as good, it is time to dial.
    fn served(self: &Rc<Self>, key: &PoolKey, tunnel: &Tunnel) {
        tunnel.usage.served();
        if !is_ready(&tunnel.observe(&self.dials.limits)) {
            self.want(key);
        }
    }

    fn usage(&self, key: &PoolKey) -> Option<Rc<Usage>> {
        self.keys.borrow().get(key).map(|entry| entry.usage.clone())
    }

    fn take_off(self: &Rc<Self>, key: &PoolKey) -> Landing {
        let flight = Rc::new(Flight::default());
        self.flights.borrow_mut().insert(key.clone(), Rc::clone(&flight));
        let inner = Rc::downgrade(self);
        let key = key.clone();
        Landing::new(flight, move || {
            if let Some(inner) = inner.upgrade() {
                inner.flights.borrow_mut().remove(&key);
                inner.want(&key);
            }
        })
    }
}
