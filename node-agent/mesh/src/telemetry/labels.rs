//! Label sets, and the bound on how many there may be.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;

use super::facts::{ConnectionFacts, ResponseFlag, WorkloadFacts};
use warren_core::audit::Direction;
use warren_core::identity::SpiffeId;

/// Istio's standard labels of TCP metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct TcpLabels {
    reporter: &'static str,
    source_workload: String,
    source_canonical_service: String,
    source_canonical_revision: String,
    source_workload_namespace: String,
    source_principal: String,
    source_app: String,
    source_version: String,
    source_cluster: String,
    destination_service: String,
    destination_service_name: String,
    destination_service_namespace: String,
    destination_workload: String,
    destination_canonical_service: String,
    destination_canonical_revision: String,
    destination_workload_namespace: String,
    destination_principal: String,
    destination_app: String,
    destination_version: String,
    destination_cluster: String,
    request_protocol: &'static str,
    response_flags: &'static str,
    connection_security_policy: &'static str,
}

const UNKNOWN: &str = "unknown";

fn known(text: Option<&str>) -> String {
    match text {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

impl TcpLabels {
    /// Labels of a connection; `proven` holds the identities, and whether TLS proved them.
    pub(super) fn of(
        facts: &ConnectionFacts,
        proven: Option<(&SpiffeId, &SpiffeId, bool)>,
        flag: ResponseFlag,
    ) -> Self {
        let (src, dst) = (facts.source.as_deref(), facts.destination.as_deref());
        let field = |of: Option<&WorkloadFacts>, pick: fn(&WorkloadFacts) -> &String| {
            known(of.map(|facts| pick(facts).as_str()))
        };
        let service = facts.service.as_ref();
        Self {
            reporter: match facts.direction {
                Direction::Outbound => "source",
                Direction::Inbound => "destination",
            },
            source_workload: field(src, |f| &f.workload),
            source_canonical_service: field(src, |f| &f.canonical_service),
            source_canonical_revision: field(src, |f| &f.canonical_revision),
            source_workload_namespace: field(src, |f| &f.namespace),
            source_principal: known(proven.map(|(source, ..)| source.as_str())),
            source_app: field(src, |f| &f.app),
            source_version: field(src, |f| &f.version),
            source_cluster: field(src, |f| &f.cluster),
            destination_service: known(service.map(|s| s.hostname.as_str())),
            destination_service_name: known(service.map(|s| s.name.as_str())),
            destination_service_namespace: known(service.map(|s| s.namespace.as_str())),
            destination_workload: field(dst, |f| &f.workload),
            destination_canonical_service: field(dst, |f| &f.canonical_service),
            destination_canonical_revision: field(dst, |f| &f.canonical_revision),
            destination_workload_namespace: field(dst, |f| &f.namespace),
            destination_principal: known(proven.map(|(_, destination, _)| destination.as_str())),
            destination_app: field(dst, |f| &f.app),
            destination_version: field(dst, |f| &f.version),
            destination_cluster: field(dst, |f| &f.cluster),
            request_protocol: "tcp",
            response_flags: flag.as_str(),
            connection_security_policy: if proven.is_some_and(|(.., mtls)| mtls) { "mutual_tls" } else { UNKNOWN },
        }
    }

    /// The same connection without its names: where it is counted when there
    /// are too many label sets.
    fn nameless(&self) -> Self {
        let other = || "other".to_owned();
        Self {
            source_workload: other(),
            source_canonical_service: other(),
            source_canonical_revision: other(),
            source_workload_namespace: other(),
            source_principal: other(),
            source_app: other(),
            source_version: other(),
            source_cluster: other(),
            destination_service: other(),
            destination_service_name: other(),
            destination_service_namespace: other(),
            destination_workload: other(),
            destination_canonical_service: other(),
            destination_canonical_revision: other(),
            destination_workload_namespace: other(),
            destination_principal: other(),
            destination_app: other(),
            destination_version: other(),
            destination_cluster: other(),
            ..*self
        }
    }
}

/// Plaintext seen, by caller, destination and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct PlaintextLabels {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) destination_namespace: String,
    pub(super) destination_port: u16,
    pub(super) verdict: &'static str,
}

/// Refusals by policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct DeniedLabels {
    pub(super) destination: String,
    pub(super) destination_namespace: String,
    pub(super) policy: String,
}

/// One word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

/// What became of something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub(super) outcome: &'static str,
}

/// A kind of object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub(super) kind: &'static str,
}

/// Keeps the number of label sets of one family under a limit. Names come from
/// the world and from peers' certificates, so a long-lived agent would
/// otherwise collect them without end.
#[derive(Debug)]
pub(super) struct Bounded<L> {
    known: Mutex<BTreeSet<L>>,
    limit: usize,
}

impl<L: Ord + Clone> Bounded<L> {
    pub(super) fn new(limit: usize) -> Self {
        Self { known: Mutex::default(), limit }
    }

    /// The label set to count under: itself, or `other` beyond the limit.
    pub(super) fn admit(&self, labels: L, other: impl FnOnce(&L) -> L) -> (L, bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&labels) {
            return (labels, true);
        }
        if known.len() < self.limit {
            known.insert(labels.clone());
            return (labels, true);
        }
        (other(&labels), false)
    }
}

impl Bounded<TcpLabels> {
    pub(super) fn admit_tcp(&self, labels: TcpLabels) -> (TcpLabels, bool) {
        self.admit(labels, TcpLabels::nameless)
    }
}
