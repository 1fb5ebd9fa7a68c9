//! What became of connections from the node's host to its pods.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::labels::Bounded;
use super::metrics::Metrics;

/// Pods that are named at once; beyond, names are dropped.
const SERIES: usize = 4096;

/// A pod's workload, and what became of a connection to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct ProbeLabels {
    destination: String,
    destination_namespace: String,
    outcome: &'static str,
}

/// Counts connections from the node's host: probes that were let in, and why others were not.
#[derive(Clone)]
pub struct ProbeCounter {
    counters: Family<ProbeLabels, Counter>,
    series: Arc<Bounded<ProbeLabels>>,
}

impl ProbeCounter {
    /// Registers the counters.
    pub fn register(metrics: &Metrics) -> Self {
        let counters = Family::default();
        let help = "Connections from this node's host to pods, by outcome: passed as a probe, or why they did not";
        metrics.register("warren_probe_connections", help, counters.clone());
        Self { counters, series: Arc::new(Bounded::new(SERIES)) }
    }

    /// Counts a connection to a pod of this workload.
    pub fn count(&self, destination: &str, destination_namespace: &str, outcome: &'static str) {
        let (destination, destination_namespace) = (destination.into(), destination_namespace.into());
        let labels = ProbeLabels { destination, destination_namespace, outcome };
        let other = |labels: &ProbeLabels| ProbeLabels {
            destination: "other".into(),
            destination_namespace: "other".into(),
            outcome: labels.outcome,
        };
        let (labels, _) = self.series.admit(labels, other);
        self.counters.get_or_create(&labels).inc();
    }
}
