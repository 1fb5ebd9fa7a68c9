//! Which pods the node must take in, change or let go: the world's wish
//! against what is enrolled, as commands for the capture layer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::identity::PodUid;
use crate::policy::InboundPlan;
use crate::world::Pod;

/// A pod that the world wants enrolled on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Cookie of the namespace found at that path just now; `None` when there
    /// is none.
    pub cookie: Option<u64>,
    /// The kernel's verdicts for plaintext to it.
    pub plan: InboundPlan,
}

/// A pod that is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualPod {
    /// Its UID.
    pub uid: PodUid,
    /// Path that its namespace was opened from.
    pub netns: PathBuf,
    /// Cookie of that namespace; never used twice by the kernel.
    pub cookie: u64,
    /// Addresses it was enrolled with.
    pub ips: Vec<IpAddr>,
    /// Verdicts in force.
    pub plan: InboundPlan,
}

/// One step towards the world's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolCommand {
    /// Take the pod in.
    Enrol(DesiredPod),
    /// The pod stays; its addresses or its verdicts changed.
    Update(DesiredPod),
    /// Let the pod go.
    Withdraw(PodUid),
}

/// The commands that lead from `actual` to `desired`: withdrawals first, so
/// that a namespace path or an address is free before its next owner comes.
///
/// A pod is the same only if UID, path *and* cookie are: another namespace at
/// the same path is another pod. A desired pod without a namespace is still
/// commanded to be enrolled, so that one place reports why it cannot be.
pub fn plan(desired: &[DesiredPod], actual: &[ActualPod]) -> Vec<EnrolCommand> {
    let wanted: BTreeMap<&PodUid, &DesiredPod> = desired.iter().map(|d| (&d.pod.uid, d)).collect();
    let (kept, gone): (Vec<_>, Vec<_>) =
        actual.iter().partition(|a| wanted.get(&a.uid).is_some_and(|d| is_same(d, &a.netns, a.cookie)));
    let kept: BTreeMap<&PodUid, &ActualPod> = kept.into_iter().map(|a| (&a.uid, a)).collect();

    let gone: BTreeSet<&PodUid> = gone.into_iter().map(|a| &a.uid).collect();
    let withdrawn = gone.into_iter().cloned().map(EnrolCommand::Withdraw);
    let rest = wanted.values().filter_map(|want| match kept.get(&want.pod.uid) {
        None => Some(EnrolCommand::Enrol((*want).clone())),
        Some(have) if have.ips != want.pod.ips || have.plan != want.plan => Some(EnrolCommand::Update((*want).clone())),
        Some(_) => None,
    });
    withdrawn.chain(rest).collect()
}

fn is_same(desired: &DesiredPod, netns: &Path, cookie: u64) -> bool {
    desired.netns == netns && desired.cookie == Some(cookie)
}
