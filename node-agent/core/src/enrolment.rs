//! Which pods the node must take in, change or let go: the world's wish
//! against what is enrolled, as commands for the capture layer.

pub mod mode;

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
        Some(have) if *have.ips != *want.pod.ips || have.plan != want.plan => {
            Some(EnrolCommand::Update((*want).clone()))
        }
        Some(_) => None,
    });
    withdrawn.chain(rest).collect()
}

fn is_same(desired: &DesiredPod, netns: &Path, cookie: u64) -> bool {
    desired.netns == netns && desired.cookie == Some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PlainVerdict;
    use crate::world::tests::{pod, world};

    fn wish(name: &str, netns: &str, cookie: Option<u64>) -> DesiredPod {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: 10.0.0.1}}\n");
        let pod = Arc::new(pod(&world(&text), "default", name).clone());
        let plan = InboundPlan { default: PlainVerdict::Pass, ports: BTreeMap::new(), probed: Arc::default() };
        DesiredPod { pod, netns: netns.into(), cookie, plan }
    }

    fn as_enrolled(wish: &DesiredPod) -> ActualPod {
        ActualPod {
            uid: wish.pod.uid.clone(),
            netns: wish.netns.clone(),
            cookie: wish.cookie.unwrap(),
            ips: wish.pod.ips.to_vec(),
            plan: wish.plan.clone(),
        }
    }

    #[test]
    fn what_is_as_wished_is_left_alone() {
        let wish = wish("a", "/a", Some(1));
        assert_eq!(plan(std::slice::from_ref(&wish), &[as_enrolled(&wish)]), []);
    }

    #[test]
    fn comes_and_goes() {
        let (a, b) = (wish("a", "/a", Some(1)), wish("b", "/b", Some(2)));
        let commands = plan(std::slice::from_ref(&b), &[as_enrolled(&a)]);
        assert_eq!(commands, [EnrolCommand::Withdraw(a.pod.uid.clone()), EnrolCommand::Enrol(b)]);
    }

    #[test]
    fn another_cookie_or_path_is_another_pod() {
        let old = wish("a", "/a", Some(1));
        for new in [wish("a", "/a", Some(2)), wish("a", "/b", Some(1)), wish("a", "/a", None)] {
            let commands = plan(std::slice::from_ref(&new), &[as_enrolled(&old)]);
            assert_eq!(commands, [EnrolCommand::Withdraw(old.pod.uid.clone()), EnrolCommand::Enrol(new)]);
        }
    }

    #[test]
    fn a_path_changes_hands_after_its_owner_has_gone() {
        let (old, new) = (wish("z", "/a", Some(1)), wish("a", "/a", Some(2)));
        let commands = plan(std::slice::from_ref(&new), &[as_enrolled(&old)]);
        assert_eq!(commands, [EnrolCommand::Withdraw(old.pod.uid.clone()), EnrolCommand::Enrol(new)]);
    }

    #[test]
    fn new_addresses_or_verdicts_are_an_update() {
        let wish = wish("a", "/a", Some(1));
        let mut moved = as_enrolled(&wish);
        moved.ips.clear();
        let mut stricter = as_enrolled(&wish);
        stricter.plan.default = PlainVerdict::Refuse;
        for actual in [moved, stricter] {
            assert_eq!(plan(std::slice::from_ref(&wish), &[actual]), [EnrolCommand::Update(wish.clone())]);
        }
    }

    #[test]
    fn a_pod_without_a_namespace_is_tried_so_that_the_reason_is_reported() {
        let wish = wish("a", "/a", None);
        assert_eq!(plan(std::slice::from_ref(&wish), &[]), [EnrolCommand::Enrol(wish.clone())]);
    }
}
