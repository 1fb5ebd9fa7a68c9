//! Bytes of a connection on their way into the counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use warren_core::audit::Direction;

use super::metrics::TcpCounters;
use crate::copy::ByteCounts;

/// Joins what the copy loop counts with the counters of the connection's label
/// set; each byte is added once.
pub(super) struct LiveBytes {
    direction: Direction,
    bytes: Arc<ByteCounts>,
    tcp: Arc<TcpCounters>,
    settled_request: AtomicU64,
    settled_response: AtomicU64,
}

impl LiveBytes {
    pub(super) fn new(direction: Direction, bytes: Arc<ByteCounts>, tcp: Arc<TcpCounters>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { direction, bytes, tcp, settled_request: zero(), settled_response: zero() }
    }

    /// Adds what came since the last call.
    pub(super) fn settle(&self) {
        let (request, response) = request_response(self.direction, &self.bytes);
        let new = |settled: &AtomicU64, now: u64| now - settled.fetch_max(now, Ordering::Relaxed).min(now);
        self.tcp.received.inc_by(new(&self.settled_request, request));
        self.tcp.sent.inc_by(new(&self.settled_response, response));
    }
}

/// (bytes from source to destination, bytes from destination to source).
pub(super) fn request_response(direction: Direction, bytes: &ByteCounts) -> (u64, u64) {
    match direction {
        Direction::Outbound => (bytes.to_tunnel(), bytes.to_app()),
        Direction::Inbound => (bytes.to_app(), bytes.to_tunnel()),
    }
}
