//! Counters and gauges, by the names that Istio's and the seeds' dashboards
//! know.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use warren_core::identity::PodUid;

use super::certificates::{CertificateKind, Certificates};
use super::counted::Counted;
use super::labels::{Bounded, DeniedLabels, KindLabel, OutcomeLabel, PlaintextLabels, ReasonLabel, TcpLabels};
use super::live_bytes::LiveBytes;
use super::process::ProcessMemory;
use crate::clock::Clock;
use crate::identity::IssuerStatus;

/// Label sets per family; beyond, names are dropped.
const SERIES: usize = 4096;
/// Handshake durations in seconds: from loopback to the time-out.
const BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

/// A gauge that the agent registers and sets itself.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// A gauge with one value for each kind of object.
#[derive(Clone)]
pub struct KindGauge(Family<KindLabel, FloatGauge>);

impl KindGauge {
    /// Sets the value of a kind.
    pub fn set(&self, kind: &'static str, value: f64) {
        self.0.get_or_create(&KindLabel { kind }).set(value);
    }
}

/// Counters of TCP connections.
#[derive(Default)]
struct Tcp {
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    failed: Family<TcpLabels, Counter>,
    sent: Family<TcpLabels, Counter>,
    received: Family<TcpLabels, Counter>,
    open: Gauge,
    overflow: Counter,
}

/// Counters of TLS and certificates.
struct Mtls {
    ahead: Family<OutcomeLabel, Counter>,
    success: Counter,
    failure: Family<ReasonLabel, Counter>,
    duration: Histogram,
    issued: Counter,
    issue_failed: Counter,
    rotated: Counter,
    rotation_failed: Counter,
}

/// What became of a tunnel that was dialled before a connection wanted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TunnelAhead {
    /// It is there.
    Dialled,
    /// TCP or TLS failed.
    Failed,
    /// It was there, and the peer refused our certificate before anybody used it.
    Refused,
    /// It was there, and a connection used it.
    Used,
}

impl TunnelAhead {
    fn as_str(self) -> &'static str {
        match self {
            Self::Dialled => "dialled",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Used => "used",
        }
    }
}

/// Counters of what policy and operators care about.
#[derive(Default)]
struct Security {
    plaintext: Family<PlaintextLabels, Counter>,
    denied: Family<DeniedLabels, Counter>,
    audit_written: Counter,
    audit_dropped: Family<ReasonLabel, Counter>,
}

/// All metrics of one agent.
pub struct Metrics {
    registry: Mutex<Registry>,
    tcp: Tcp,
    mtls: Mtls,
    security: Security,
    certificates: Certificates,
    tcp_series: Bounded<TcpLabels>,
    counted: Counted,
    plaintext_series: Bounded<PlaintextLabels>,
    denied_series: Bounded<DeniedLabels>,
    /// Connections whose bytes are added to the counters whenever metrics are
    /// read: long ones would otherwise show nothing until they end.
    live: Mutex<BTreeMap<u64, Weak<LiveBytes>>>,
    next_live: AtomicU64,
}

/// The counters of one label set.
#[derive(Default)]
pub(super) struct TcpCounters {
    pub(super) opened: Counter,
    pub(super) closed: Counter,
    pub(super) sent: Counter,
    pub(super) received: Counter,
    pub(super) open: Gauge,
}

impl Metrics {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            tcp: Tcp::default(),
            mtls: Mtls {
                ahead: Family::default(),
                success: Counter::default(),
                failure: Family::default(),
                duration: Histogram::new(BUCKETS),
                issued: Counter::default(),
                issue_failed: Counter::default(),
                rotated: Counter::default(),
                rotation_failed: Counter::default(),
            },
            security: Security::default(),
            certificates: Certificates::new(clock),
            tcp_series: Bounded::new(SERIES),
            counted: Counted::default(),
            plaintext_series: Bounded::new(SERIES),
            denied_series: Bounded::new(SERIES),
            live: Mutex::default(),
            next_live: AtomicU64::new(0),
        };
        metrics.register_tcp();
        metrics.register_mtls();
        metrics.register_security();
        let mut registry = metrics.registry();
        registry.register_collector(Box::new(metrics.certificates.clone()));
        registry.register_collector(Box::new(ProcessMemory));
        drop(registry);
        metrics
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register_tcp(&self) {
        let tcp = &self.tcp;
        self.register("istio_tcp_connections_opened", "TCP connections opened", tcp.opened.clone());
        self.register("istio_tcp_connections_closed", "TCP connections closed", tcp.closed.clone());
        let help = "TCP connections that failed or were refused, before or after they were open";
        self.register("istio_tcp_connections_failed", help, tcp.failed.clone());
        let help = "Bytes from destination to source, as Istio counts a response";
        self.register("istio_tcp_sent_bytes", help, tcp.sent.clone());
        let help = "Bytes from source to destination, as Istio counts a request";
        self.register("istio_tcp_received_bytes", help, tcp.received.clone());
        let help = "Connections open now through this agent";
        self.register("warren_open_connections", help, tcp.open.clone());
        let help = "Connections counted without names because there are too many label sets";
        self.register("warren_metric_series_overflow", help, tcp.overflow.clone());
    }

    fn register_mtls(&self) {
        let mtls = &self.mtls;
        self.register("mtls_handshake_success", "TLS handshakes completed", mtls.success.clone());
        let help = "TLS handshakes failed, by reason";
        self.register("mtls_handshake_failure", help, mtls.failure.clone());
        let help = "Duration of TLS handshakes, failed ones included";
        self.register("mtls_handshake_duration_seconds", help, mtls.duration.clone());
        let help = "Tunnels dialled ahead of need, by outcome; of those dialled, how many were used";
        self.register("warren_tunnels_ahead", help, mtls.ahead.clone());
        let help = "Certificates issued to pods";
        self.register("certificate_issuance_success", help, mtls.issued.clone());
        let help = "First certificates of pods that could not be issued";
        self.register("certificate_issuance_failure", help, mtls.issue_failed.clone());
        let help = "Certificates of pods renewed";
        self.register("certificate_rotation_success", help, mtls.rotated.clone());
        let help = "Renewals of pods' certificates that failed";
        self.register("certificate_rotation_failure", help, mtls.rotation_failed.clone());
    }

    fn register_security(&self) {
        let security = &self.security;
        let help = "Plaintext connections seen at enrolled pods, by caller, destination and port";
        self.register("warren_plaintext_inbound", help, security.plaintext.clone());
        let help = "Connections refused by policy";
        self.register("warren_unauthorized_connections", help, security.denied.clone());
        let help = "Audit events written";
        self.register("warren_audit_events_written", help, security.audit_written.clone());
        let help = "Audit events lost, by reason";
        self.register("warren_audit_events_dropped", help, security.audit_dropped.clone());
    }

    /// Adds a metric of the caller's own (counters without `_total`).
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry().register(name, help, metric);
    }

    /// Registers a gauge of the caller's own, e.g. the age of the world or how
    /// busy the workers are.
    pub fn gauge(&self, name: &str, help: &str) -> FloatGauge {
        let gauge = FloatGauge::default();
        self.register(name, help, gauge.clone());
        gauge
    }

    /// Registers a gauge of the caller's own that has one value for each kind of object.
    pub fn gauge_by_kind(&self, name: &str, help: &str) -> KindGauge {
        let gauge = Family::<KindLabel, FloatGauge>::default();
        self.register(name, help, gauge.clone());
        KindGauge(gauge)
    }

    /// Registers a gauge of the caller's own with one label: one series for
    /// each of its values, in their order.
    pub fn gauge_by(&self, name: &str, help: &str, label: &'static str, values: &[&'static str]) -> Vec<FloatGauge> {
        let family: Family<[(&'static str, &'static str); 1], FloatGauge> = Family::default();
        self.register(name, help, family.clone());
        values.iter().map(|value| family.get_or_create(&[(label, *value)]).clone()).collect()
    }

    /// All metrics as OpenMetrics text.
    pub(super) fn encode(&self) -> String {
        self.settle_live();
        let mut text = String::new();
        // Writing to a string does not fail; a collector that does leaves its
        // own metric out.
        let _ = encode(&mut text, &self.registry());
        text
    }

    /// Counts a connection that failed or was refused.
    pub(super) fn tcp_failed(&self, labels: TcpLabels) {
        let labels = self.admit_tcp(labels);
        self.tcp.failed.get_or_create(&labels).inc();
    }

    fn admit_tcp(&self, labels: TcpLabels) -> TcpLabels {
        let (labels, within) = self.tcp_series.admit_tcp(labels);
        if !within {
            self.tcp.overflow.inc();
        }
        labels
    }

    /// The counters that were looked up before.
    pub(super) fn counted(&self) -> &Counted {
        &self.counted
    }

    pub(super) fn tcp(&self, labels: TcpLabels) -> TcpCounters {
        let labels = self.admit_tcp(labels);
        TcpCounters {
            opened: self.tcp.opened.get_or_create_owned(&labels),
            closed: self.tcp.closed.get_or_create_owned(&labels),
            sent: self.tcp.sent.get_or_create_owned(&labels),
            received: self.tcp.received.get_or_create_owned(&labels),
            open: self.tcp.open.clone(),
        }
    }

    /// Has the bytes of a live connection counted at every scrape; the number
    /// is for [`forget_live`](Self::forget_live).
    pub(super) fn follow_live(&self, bytes: &Arc<LiveBytes>) -> u64 {
        let id = self.next_live.fetch_add(1, Ordering::Relaxed);
        self.live().insert(id, Arc::downgrade(bytes));
        id
    }

    pub(super) fn forget_live(&self, id: u64) {
        self.live().remove(&id);
    }

    fn live(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<LiveBytes>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle_live(&self) {
        for bytes in self.live().values().filter_map(Weak::upgrade) {
            bytes.settle();
        }
    }

    pub(super) fn handshake(&self, failure: Option<&'static str>, duration: Duration) {
        self.mtls.duration.observe(duration.as_secs_f64());
        match failure {
            None => self.mtls.success.inc(),
            Some(reason) => self.mtls.failure.get_or_create(&ReasonLabel { reason }).inc(),
        };
    }

    /// Counts what became of a tunnel dialled ahead.
    pub(crate) fn tunnel_ahead(&self, outcome: TunnelAhead) {
        self.mtls.ahead.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }

    pub(super) fn denied(&self, labels: DeniedLabels) {
        let other = |l: &DeniedLabels| DeniedLabels {
            destination: "other".into(),
            destination_namespace: "other".into(),
            policy: l.policy.clone(),
        };
        let (labels, _) = self.denied_series.admit(labels, other);
        self.security.denied.get_or_create(&labels).inc();
    }

    /// Counts a plaintext connection to an enrolled pod: `verdict` is `pass`
    /// (the kernel let it through), `agent` (it was judged) or `refused`.
    pub fn plaintext_seen(
        &self,
        source: &str,
        destination: &str,
        destination_namespace: &str,
        destination_port: u16,
        verdict: &'static str,
    ) {
        let labels = PlaintextLabels {
            source: source.into(),
            destination: destination.into(),
            destination_namespace: destination_namespace.into(),
            destination_port,
            verdict,
        };
        let other = |l: &PlaintextLabels| PlaintextLabels {
            source: "other".into(),
            destination: "other".into(),
            destination_namespace: "other".into(),
            destination_port: 0,
            verdict: l.verdict,
        };
        let (labels, _) = self.plaintext_series.admit(labels, other);
        self.security.plaintext.get_or_create(&labels).inc();
    }

    pub(super) fn audit_written(&self, count: u64) {
        self.security.audit_written.inc_by(count);
    }

    pub(super) fn audit_dropped(&self, reason: &'static str) {
        self.security.audit_dropped.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts an attempt to give a pod a certificate: `renewal` tells rotation
    /// from first issuance.
    pub fn certificate_attempt(&self, renewal: bool, success: bool) {
        match (renewal, success) {
            (false, true) => self.mtls.issued.inc(),
            (false, false) => self.mtls.issue_failed.inc(),
            (true, true) => self.mtls.rotated.inc(),
            (true, false) => self.mtls.rotation_failed.inc(),
        };
    }

    /// Notes the certificate that a pod uses now.
    pub fn leaf(&self, uid: &PodUid, subject: &str, from: SystemTime, to: SystemTime) {
        self.certificates.leaf(uid, subject, from, to);
    }

    /// Forgets a pod's certificate.
    pub fn forget_leaf(&self, uid: &PodUid) {
        self.certificates.forget_leaf(uid);
    }

    /// Notes the issuers in use; replaces what was known.
    pub fn issuers(&self, issuers: &[IssuerStatus]) {
        for (kind, word) in [(CertificateKind::Root, "root"), (CertificateKind::Intermediate, "intermediate")] {
            let of_kind = issuers.iter().filter(|issuer| issuer.kind == word);
            let validity = of_kind.map(|issuer| {
                let subject = issuer.subject.clone();
                (subject, issuer.serial.clone(), issuer.not_before, issuer.not_after)
            });
            self.certificates.issuers(kind, validity);
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
