//! What a run prints when it ends: one JSON object on standard output.

use serde::{Deserialize, Serialize};

use crate::latency::Percentiles;

/// A client's measurements.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `rr`, `connect`, `stream` or `idle`.
    pub mode: String,
    /// How long was measured, after the warm-up.
    pub seconds: f64,
    /// Round trips, connections, or connections held.
    pub operations: u64,
    /// Bytes of payload that were received and found right, at both ends.
    pub bytes: u64,
    /// Processor time of the whole system meanwhile.
    pub cpu_seconds: f64,
    /// Connections that failed, where that was allowed.
    pub failed: u64,
    /// Latency of one operation, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency: Option<Percentiles>,
    /// What ended the run early.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// A server's account, printed when it is told to end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Connections accepted.
    pub connections: u64,
    /// Bytes of payload received and found right.
    pub bytes: u64,
    /// Connections that broke off: resets, early ends.
    pub broken: u64,
    /// The most connections that were open at once.
    pub most_open: u64,
    /// What was wrong with bytes or protocol; the first ones.
    pub errors: Vec<String>,
}
