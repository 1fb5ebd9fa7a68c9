//! How a key of the pool is used: what decides whether its next tunnel is dialled ahead.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;
use warren_core::pool::pause;

/// Shared by a key's place in the pool and its tunnels, so that a connection which is served writes it without looking
/// its key up again.
pub(in crate::hbone) struct Usage {
    served: Cell<u32>,
    last: Cell<Instant>,
    /// Tries ahead, since a connection was served last.
    tries: Cell<u32>,
    not_before: Cell<Instant>,
}

impl Default for Usage {
    fn default() -> Self {
        let now = Instant::now();
        Self { served: Cell::new(0), last: Cell::new(now), tries: Cell::new(0), not_before: Cell::new(now) }
    }
}

impl Usage {
    /// The peer answered a connection's request: it is there, and wanted.
    pub(in crate::hbone) fn served(&self) {
        self.served.set(self.served.get().saturating_add(1));
        self.last.set(Instant::now());
        self.tries.set(0);
    }

    /// A dial ahead begins, or one of a connection's own failed. What the former makes may be gone again before anybody
    /// used it; so the next one waits all the same.
    pub(super) fn tried(&self) {
        self.tries.set(self.tries.get().saturating_add(1));
        self.wait();
    }

    /// The pause begins now.
    pub(super) fn wait(&self) {
        self.not_before.set(Instant::now() + pause(self.tries.get(), rand::random()));
    }

    /// What is left of the pause; none once a connection was served.
    pub(super) fn pause(&self) -> Duration {
        match self.tries.get() {
            0 => Duration::ZERO,
            _ => self.not_before.get().saturating_duration_since(Instant::now()),
        }
    }

    /// Connections served, and how long ago the last of them.
    pub(super) fn so_far(&self) -> (u32, Duration) {
        (self.served.get(), self.last.get().elapsed())
    }
}
