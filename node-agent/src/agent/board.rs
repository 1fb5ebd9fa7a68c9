//! The board on which the control thread writes what it knows, and from which status and health are answered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;
use warren_core::enrolment::mode::RefuseReason;
use warren_core::identity::PodUid;
use warren_core::world::Pod;
use warren_ebpf_abi::ProbeRefusal;
use warren_mesh::identity::PodIdentity;

use crate::shared::LocalPod;
use crate::status::{FindingStatus, PodError};

/// Findings kept for status; older ones are in the log.
const FINDINGS: usize = 50;

/// Where a local pod stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PodState {
    /// Captured and served.
    Enrolled,
    /// Not captured, and why.
    Failed(PodError),
    /// New connections are no longer captured; old ones are still served.
    Leaving,
    /// Not captured, and not meant to be; it has an identity.
    Observed,
    /// Wanted in, and never taken in.
    Refused(RefuseReason),
}

/// One local pod on the board.
#[derive(Clone)]
pub(crate) struct PodEntry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) local: Option<Arc<LocalPod>>,
    /// The identity of a pod that is not captured.
    pub(crate) identity: Option<PodIdentity>,
    pub(crate) state: PodState,
}

/// A pod that kubelet would probe in vain, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnprobedPod {
    pub(crate) uid: PodUid,
    pub(crate) why: ProbeRefusal,
    pub(crate) reason: String,
}

/// What the control thread knows beyond the world itself.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) ready: bool,
    pub(crate) world_loaded: Option<Instant>,
    pub(crate) source_error: Option<String>,
    pub(crate) rejections: Vec<String>,
    pub(crate) pods: Vec<PodEntry>,
    /// Pods that kubelet would probe in vain.
    pub(crate) unprobed: Vec<UnprobedPod>,
    pub(crate) findings: VecDeque<FindingStatus>,
}

/// The board itself.
#[derive(Default)]
pub(crate) struct Board {
    notes: Mutex<Notes>,
    cut: Notify,
}

impl Board {
    /// Locks the board for reading or writing; held for moments only.
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the control thread that connections were told to end.
    pub(crate) fn told_to_end(&self) {
        self.cut.notify_one();
    }

    /// Waits until connections were told to end.
    pub(crate) async fn ending(&self) {
        self.cut.notified().await;
    }

    /// Adds a finding of the auditor.
    pub(crate) fn found(&self, what: String, repaired: bool) {
        let mut notes = self.notes();
        if notes.findings.len() == FINDINGS {
            notes.findings.pop_front();
        }
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        notes.findings.push_back(FindingStatus { time, what, repaired });
    }
}
