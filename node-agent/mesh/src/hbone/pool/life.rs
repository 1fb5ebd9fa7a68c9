//! How tunnels come into the pool, what happens to them there, and how they leave it.

use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use warren_core::pool::PoolKey;

use super::dial::Purpose;
use super::{Entry, Inner};
use crate::hbone::tunnel::{Change, Tunnel};
use crate::identity::IdentitySnapshot;
use crate::telemetry::{Parties, TunnelAhead};
use crate::tls::{PeerFacts, Secured};

impl Inner {
    /// Puts a finished TLS connection into the pool. Those that it succeeds take no new streams.
    pub(super) fn admit(
        self: &Rc<Self>,
        entry: &mut Entry,
        key: &PoolKey,
        (secured, peer): (Secured, PeerFacts),
        snapshot: &IdentitySnapshot,
        ahead: Option<Parties>,
    ) -> Rc<Tunnel> {
        let limits = &self.dials.limits;
        let is_ahead = ahead.is_some();
        let (pool, of) = (Rc::downgrade(self), key.clone());
        let changed = move |change: Change, tunnel: &Weak<Tunnel>| {
            if let Some(pool) = pool.upgrade() {
                pool.changed(&of, change, tunnel, ahead.as_ref());
            }
        };
        let origin = (entry.usage.clone(), is_ahead);
        let tunnel = Tunnel::start(secured, Arc::new(peer), snapshot, limits, origin, changed);
        entry.tunnels.retain(|old| !old.is_succeeded_by(&tunnel));
        entry.tunnels.push(Rc::clone(&tunnel));
        tunnel
    }

    /// A key that was given up meanwhile gets no tunnel.
    pub(super) fn admit_ahead(
        self: &Rc<Self>,
        key: &PoolKey,
        dialled: (Secured, PeerFacts),
        snapshot: &IdentitySnapshot,
        parties: Parties,
    ) {
        if let Some(entry) = self.keys.borrow_mut().get_mut(key) {
            self.admit(entry, key, dialled, snapshot, Some(parties));
        }
    }

    fn changed(self: &Rc<Self>, key: &PoolKey, change: Change, tunnel: &Weak<Tunnel>, ahead: Option<&Parties>) {
        match change {
            // Nobody used it: nobody misses it.
            Change::Unused => {
                self.remove(key, tunnel);
                self.tidy(key);
            }
            Change::Over => {
                if let (Some(parties), Some(gone)) = (ahead, tunnel.upgrade()) {
                    self.record_refusal(key, parties, &gone);
                }
                self.retire(key, tunnel);
            }
            Change::Worse => match tunnel.upgrade() {
                Some(leaving) if leaving.observe(&self.dials.limits).closing => self.retire(key, tunnel),
                _ => self.want(key),
            },
        }
    }

    /// A refusal that came after our side of the handshake was done has no connection that would tell of it.
    fn record_refusal(&self, key: &PoolKey, parties: &Parties, tunnel: &Tunnel) {
        if let Some(failure) = tunnel.refused_before_use() {
            self.dials.record(key, Purpose { parties, ahead: true }, Err(&failure), Duration::ZERO);
            self.dials.telemetry.metrics().tunnel_ahead(TunnelAhead::Refused);
        }
    }

    /// Takes a tunnel out of the pool for what happened to it; another one may be wanted.
    pub(super) fn retire(self: &Rc<Self>, key: &PoolKey, tunnel: &Weak<Tunnel>) {
        self.remove(key, tunnel);
        self.want(key);
    }

    fn remove(&self, key: &PoolKey, tunnel: &Weak<Tunnel>) {
        if let Some(entry) = self.keys.borrow_mut().get_mut(key) {
            entry.tunnels.retain(|pooled| !std::ptr::eq(Rc::as_ptr(pooled), tunnel.as_ptr()));
        }
        if let Some(tunnel) = tunnel.upgrade() {
            tunnel.close_for_new();
        }
    }

    /// Forgets a key without tunnels, unless its task will.
    fn tidy(&self, key: &PoolKey) {
        let mut keys = self.keys.borrow_mut();
        if keys.get(key).is_some_and(|entry| entry.tunnels.is_empty() && !entry.warming) {
            keys.remove(key);
        }
    }
}
