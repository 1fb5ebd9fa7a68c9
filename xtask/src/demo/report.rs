//! What the demo found, and whether it is what was expected.

use crate::outcome::{Outcome, Totals};

/// Checks made so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    totals: Totals,
    failed: Vec<String>,
}

impl Report {
    /// Begins a part of the story.
    pub(super) fn chapter(&self, title: &str) {
        println!("\n━━ {title}");
    }

    /// Counts a check and says how it ended: no faults is well.
    pub(super) fn check(&mut self, name: &str, faults: &[String]) {
        let outcome = Outcome::of_findings(faults);
        outcome.print(name);
        self.totals.count(&outcome);
        if !faults.is_empty() {
            self.failed.push(name.to_owned());
        }
    }

    /// The same for a check whose failure is an error.
    pub(super) fn check_result(&mut self, name: &str, result: anyhow::Result<()>) {
        let faults: Vec<String> = result.err().map(|error| format!("{error:#}")).into_iter().collect();
        self.check(name, &faults);
    }

    /// The numbers.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// The checks that did not end as expected.
    pub(super) fn failed(&self) -> &[String] {
        &self.failed
    }
}
