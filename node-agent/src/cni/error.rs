//! What a plugin says when it fails: the CNI specification's error object, on standard output.

use serde::Serialize;

/// Newest version of the specification that the plugin speaks.
pub(super) const NEWEST: &str = "1.1.0";
/// All versions it speaks.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];

/// Why the plugin fails; the discriminant is the code in the error object. Codes below 100 are the specification's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Code {
    /// The configuration's version is not one the plugin speaks.
    Version = 1,
    /// An environment variable is missing or has no meaning.
    Environment = 4,
    /// Standard input cannot be read.
    Input = 5,
    /// Standard input is not JSON.
    Decode = 6,
    /// The configuration cannot work.
    Config = 7,
    /// The agent is away and the pod must not start without it; the runtime tries again.
    Again = 11,
    /// Nothing could be decided now, neither by the agent nor without it (STATUS).
    Unavailable = 50,
    /// The pod is not to start: its labels contradict each other.
    Refused = 100,
    /// The agent is there and was not done in time.
    TimedOut = 101,
    /// The agent is there and could not take the pod in.
    NotEnrolled = 102,
    /// CHECK: the pod is not as ADD left it.
    Missing = 103,
}

/// A failure of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub(super) struct CniError {
    pub(super) code: Code,
    /// What failed.
    pub(super) msg: String,
    /// Why, and what to do.
    pub(super) details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    details: &'a str,
}

impl CniError {
    pub(super) fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// The error object.
    pub(super) fn to_json(&self, version: &str) -> String {
        let shown = Shown { cni_version: version, code: self.code as u32, msg: &self.msg, details: &self.details };
        serde_json::to_string(&shown).unwrap_or_default()
    }
}
