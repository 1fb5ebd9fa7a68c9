//! What becomes of kubelet's probes, and of what else the host opens to pods of this node.

use warren_core::world::Pod;
use warren_ebpf_abi::ProbeRefusal;
use warren_mesh::telemetry::{Metrics, ProbeCounter};

use super::board::UnprobedPod;
use super::keeper::Keeper;

/// Counts them.
pub(crate) struct Probes(ProbeCounter);

impl Probes {
    /// Registers the counters.
    pub(crate) fn register(metrics: &Metrics) -> Self {
        Self(ProbeCounter::register(metrics))
    }

    /// A probe was let in.
    pub(crate) fn passed(&self, pod: &Pod) {
        self.0.count(&pod.workload.name, &pod.namespace, "passed");
    }

    /// A connection of the host is none.
    pub(crate) fn refused(&self, pod: &Pod, why: ProbeRefusal) {
        self.0.count(&pod.workload.name, &pod.namespace, why.as_str());
    }
}

/// Why a connection of the host was not let in as a probe, for the record.
pub(crate) fn words(why: ProbeRefusal) -> &'static str {
    match why {
        ProbeRefusal::PodProcess => "no probe: a process in a pod's cgroup opened it",
        ProbeRefusal::PodCgroupsUnknown => "no probe: it is not known which cgroups are pods'",
        ProbeRefusal::PortNotDeclared => "no probe: the pod's spec names the port in no probe and no lifecycle hook",
        ProbeRefusal::LinkNotWatched => "no probe: nothing on the pod's link saw the host send it",
        ProbeRefusal::Used => "no probe: that connection was accepted already",
        ProbeRefusal::NotRemembered => "no probe: too many connections of the host to pods are open",
    }
}

/// The pods that kubelet would probe in vain, and why.
pub(crate) fn unprobed(keeper: &Keeper) -> Vec<UnprobedPod> {
    let unknown = keeper.capture.pod_cgroups().err().map(ToString::to_string);
    let why = |local: &crate::shared::LocalPod| match &unknown {
        Some(reason) => Some((ProbeRefusal::PodCgroupsUnknown, reason.clone())),
        None if !keeper.capture.is_wired(&local.uid) => {
            Some((ProbeRefusal::LinkNotWatched, "its link is not watched; the agent's log says why".to_owned()))
        }
        None => None,
    };
    keeper
        .served()
        .filter(|local| keeper.pod(&local.uid).is_some_and(|pod| !pod.probed.is_empty()))
        .filter_map(|local| why(local).map(|(why, reason)| UnprobedPod { uid: local.uid.clone(), why, reason }))
        .collect()
}
