//! The connections that are open now: who they are, and a way to end them.
//!
//! Policy changes, pod removal and drain end connections that run on other
//! threads, so registry and [`Cancel`] are `Send + Sync`. A connection
//! registers *before* its first policy decision: a change between decision and
//! registration would otherwise slip through.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

/// Why a live connection was ended from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelReason {
    /// Judged again after a policy or mode change, and denied.
    PolicyChanged {
        /// The policy that denies it now, as `namespace/name`.
        policy: Option<String>,
        /// Text for the audit event.
        reason: String,
    },
    /// The pod is gone or was withdrawn from the mesh.
    PodGone,
    /// The pod has another identity now; this was opened under the earlier one.
    IdentityChanged,
    /// The agent stops and the drain deadline has passed.
    DrainDeadline,
    /// An operator ended it: it is older than its pod's enrolment.
    Cut,
    /// A trusted root that vouched for the peer was removed.
    TrustWithdrawn,
}

impl CancelReason {
    /// A short, stable name for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::PolicyChanged { .. } => "policy_changed",
            Self::PodGone => "pod_gone",
            Self::IdentityChanged => "identity_changed",
            Self::DrainDeadline => "drain_deadline",
            Self::Cut => "cut",
            Self::TrustWithdrawn => "trust_withdrawn",
        }
    }
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PolicyChanged { reason, .. } => write!(f, "no longer allowed: {reason}"),
            Self::PodGone => f.write_str("the pod is gone"),
            Self::IdentityChanged => f.write_str("the pod has another identity"),
            Self::DrainDeadline => f.write_str("drain deadline passed"),
            Self::Cut => f.write_str("ended by an operator: it was older than the pod's enrolment"),
            Self::TrustWithdrawn => f.write_str("the peer's root is no longer trusted"),
        }
    }
}

/// A live connection: what its owner told of it, and whether it was told to end. One allocation, since there may be
/// very many that do nothing.
struct Entry<T: ?Sized> {
    reason: OnceLock<Box<CancelReason>>,
    told: Notify,
    info: T,
}

impl<T> Entry<T> {
    fn new(info: T) -> Arc<Self> {
        Arc::new(Self { reason: OnceLock::new(), told: Notify::new(), info })
    }
}

/// The connection's end of "please end": cheap to clone, waits without polling.
#[derive(Clone)]
pub struct Cancel(Arc<Entry<dyn Send + Sync>>);

impl Cancel {
    /// A handle that nobody can trigger, for connections outside the registry.
    pub fn never() -> Self {
        Self(Entry::new(()))
    }

    /// The reason, if the connection was told to end.
    pub fn reason(&self) -> Option<CancelReason> {
        self.0.reason.get().map(|reason| CancelReason::clone(reason))
    }

    /// Waits until the connection is told to end.
    pub async fn cancelled(&self) -> CancelReason {
        loop {
            // Made before the look: who tells between the two is heard.
            let told = self.0.told.notified();
            if let Some(reason) = self.reason() {
                return reason;
            }
            told.await;
        }
    }
}

/// Number of a live connection, unique in this process.
pub type ConnectionId = u64;

struct Inner<T> {
    next: AtomicU64,
    entries: Mutex<BTreeMap<ConnectionId, Arc<Entry<T>>>>,
}

impl<T> Inner<T> {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Arc<Entry<T>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All live connections, each with what its owner needs to judge it again.
pub struct LiveRegistry<T>(Arc<Inner<T>>);

impl<T> Clone for LiveRegistry<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for LiveRegistry<T> {
    fn default() -> Self {
        Self(Arc::new(Inner { next: AtomicU64::new(1), entries: Mutex::new(BTreeMap::new()) }))
    }
}

impl<T: Send + Sync + 'static> LiveRegistry<T> {
    /// Enters a connection. It stays until the guard is dropped.
    pub fn register(&self, info: T) -> (LiveGuard<T>, Cancel) {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry::new(info);
        self.0.entries().insert(id, Arc::clone(&entry));
        (LiveGuard { registry: Arc::clone(&self.0), id, entry: Arc::clone(&entry) }, Cancel(entry))
    }

    /// Calls `f` for each live connection. The registry is not locked
    /// meanwhile: `f` may cancel.
    pub fn for_each(&self, mut f: impl FnMut(ConnectionId, &T)) {
        for (id, one) in self.snapshot() {
            f(id, &one);
        }
    }

    /// All live connections at this moment, oldest first.
    pub fn snapshot(&self) -> Vec<(ConnectionId, Live<T>)> {
        self.0.entries().iter().map(|(id, entry)| (*id, Live(Arc::clone(entry)))).collect()
    }

    /// Tells one connection to end; the first reason stays. False if it is gone.
    pub fn cancel(&self, id: ConnectionId, reason: CancelReason) -> bool {
        let Some(entry) = self.0.entries().get(&id).cloned() else { return false };
        if entry.reason.set(Box::new(reason)).is_ok() {
            entry.told.notify_waiters();
        }
        true
    }

    /// Number of live connections.
    pub fn len(&self) -> usize {
        self.0.entries().len()
    }

    /// Whether no connection is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A connection as it was registered.
pub struct Live<T>(Arc<Entry<T>>);

impl<T> Deref for Live<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.info
    }
}

/// Keeps a connection in the registry while it lives.
pub struct LiveGuard<T> {
    registry: Arc<Inner<T>>,
    id: ConnectionId,
    entry: Arc<Entry<T>>,
}

impl<T> LiveGuard<T> {
    /// The connection's number.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// What was registered.
    pub fn info(&self) -> &T {
        &self.entry.info
    }
}

impl<T> Drop for LiveGuard<T> {
    fn drop(&mut self) {
        self.registry.entries().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_reaches_the_connection() {
        let live = LiveRegistry::default();
        let (guard, cancel) = live.register("a");
        assert_eq!(cancel.reason(), None);
        assert!(live.cancel(guard.id(), CancelReason::PodGone));
        assert!(live.cancel(guard.id(), CancelReason::DrainDeadline));
        assert_eq!(cancel.cancelled().await, CancelReason::PodGone);
    }

    #[test]
    fn dropping_the_guard_unregisters() {
        let live = LiveRegistry::default();
        let (first, _cancel) = live.register(1);
        let (second, _cancel) = live.register(2);
        let id = first.id();
        drop(first);
        assert_eq!(live.len(), 1);
        assert!(!live.cancel(id, CancelReason::PodGone));
        let mut seen = Vec::new();
        live.for_each(|id, info| seen.push((id, *info)));
        assert_eq!(seen, [(second.id(), 2)]);
    }

    #[tokio::test]
    async fn never_does_not_fire() {
        let wait = Cancel::never();
        let limit = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(limit, wait.cancelled()).await.is_err());
    }
}
