//! The board on which the control thread writes what it knows, and from which status and health are answered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use warren_core::world::Pod;

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
}

/// One local pod on the board.
#[derive(Clone)]
pub(crate) struct PodEntry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) local: Option<Arc<LocalPod>>,
    pub(crate) state: PodState,
}

/// What the control thread knows beyond the world itself.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) ready: bool,
    pub(crate) world_loaded: Option<Instant>,
    pub(crate) source_error: Option<String>,
    pub(crate) rejections: Vec<String>,
    pub(crate) pods: Vec<PodEntry>,
    pub(crate) findings: VecDeque<FindingStatus>,
}

/// The board itself.
#[derive(Default)]
pub(crate) struct Board(Mutex<Notes>);

impl Board {
    /// Locks the board for reading or writing; held for moments only.
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
