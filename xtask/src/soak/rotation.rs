//! Which certificates the pods had: each life of a pod with each life of its
//! agent goes through several.

use std::collections::{BTreeMap, BTreeSet};

use super::agents::Setting;
use super::board::Running;
use super::lab::NODES;

/// A pod's life and its agent's process.
type Life = (String, u32);

/// Serial numbers seen.
#[derive(Debug, Default)]
pub(super) struct Rotations {
    serials: BTreeMap<Life, BTreeSet<String>>,
}

impl Rotations {
    /// Looks at both agents; one that is away is looked at next time.
    pub(super) fn look(&mut self, running: &Running, setting: &Setting) {
        for node in NODES {
            let Some(pid) = running.agent(node) else { continue };
            let Ok(status) = setting.status(node) else { continue };
            for pod in status["pods"].as_array().into_iter().flatten() {
                if let (Some(uid), Some(serial)) = (pod["uid"].as_str(), pod["svid"]["serial"].as_str()) {
                    self.serials.entry((uid.to_owned(), pid)).or_default().insert(serial.to_owned());
                }
            }
        }
    }

    /// How often a certificate was replaced while pod and agent lived on.
    pub(super) fn count(&self) -> usize {
        self.serials.values().map(|seen| seen.len() - 1).sum()
    }
}
