//! The agent's gauges about itself, set when metrics are read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::RuntimeMetrics;
use warren_core::enrolment::mode::RefuseReason;
use warren_ebpf_abi::ProbeRefusal;
use warren_mesh::telemetry::{FloatGauge, KindGauge, Metrics};

use super::board::{Notes, PodState};
use crate::budget::Budget;
use crate::capture::{CounterReader, Counters};
use crate::world_kube::{Health, Standing};

/// Something that the kernel side counts: name, help, and where it stands.
type KernelCount = (&'static str, &'static str, fn(&Counters) -> u64);

/// All of them.
const KERNEL: [KernelCount; 17] = [
    ("warren_kernel_captured", "Connections captured", |counters| counters.captured),
    ("warren_kernel_passed", "Connections of enrolled pods left alone", |counters| counters.passed),
    ("warren_kernel_undone", "Sockets released after an earlier capture", |counters| counters.undone),
    ("warren_kernel_refused_away", "Connections refused because the agent was away", |counters| counters.refused_away),
    ("warren_kernel_refused_error", "Connections refused because capture failed", |counters| counters.refused_error),
    ("warren_kernel_option_refused", "Attempts to re-mark or re-bind captured sockets", |counters| {
        counters.option_refused
    }),
    ("warren_kernel_syn_held", "SYNs that were made to wait for the agent", |counters| counters.syn_held),
    ("warren_kernel_plaintext_refused", "Plaintext SYNs refused by verdict", |counters| counters.plaintext_refused),
    ("warren_kernel_no_listener", "SYNs refused because the agent had no listener", |counters| counters.no_listener),
    ("warren_kernel_events_lost", "Events lost because nobody read them", |counters| counters.events_lost),
    ("warren_kernel_admitted", "Connections that took the kernel path", |counters| counters.admitted),
    ("warren_kernel_diverted", "Connections led into the agent instead of the kernel path", |counters| {
        counters.diverted
    }),
    ("warren_kernel_wire_dropped", "Packets dropped on pods' links", |counters| counters.wire_dropped),
    ("warren_kernel_host_forged", "Packets dropped because they claimed to be the host's", |counters| {
        counters.host_forged
    }),
    ("warren_kernel_splicing", "Whether bytes skip TCP within the node (1) or not (0)", |counters| counters.splicing),
    ("warren_kernel_spliced_bytes", "Bytes that skipped TCP", |counters| counters.spliced_bytes),
    ("warren_kernel_spliced_to_tcp", "Messages that could have skipped TCP and did not", |counters| {
        counters.spliced_to_tcp
    }),
];

/// Gauges of what the kernel side has counted since its maps were made.
#[derive(Clone)]
struct KernelGauges {
    counters: CounterReader,
    gauges: Vec<FloatGauge>,
}

impl KernelGauges {
    fn register(metrics: &Metrics, counters: CounterReader) -> Self {
        Self { counters, gauges: KERNEL.iter().map(|(name, help, _)| metrics.gauge(name, help)).collect() }
    }

    fn refresh(&self) {
        match self.counters.read() {
            Ok(counters) => {
                for (gauge, (_, _, value)) in self.gauges.iter().zip(KERNEL) {
                    gauge.set(value(&counters) as f64);
                }
            }
            Err(error) => tracing::error!(%error, "the kernel's counters cannot be read"),
        }
    }
}

/// Gauges of the watches of a cluster, by kind.
#[derive(Clone)]
struct WatchGauges {
    health: Health,
    age: KindGauge,
    synced: KindGauge,
    missing: KindGauge,
    watching: KindGauge,
}

impl WatchGauges {
    fn register(metrics: &Metrics, health: Health) -> Self {
        let gauge = |name, help| metrics.gauge_by_kind(name, help);
        Self {
            health,
            age: gauge("warren_world_source_age_seconds", "Time since the API server last said anything of a kind"),
            synced: gauge("warren_world_source_synced", "Whether every object of a kind has been told of once"),
            missing: gauge(
                "warren_world_source_missing",
                "Whether the cluster lacks a kind, so that no new object of it is enforced",
            ),
            watching: gauge("warren_world_source_watching", "Whether changes of a kind are being told of now"),
        }
    }

    fn refresh(&self) {
        for watch in self.health.all() {
            let kind = watch.watched.kind.as_str();
            let is = |yes: bool| f64::from(u8::from(yes));
            self.age.set(kind, watch.age().as_secs_f64());
            self.synced.set(kind, is(watch.synced));
            self.missing.set(kind, is(watch.standing == Standing::Missing));
            self.watching.set(kind, is(watch.standing == Standing::Watching));
        }
    }
}

/// The reason of pods that are to be taken in and could not be.
const NOT_ENROLLED: &str = "not_enrolled";

/// What makes kubelet probe a pod in vain, whatever it asks.
const UNPROBED: [ProbeRefusal; 2] = [ProbeRefusal::PodCgroupsUnknown, ProbeRefusal::LinkNotWatched];

fn uncovered_reasons() -> [&'static str; RefuseReason::ALL.len() + 1] {
    let refused = RefuseReason::ALL.map(RefuseReason::as_str);
    std::array::from_fn(|index| refused.get(index).copied().unwrap_or(NOT_ENROLLED))
}

fn uncovered(state: &PodState) -> Option<&'static str> {
    match state {
        PodState::Failed(_) => Some(NOT_ENROLLED),
        PodState::Refused(reason) => Some(reason.as_str()),
        PodState::Enrolled | PodState::Leaving | PodState::Observed => None,
    }
}

/// How busy the workers are, measured from one reading to the next.
struct Load {
    workers: Vec<RuntimeMetrics>,
    read: Instant,
    busy: Vec<Duration>,
}

impl Load {
    fn new(workers: Vec<RuntimeMetrics>) -> Self {
        let busy = workers.iter().map(busy_time).collect();
        Self { workers, read: Instant::now(), busy }
    }

    /// Percent of the time since the last reading that the busiest worker worked.
    fn busiest(&mut self) -> f64 {
        let elapsed = self.read.elapsed().as_secs_f64();
        let busy: Vec<Duration> = self.workers.iter().map(busy_time).collect();
        let worked = busy.iter().zip(&self.busy).map(|(now, before)| now.saturating_sub(*before).as_secs_f64());
        let most = worked.fold(0.0, f64::max);
        self.read = Instant::now();
        self.busy = busy;
        if elapsed > 0.0 { (100.0 * most / elapsed).min(100.0) } else { 0.0 }
    }
}

/// A worker's runtime has one thread.
fn busy_time(worker: &RuntimeMetrics) -> Duration {
    worker.worker_total_busy_duration(0)
}

/// Handles of the gauges, registered once.
#[derive(Clone)]
pub(crate) struct Gauges {
    uncovered: Vec<FloatGauge>,
    unprobed: Vec<FloatGauge>,
    enrolled: FloatGauge,
    world_age: FloatGauge,
    rejected: FloatGauge,
    descriptors: FloatGauge,
    descriptor_limit: FloatGauge,
    busy: FloatGauge,
    load: Arc<Mutex<Load>>,
    kernel: KernelGauges,
    watches: Option<WatchGauges>,
}

impl Gauges {
    /// Registers the gauges.
    pub(crate) fn register(
        metrics: &Metrics,
        workers: Vec<RuntimeMetrics>,
        counters: CounterReader,
        health: Option<Health>,
    ) -> Self {
        Self {
            watches: health.map(|health| WatchGauges::register(metrics, health)),
            uncovered: metrics.gauge_by(
                "warren_uncovered_pods",
                "Local pods that are wanted in the mesh and not captured, by reason",
                "reason",
                &uncovered_reasons(),
            ),
            unprobed: metrics.gauge_by(
                "warren_unprobed_pods",
                "Enrolled pods whose probes by kubelet are refused, by reason",
                "reason",
                &UNPROBED.map(ProbeRefusal::as_str),
            ),
            enrolled: metrics.gauge("warren_enrolled_pods", "Local pods that are captured and served"),
            world_age: metrics.gauge("warren_world_age_seconds", "Time since the world in force was loaded"),
            rejected: metrics.gauge("warren_rejected_documents", "Documents of the world that were refused"),
            descriptors: metrics.gauge("warren_connection_descriptors", "File descriptors in use by connections"),
            descriptor_limit: metrics
                .gauge("warren_connection_descriptors_limit", "File descriptors that connections may use"),
            busy: metrics
                .gauge("warren_worker_busy_percent", "Time since the last reading that the busiest worker worked"),
            load: Arc::new(Mutex::new(Load::new(workers))),
            kernel: KernelGauges::register(metrics, counters),
        }
    }

    /// Sets every gauge to what is true now.
    pub(crate) fn refresh(&self, notes: &Notes, budget: &Budget) {
        let count = |wanted: fn(&PodState) -> bool| notes.pods.iter().filter(|entry| wanted(&entry.state)).count();
        for (gauge, reason) in self.uncovered.iter().zip(uncovered_reasons()) {
            let pods = notes.pods.iter().filter(|entry| uncovered(&entry.state) == Some(reason));
            gauge.set(pods.count() as f64);
        }
        for (gauge, reason) in self.unprobed.iter().zip(UNPROBED) {
            gauge.set(notes.unprobed.iter().filter(|one| one.why == reason).count() as f64);
        }
        self.enrolled.set(count(|state| *state == PodState::Enrolled) as f64);
        self.world_age.set(notes.world_loaded.map_or(0.0, |loaded| loaded.elapsed().as_secs_f64()));
        self.rejected.set(notes.rejections.len() as f64);
        self.descriptors.set(budget.used() as f64);
        self.descriptor_limit.set(budget.total() as f64);
        self.busy.set(self.load.lock().unwrap_or_else(PoisonError::into_inner).busiest());
        self.kernel.refresh();
        if let Some(watches) = &self.watches {
            watches.refresh();
        }
    }
}
