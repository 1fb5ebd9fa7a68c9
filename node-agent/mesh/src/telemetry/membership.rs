//! Pods that leave the mesh: an event and a count for each, since they talk in clear from then on.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use warren_core::audit::EnrolmentEvent;

use super::Telemetry;
use super::labels::Bounded;

/// Namespaces that are named; beyond, names are dropped.
const SERIES: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct NamespaceLabel {
    namespace: String,
}

/// Records who leaves.
pub struct MembershipLog {
    telemetry: Arc<Telemetry>,
    left: Family<NamespaceLabel, Counter>,
    series: Bounded<NamespaceLabel>,
}

impl MembershipLog {
    /// Registers its counter.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        let left = Family::<NamespaceLabel, Counter>::default();
        let help = "Running pods that left the mesh, by namespace";
        telemetry.metrics().register("warren_pods_left", help, left.clone());
        Self { telemetry, left, series: Bounded::new(SERIES) }
    }

    /// A running pod left.
    pub fn left(&self, event: &EnrolmentEvent) {
        let labels = NamespaceLabel { namespace: event.namespace.clone() };
        let (labels, _) = self.series.admit(labels, |_| NamespaceLabel { namespace: "other".into() });
        self.left.get_or_create(&labels).inc();
        self.telemetry.audit().write(event);
    }
}
