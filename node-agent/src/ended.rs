//! A line that ended before its bytes could flow.

use tokio::net::TcpStream;
use warren_core::policy::Denial;
use warren_mesh::copy::reset;
use warren_mesh::telemetry::{ConnectionRecord, ResponseFlag};

/// Why a line ended early, with everything that must still be done about it. Boxed: it is the rare outcome of every
/// stage.
#[must_use = "an early end must be concluded: recorded, and passed on as a reset"]
pub(crate) struct Ended(Box<End>);

struct End {
    tcp: Option<TcpStream>,
    record: ConnectionRecord,
    why: Why,
}

enum Why {
    Denied { reason: String, policy: Option<String> },
    Failed { flag: ResponseFlag, reason: String },
}

impl Ended {
    /// Refused although everything works: an identity or address that may not do this.
    pub(crate) fn denied(tcp: TcpStream, record: ConnectionRecord, reason: impl Into<String>) -> Self {
        Self::new(Some(tcp), record, Why::Denied { reason: reason.into(), policy: None })
    }

    /// Denied by policy.
    pub(crate) fn by_policy(tcp: Option<TcpStream>, record: ConnectionRecord, denial: &Denial) -> Self {
        let policy = denial.policy.as_ref().map(ToString::to_string);
        Self::new(tcp, record, Why::Denied { reason: denial.to_string(), policy })
    }

    /// Something on the way does not work.
    pub(crate) fn failed(
        tcp: impl Into<Option<TcpStream>>,
        record: ConnectionRecord,
        flag: ResponseFlag,
        reason: impl Into<String>,
    ) -> Self {
        Self::new(tcp.into(), record, Why::Failed { flag, reason: reason.into() })
    }

    /// Records the end and resets the application's connection: it must not look like a clean one.
    pub(crate) fn conclude(self) {
        let End { tcp, record, why } = *self.0;
        match why {
            Why::Denied { reason, policy } => record.deny(reason, policy),
            Why::Failed { flag, reason } => record.fail(flag, reason),
        }
        if let Some(tcp) = tcp {
            reset(tcp);
        }
    }
    fn new(tcp: Option<TcpStream>, record: ConnectionRecord, why: Why) -> Self {
        Self(Box::new(End { tcp, record, why }))
    }
}
