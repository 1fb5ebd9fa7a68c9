//! What checks and test suites ended in, and their sum.

use std::fmt;
use std::ops::AddAssign;

/// Findings of one check that are printed.
const SHOWN: usize = 20;

/// How one check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It holds.
    Passed,
    /// It does not, with what was found.
    Failed(String),
    /// It could not be made here, with the reason.
    Skipped(String),
}

impl Outcome {
    /// A check that fails by its error.
    pub(crate) fn of(result: anyhow::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Passed,
            Err(error) => Self::Failed(format!("{error:#}")),
        }
    }

    /// A check that lists what it found: nothing is well. Of many findings the
    /// first ones are shown.
    pub(crate) fn of_findings(findings: &[String]) -> Self {
        if findings.is_empty() {
            return Self::Passed;
        }
        let mut shown: Vec<String> = findings.iter().take(SHOWN).cloned().collect();
        if findings.len() > SHOWN {
            shown.push(format!("… and {} more", findings.len() - SHOWN));
        }
        Self::Failed(shown.join("\n"))
    }

    /// Says how a check ended, with the findings indented below it.
    pub(crate) fn print(&self, name: &str) {
        match self {
            Self::Passed => println!("ok       {name}"),
            Self::Failed(why) => println!("FAILED   {name}\n         {}", why.replace('\n', "\n         ")),
            Self::Skipped(why) => println!("skipped  {name}: {why}"),
        }
    }
}

/// Numbers of checks or tests by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Totals {
    /// Counts one check.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_findings_some_are_shown() {
        let findings = vec!["fault".to_owned(); SHOWN + 5];
        let Outcome::Failed(text) = Outcome::of_findings(&findings) else { panic!("findings are no success") };
        assert!(text.ends_with("… and 5 more") && text.lines().count() == SHOWN + 1);
        assert_eq!(Outcome::of_findings(&[]), Outcome::Passed);
    }

    #[test]
    fn totals_name_skips_only_where_there_are_some() {
        let mut totals = Totals { passed: 3, ..Totals::default() };
        assert_eq!(totals.to_string(), "3 passed, 0 failed");
        totals.count(&Outcome::Skipped("no nightly".into()));
        assert_eq!(totals.to_string(), "3 passed, 0 failed, 1 skipped");
    }
}
