//! Evidence: access log, audit events, handshake records, metrics.
//!
//! One [`ConnectionRecord`] per connection writes all of them, so they cannot
//! disagree.

mod audit;
mod certificates;
mod counted;
mod facts;
mod handshake;
mod incapable;
mod issuance;
mod labels;
mod live_bytes;
mod membership;
mod metrics;
mod probes;
mod process;
mod record;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use audit::{AuditSink, AuditTarget};
pub use certificates::CertificateKind;
pub use facts::{ConnectionFacts, ConnectionName, ResponseFlag, ServiceFacts, WorkloadFacts};
pub use handshake::{HandshakeFacts, Parties};
pub use incapable::IncapableDestinations;
pub use issuance::{Asked, IssuanceLog};
pub use membership::MembershipLog;
pub(crate) use metrics::TunnelAhead;
pub use metrics::{FloatGauge, KindGauge, Metrics};
pub use probes::ProbeCounter;
pub use record::ConnectionRecord;
pub use warren_core::audit::Direction;

use crate::clock::{Clock, SystemClock};

/// Where evidence goes, and whose it is.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Node name.
    pub node: String,
    /// Cluster name.
    pub cluster: String,
    /// Region name.
    pub region: String,
    /// Where audit events go.
    pub audit: AuditTarget,
    /// Audit events that may wait to be written; beyond, they are dropped and
    /// counted.
    pub queue: usize,
}

impl TelemetryConfig {
    /// A configuration that keeps audit events nowhere: for tests and tools.
    pub fn quiet(node: &str) -> Self {
        Self {
            node: node.into(),
            cluster: "Kubernetes".into(),
            region: String::new(),
            audit: AuditTarget::None,
            queue: 1024,
        }
    }
}

/// Everything that records, shared by all threads of the agent.
pub struct Telemetry {
    config: TelemetryConfig,
    audit: AuditSink,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    node: Arc<str>,
    next_connection: std::sync::atomic::AtomicU64,
}

impl Telemetry {
    /// Opens the audit target and starts its writer.
    pub fn new(config: TelemetryConfig) -> std::io::Result<Arc<Self>> {
        Self::with_clock(config, Arc::new(SystemClock))
    }

    /// The same with another clock, which decides about certificate expiry.
    pub fn with_clock(config: TelemetryConfig, clock: Arc<dyn Clock>) -> std::io::Result<Arc<Self>> {
        let metrics = Arc::new(Metrics::new(Arc::clone(&clock)));
        let audit = AuditSink::open(&config.audit, config.queue, Arc::clone(&metrics))?;
        let next_connection = std::sync::atomic::AtomicU64::new(1);
        let node = config.node.as_str().into();
        Ok(Arc::new(Self { config, audit, metrics, clock, node, next_connection }))
    }

    /// Node, cluster and region that every event carries.
    pub fn config(&self) -> &TelemetryConfig {
        &self.config
    }

    /// Counters and gauges.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All metrics in Prometheus' text format (OpenMetrics).
    pub fn metrics_text(&self) -> String {
        self.metrics.encode()
    }

    /// The audit sink.
    pub fn audit(&self) -> &AuditSink {
        &self.audit
    }

    /// A new connection id, unique on this node since its start: it joins the
    /// access log, the audit event and the handshake record.
    pub fn connection_id(&self) -> ConnectionName {
        let number = self.next_connection.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ConnectionName { node: Arc::clone(&self.node), number }
    }

    pub(crate) fn shared_metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// RFC 3339 time, UTC, milliseconds.
    pub(crate) fn timestamp(&self) -> String {
        facts::rfc3339(self.clock.now())
    }
}
