//! The kernel's account of the time that its programs take.

use std::fs;

use anyhow::{Context, Result};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The account is kept as long as this lives; then the switch is as it was.
#[derive(Debug)]
pub(super) struct Accounting {
    before: String,
}

impl Accounting {
    /// Has it kept.
    pub(super) fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, &self.before) {
            eprintln!("warning: {SWITCH} was {} and cannot be set back: {error}", self.before.trim());
        }
    }
}
