//! A worker's pool of client connections (hbone.md §14).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use warren_core::pool::{Checkout, PoolKey, checkout};
use warren_core::tunnel::ConnectRequest;

use super::early::EarlyData;
use super::error::TunnelError;
use super::exchange::exchange;
use super::stream::HboneStream;
use super::tunnel::{StreamGuard, Tunnel};
use crate::identity::IdentitySnapshot;
use crate::limits::Limits;
use crate::telemetry::{HandshakeFacts, Parties, Telemetry};
use crate::tls::{self, HandshakeFailure, PeerFacts};

mod flight;

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

/// Client connections of one worker. Cheap to clone; not `Send`. Dropping the
/// last clone lets the connections end once their streams are over.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    limits: Arc<Limits>,
    telemetry: Arc<Telemetry>,
    tunnels: RefCell<HashMap<PoolKey, Vec<Rc<Tunnel>>>>,
    flights: RefCell<HashMap<PoolKey, Rc<Flight>>>,
    handshakes: Semaphore,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: Arc<Limits>, telemetry: Arc<Telemetry>) -> Self {
        let handshakes = Semaphore::new(limits.inflight_handshakes);
        Self(Rc::new(Inner { limits, telemetry, tunnels: RefCell::default(), flights: RefCell::default(), handshakes }))
    }

    /// Opens a tunnelled connection: finds or dials a tunnel, sends CONNECT with
    /// the application's first bytes, and waits for the 200. Tried once more if
    /// the peer certainly has not seen the first try.
    ///
    /// `dial` makes the TCP connection to `key.destination`; it is called for a
    /// new tunnel only, under `limits.tcp_connect_timeout`.
    pub async fn open(
        &self,
        open: Open<'_>,
        dial: impl AsyncFn() -> io::Result<TcpStream>,
        app: &TcpStream,
    ) -> Result<HboneStream, TunnelError> {
        let limits = &self.0.limits;
        let mut early = EarlyData::new(limits, open.early_data);
        let mut retried = false;
        loop {
            let (tunnel, guard) = self.tunnel(&open, &dial).await?;
            let stream = exchange(&tunnel, guard, open.request, limits, app, &mut early).await;
            match stream {
                Err(error) if error.may_retry() && !retried => {
                    retried = true;
                    self.0.retire(&open.key, &Rc::downgrade(&tunnel));
                }
                Err(TunnelError::Handshake(failure)) => {
                    // The peer judged our certificate after our side was done.
                    self.handshake(&open, Err(&failure), Duration::ZERO);
                    return Err(TunnelError::Handshake(failure));
                }
                outcome => return outcome,
            }
        }
    }

    /// Stops using every connection of the keys that `gone` matches, e.g. those
    /// of a pod that left; streams on them go on.
    pub fn retire_where(&self, gone: impl Fn(&PoolKey) -> bool) {
        self.0.tunnels.borrow_mut().retain(|key, _| !gone(key));
    }

    /// Number of pooled connections.
    pub fn connections(&self) -> usize {
        self.0.tunnels.borrow().values().map(Vec::len).sum()
    }

    /// A tunnel with room for a stream, which is already counted.
    async fn tunnel(
        &self,
        open: &Open<'_>,
        dial: &impl AsyncFn() -> io::Result<TcpStream>,
    ) -> Result<(Rc<Tunnel>, StreamGuard), TunnelError> {
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
                    let dialled = Box::pin(self.dial(open, dial)).await;
                    landing.land(dialled.as_ref().err().cloned());
                    // A stream is taken before anybody else runs, so a dialler
                    // never starves behind those who waited.
                    return dialled.map(|tunnel| {
                        let guard = tunnel.stream_guard();
                        (tunnel, guard)
                    });
                }
            }
        }
    }

    async fn dial(
        &self,
        open: &Open<'_>,
        dial: &impl AsyncFn() -> io::Result<TcpStream>,
    ) -> Result<Rc<Tunnel>, TunnelError> {
        let limits = &self.0.limits;
        let _slot = self.0.handshakes.acquire().await;
        let tcp = match timeout(limits.tcp_connect_timeout, dial()).await {
            Err(_) => return Err(TunnelError::DialTimeout),
            Ok(tcp) => tcp.map_err(|error| TunnelError::dial(&error))?,
        };
        let started = Instant::now();
        let handshake = tls::connect(tcp, &open.snapshot, &open.key.expected, limits.handshake_timeout).await;
        let outcome = handshake.as_ref().map(|(_, peer)| peer);
        self.handshake(open, outcome, started.elapsed());
        let (stream, peer) = handshake?;
        let pool = Rc::downgrade(&self.0);
        let key = open.key.clone();
        let retire = move |tunnel: &Weak<Tunnel>| {
            if let Some(pool) = pool.upgrade() {
                pool.retire(&key, tunnel);
            }
        };
        let peer = Arc::new(peer);
        let tunnel = Tunnel::start(stream, peer, &open.snapshot, limits, retire);
        let mut tunnels = self.0.tunnels.borrow_mut();
        tunnels.entry(open.key.clone()).or_default().push(Rc::clone(&tunnel));
        Ok(tunnel)
    }
}

impl Pool {
    fn handshake(&self, open: &Open<'_>, outcome: Result<&PeerFacts, &HandshakeFailure>, duration: Duration) {
        let Open { key, parties, .. } = open;
        let facts = HandshakeFacts::outbound(parties, &key.source, &key.expected, outcome, duration);
        self.0.telemetry.handshake(&facts);
    }
}

impl Inner {
    /// Takes a stream on a pooled tunnel; drops from the pool what the rule
    /// retires, and passes over what it says is better left alone.
    fn check_out(&self, open: &Open<'_>) -> Option<(Rc<Tunnel>, StreamGuard)> {
        let mut tunnels = self.tunnels.borrow_mut();
        let list = tunnels.get_mut(&open.key)?;
        let mut at = 0;
        while let Some(tunnel) = list.get(at).cloned() {
            let verdict = if tunnel.trusted_under(&open.snapshot.bundle) {
                checkout(&tunnel.observe(&self.limits))
            } else {
                Checkout::Retire
            };
            match verdict {
                Checkout::Use => return Some(taken(tunnel)),
                Checkout::UseLast => {
                    list.remove(at);
                    return Some(taken(tunnel));
                }
                Checkout::Avoid => at += 1,
                Checkout::Retire => {
                    list.remove(at);
                }
            }
        }
        if list.len() >= self.limits.pool_tunnels {
            // Enough connections to one peer: the one with the fewest streams is shared after all.
            return list.iter().min_by_key(|tunnel| tunnel.observe(&self.limits).streams).cloned().map(taken);
        }
        if list.is_empty() {
            tunnels.remove(&open.key);
        }
        None
    }

    fn retire(&self, key: &PoolKey, tunnel: &Weak<Tunnel>) {
        let mut tunnels = self.tunnels.borrow_mut();
        if let Some(list) = tunnels.get_mut(key) {
            list.retain(|pooled| !std::ptr::eq(Rc::as_ptr(pooled), tunnel.as_ptr()));
            if list.is_empty() {
                tunnels.remove(key);
            }
        }
        if let Some(tunnel) = tunnel.upgrade() {
            tunnel.close_for_new();
        }
    }

    fn take_off(self: &Rc<Self>, key: &PoolKey) -> Landing {
        let flight = Rc::new(Flight::default());
        self.flights.borrow_mut().insert(key.clone(), Rc::clone(&flight));
        let inner = Rc::clone(self);
        let key = key.clone();
        Landing::new(flight, move || {
            inner.flights.borrow_mut().remove(&key);
        })
    }
}

fn taken(tunnel: Rc<Tunnel>) -> (Rc<Tunnel>, StreamGuard) {
    let guard = tunnel.stream_guard();
    (tunnel, guard)
}
