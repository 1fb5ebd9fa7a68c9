//! The budget of file descriptors: how many a node may use, and how much of it one pod can never take from another.
//!
//! Half of the budget is divided into guaranteed shares, one per pod; the other half is lent to whoever needs it. A
//! connection that finds no slot waits, and those behind it stay in the kernel's backlog.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use warren_core::identity::PodUid;

/// Descriptors kept back for everything that is not a connection: maps, links, logs, the admin endpoint, tunnels.
const RESERVED: u64 = 1024;
/// Fewer for connections than this are worth a warning.
const FEW: usize = 4096;
/// What is left to connections however small the limit is.
const MINIMUM: usize = 64;

#[derive(Debug, Default)]
struct Ledger {
    used: BTreeMap<PodUid, usize>,
    lent: usize,
}

/// Descriptors for connections, shared out among pods.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    ledger: Mutex<Ledger>,
    freed: Notify,
}

/// Descriptors taken by one connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    budget: Arc<Budget>,
    pod: PodUid,
    count: usize,
}

impl Budget {
    /// A budget of `total` descriptors.
    pub(crate) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, ledger: Mutex::default(), freed: Notify::new() })
    }

    /// Raises the soft limit of open files to the hard one and makes a budget of it.
    pub(crate) fn of_process() -> Arc<Self> {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let open_files = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
        let total = usize::try_from(open_files.saturating_sub(RESERVED)).unwrap_or(usize::MAX);
        if total < FEW {
            tracing::warn!(open_files, "few file descriptors for connections: raise the limit of open files");
        }
        Self::new(total.max(MINIMUM))
    }

    /// How many descriptors there are for connections.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// How many are in use.
    pub(crate) fn used(&self) -> usize {
        self.ledger().used.values().sum()
    }

    /// Opens an account: from now on the pod has a guaranteed share.
    pub(crate) fn add_pod(&self, pod: &PodUid) {
        let mut ledger = self.ledger();
        ledger.used.entry(pod.clone()).or_default();
        ledger.recount(self.total);
    }

    /// Closes an account; slots still out return nothing to anyone's guarantee.
    pub(crate) fn remove_pod(&self, pod: &PodUid) {
        let mut ledger = self.ledger();
        ledger.used.remove(pod);
        ledger.recount(self.total);
        drop(ledger);
        self.freed.notify_waiters();
    }

    /// Takes `count` descriptors for a pod, if its guarantee or the common half has them.
    pub(crate) fn try_take(self: &Arc<Self>, pod: &PodUid, count: usize) -> Option<Slot> {
        let mut ledger = self.ledger();
        let guaranteed = ledger.guaranteed(self.total);
        let before = ledger.used.get(pod).copied().unwrap_or(0);
        let after = before + count;
        let lent = after.saturating_sub(guaranteed) - before.saturating_sub(guaranteed);
        if ledger.lent + lent > self.total / 2 {
            return None;
        }
        ledger.lent += lent;
        ledger.used.insert(pod.clone(), after);
        Some(Slot { budget: self.clone(), pod: pod.clone(), count })
    }

    /// Takes `count` descriptors for a pod, waiting until there are some.
    pub(crate) async fn take(self: &Arc<Self>, pod: &PodUid, count: usize) -> Slot {
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = self.try_take(pod, count) {
                return slot;
            }
            freed.await;
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn guaranteed(&self, total: usize) -> usize {
        total / 2 / self.used.len().max(1)
    }

    fn recount(&mut self, total: usize) {
        let guaranteed = self.guaranteed(total);
        self.lent = self.used.values().map(|used| used.saturating_sub(guaranteed)).sum();
    }
}

impl Slot {
    /// Gives back what is beyond `count`: it turned out not to be needed.
    pub(crate) fn keep(&mut self, count: usize) {
        let spare = self.count.saturating_sub(count);
        self.count -= spare;
        self.give_back(spare);
    }

    fn give_back(&self, count: usize) {
        let mut ledger = self.budget.ledger();
        if let Some(used) = ledger.used.get_mut(&self.pod) {
            *used = used.saturating_sub(count);
        }
        ledger.recount(self.budget.total);
        drop(ledger);
        self.budget.freed.notify_waiters();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.give_back(self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodUid {
        PodUid::from(name)
    }

    #[test]
    fn a_greedy_pod_leaves_the_others_their_share() {
        let budget = Budget::new(100);
        let (greedy, modest) = (pod("greedy"), pod("modest"));
        budget.add_pod(&greedy);
        budget.add_pod(&modest);
        let taken: Vec<_> = std::iter::from_fn(|| budget.try_take(&greedy, 1)).collect();
        assert_eq!(taken.len(), 75, "its own quarter and the common half");
        let share: Vec<_> = std::iter::from_fn(|| budget.try_take(&modest, 1)).collect();
        assert_eq!(share.len(), 25);
        assert_eq!(budget.used(), 100);
    }

    #[test]
    fn slots_come_back() {
        let budget = Budget::new(10);
        let one = pod("one");
        budget.add_pod(&one);
        let slots: Vec<_> = std::iter::from_fn(|| budget.try_take(&one, 2)).collect();
        assert_eq!(slots.len(), 5);
        drop(slots);
        assert_eq!(budget.used(), 0);
        assert!(budget.try_take(&one, 10).is_some());
    }

    #[test]
    fn what_is_not_needed_comes_back_once() {
        let budget = Budget::new(10);
        let one = pod("one");
        budget.add_pod(&one);
        let mut slot = budget.try_take(&one, 2).unwrap();
        slot.keep(1);
        slot.keep(1);
        assert_eq!(budget.used(), 1);
        drop(slot);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_removed_pod_returns_what_it_borrowed() {
        let budget = Budget::new(8);
        let (gone, stays) = (pod("gone"), pod("stays"));
        budget.add_pod(&gone);
        budget.add_pod(&stays);
        let slots: Vec<_> = std::iter::from_fn(|| budget.try_take(&gone, 1)).collect();
        budget.remove_pod(&gone);
        assert!(budget.try_take(&stays, 8).is_some());
        drop(slots);
    }

    #[tokio::test]
    async fn waiting_ends_when_a_slot_is_freed() {
        let budget = Budget::new(2);
        let one = pod("one");
        budget.add_pod(&one);
        let held = budget.take(&one, 2).await;
        let waiting = tokio::spawn({
            let (budget, one) = (budget.clone(), one.clone());
            async move { budget.take(&one, 1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert!(waiting.await.is_ok());
    }
}
