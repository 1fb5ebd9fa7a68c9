//! What one check found.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// The check could not be made.
    Skipped,
    /// Warren works, and something may surprise.
    Warning,
    /// Warren, or something beside it, will not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Short, stable name of the check.
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    /// What was found.
    pub(crate) message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cure: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, message: message.into(), cure: None }
    }

    pub(super) fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, level: Level::Skipped, message: why.into(), cure: None }
    }

    pub(super) fn warning(check: &'static str, message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, message: message.into(), cure: Some(cure.into()) }
    }

    pub(super) fn error(check: &'static str, message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, level: Level::Error, message: message.into(), cure: Some(cure.into()) }
    }
}
