//! The task that dials a key's next tunnel before a connection wants it.

use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::sleep;
use warren_core::pool::{Ahead, Demand, PoolKey, TunnelState, ahead, is_ready};

use super::dial::{Dials, Occasion, Purpose};
use super::flight::Flight;
use super::{Entry, Inner};
use crate::hbone::tunnel::Tunnel;
use crate::identity::IdentitySnapshot;
use crate::telemetry::TunnelAhead;

/// How often one looks for an SVID that has not come yet.
const LOOK: Duration = Duration::from_secs(1);

/// What a key's task does next.
enum Step {
    /// Nothing: there is a tunnel, or nobody wants one.
    Done,
    /// Wait for a dial that is under way.
    Join(Rc<Flight>),
    /// Look again later.
    Pause(Duration),
    /// Dial.
    Dial(Occasion),
}

impl Inner {
    /// Something happened to a key's tunnels: the next one is dialled if it will be wanted. A key without tunnels that
    /// nobody wants is forgotten.
    pub(super) fn want(self: &Rc<Self>, key: &PoolKey) {
        let mut keys = self.keys.borrow_mut();
        let Some(entry) = keys.get_mut(key).filter(|entry| !entry.warming) else { return };
        if self.judge(entry) == Ahead::Dial {
            entry.warming = true;
            let mut tasks = self.tasks.borrow_mut();
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(keep_warm(Rc::downgrade(self), key.clone()));
        } else if entry.tunnels.is_empty() {
            keys.remove(key);
        }
    }

    fn judge(&self, entry: &Entry) -> Ahead {
        if self.stopped.get() {
            return Ahead::Unwanted;
        }
        let limits = &self.dials.limits;
        let (served, since) = entry.usage.so_far();
        ahead(&Demand {
            served,
            since,
            warm: limits.pool_warm,
            tunnels: entry.tunnels.len(),
            most: limits.pool_tunnels,
            ready: entry.tunnels.iter().any(|tunnel| is_ready(&tunnel.observe(limits))),
        })
    }

    fn step(&self, key: &PoolKey) -> Step {
        let keys = self.keys.borrow();
        let Some(entry) = keys.get(key).filter(|entry| self.judge(entry) == Ahead::Dial) else { return Step::Done };
        if let Some(flight) = self.flights.borrow().get(key) {
            return Step::Join(flight.clone());
        }
        let pause = entry.usage.pause();
        if !pause.is_zero() {
            return Step::Pause(pause);
        }
        match self.dials.dialler.occasion(key) {
            Some(occasion) if self.would_help(entry, &occasion.snapshot) => Step::Dial(occasion),
            _ => Step::Pause(LOOK),
        }
    }

    /// A tunnel that lacks nothing but lifetime is replaced by one that has more.
    fn would_help(&self, entry: &Entry, snapshot: &IdentitySnapshot) -> bool {
        let lasts_no_longer = |tunnel: &Rc<Tunnel>| {
            let state = TunnelState { svid_lead: Duration::ZERO, ..tunnel.observe(&self.dials.limits) };
            is_ready(&state) && tunnel.not_after() >= snapshot.svid.not_after()
        };
        !entry.tunnels.iter().any(lasts_no_longer)
    }

    /// The key's task ends.
    fn rest(&self, key: &PoolKey) {
        let mut keys = self.keys.borrow_mut();
        if let Some(entry) = keys.get_mut(key) {
            entry.warming = false;
            if entry.tunnels.is_empty() {
                keys.remove(key);
            }
        }
    }
}

/// Dials until a tunnel is ready or nobody wants one. Holds the pool only between its waits.
async fn keep_warm(pool: Weak<Inner>, key: PoolKey) {
    loop {
        let Some(inner) = pool.upgrade() else { return };
        let step = inner.step(&key);
        let dials = inner.dials.clone();
        if let Step::Done = step {
            return inner.rest(&key);
        }
        drop(inner);
        match step {
            Step::Done => return,
            Step::Join(flight) => drop(flight.landed().await),
            Step::Pause(pause) => sleep(pause).await,
            Step::Dial(_) => dial_ahead(&pool, &dials, &key).await,
        }
    }
}

/// One try. A connection that comes meanwhile waits for it, and dials by itself if it fails.
async fn dial_ahead(pool: &Weak<Inner>, dials: &Dials, key: &PoolKey) {
    let _slot = dials.ahead.acquire().await;
    // Waiting for the slot may have taken long: a connection may have dialled, or nobody wants a tunnel any more.
    let Some(inner) = pool.upgrade() else { return };
    let Step::Dial(Occasion { snapshot, parties }) = inner.step(key) else { return };
    let landing = inner.take_off(key);
    if let Some(usage) = inner.usage(key) {
        usage.tried();
    }
    drop(inner);
    let dialled = dials.dial(key, &snapshot, Purpose { parties: &parties, ahead: true }).await;
    let outcome = if dialled.is_ok() { TunnelAhead::Dialled } else { TunnelAhead::Failed };
    dials.telemetry.metrics().tunnel_ahead(outcome);
    if let Some(inner) = pool.upgrade() {
        match dialled {
            Ok(secured) => inner.admit_ahead(key, secured, &snapshot, parties),
            Err(error) => {
                tracing::debug!(%error, peer = %key.destination, "a tunnel dialled ahead failed");
                if let Some(usage) = inner.usage(key) {
                    usage.wait();
                }
            }
        }
    }
    // Whoever waits looks again: its own try may fare better.
    landing.land(None);
}
