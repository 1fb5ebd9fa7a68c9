//! Counts connections to pods that ought to be reached in mutual TLS and that no agent serves.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use warren_core::world::{IncapableDestination, Pod};

use super::labels::Bounded;
use super::metrics::Metrics;

/// Label sets; beyond, names are dropped.
const SERIES: usize = 4096;

/// By caller, destination and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct Labels {
    source: String,
    destination: String,
    destination_namespace: String,
    destination_port: u16,
    destination_node: String,
    verdict: &'static str,
}

/// The counter.
#[derive(Debug)]
pub struct IncapableDestinations {
    counted: Family<Labels, Counter>,
    series: Bounded<Labels>,
}

impl IncapableDestinations {
    /// Registers it.
    pub fn register(metrics: &Metrics) -> Self {
        let counted = Family::default();
        let help = "Connections to pods that are meant to be in the mesh and whose node takes no tunnels, by caller, \
                    destination, port and what became of them";
        metrics.register("warren_incapable_destination", help, Family::clone(&counted));
        Self { counted, series: Bounded::new(SERIES) }
    }

    /// Counts one, as refused or passed in clear.
    pub fn seen(&self, source: &Pod, destination: &Pod, port: u16, fate: IncapableDestination) {
        let labels = Labels {
            source: format!("{}/{}", source.namespace, source.workload.name),
            destination: destination.workload.name.to_string(),
            destination_namespace: destination.namespace.to_string(),
            destination_port: port,
            destination_node: destination.node.to_string(),
            verdict: match fate {
                IncapableDestination::Refuse => "refused",
                IncapableDestination::Plain => "pass",
            },
        };
        let other = |labels: &Labels| Labels {
            source: "other".into(),
            destination: "other".into(),
            destination_namespace: "other".into(),
            destination_port: 0,
            destination_node: "other".into(),
            verdict: labels.verdict,
        };
        let (labels, _) = self.series.admit(labels, other);
        self.counted.get_or_create(&labels).inc();
    }
}
