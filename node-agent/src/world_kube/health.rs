//! How each watch is: what readiness, status and metrics say of the world's source.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kinds::Watched;

/// Where a watch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has no connection that says anything yet.
    Connecting,
    /// Everything is being told.
    Listing,
    /// Changes are being told.
    Watching,
    /// The cluster has no such kind, which is asked for from time to time. An error tells if objects of it stay.
    Missing,
}

/// One watch.
#[derive(Debug, Clone)]
pub(crate) struct WatchHealth {
    pub(crate) watched: Watched,
    pub(crate) standing: Standing,
    /// Everything was told once, so that the world in force has it.
    pub(crate) synced: bool,
    /// When the server last said anything, bookmarks included.
    pub(crate) heard: Instant,
    /// Why it does not watch just now.
    pub(crate) error: Option<String>,
}

impl WatchHealth {
    /// How long the server has said nothing of this kind. A kind that the cluster lacks is as old as its last answer.
    pub(crate) fn age(&self) -> Duration {
        self.heard.elapsed()
    }
}

/// All watches; written by them, read by the pages.
#[derive(Debug, Clone)]
pub(crate) struct Health(Arc<Mutex<Vec<WatchHealth>>>);

impl Health {
    pub(crate) fn new(kinds: &[Watched]) -> Self {
        let now = Instant::now();
        let one =
            |watched| WatchHealth { watched, standing: Standing::Connecting, synced: false, heard: now, error: None };
        Self(Arc::new(Mutex::new(kinds.iter().copied().map(one).collect())))
    }

    /// All watches as they are now.
    pub(crate) fn all(&self) -> Vec<WatchHealth> {
        self.lock().clone()
    }

    /// Why the newest state of the cluster is not known, if so, in one line.
    pub(crate) fn fault(&self) -> Option<String> {
        let faults: Vec<String> = self
            .lock()
            .iter()
            .filter_map(|one| Some(format!("{}: {}", one.watched.plural, one.error.as_ref()?)))
            .collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Kinds that have not been told of once.
    pub(crate) fn unsynced(&self) -> Vec<&'static str> {
        self.lock().iter().filter(|one| !one.synced).map(|one| one.watched.plural).collect()
    }

    pub(super) fn set(&self, watched: Watched, change: impl FnOnce(&mut WatchHealth)) {
        if let Some(one) = self.lock().iter_mut().find(|one| one.watched.kind == watched.kind) {
            change(one);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<WatchHealth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
