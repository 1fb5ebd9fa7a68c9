//! Pods in mode `observe`: they get an identity, are shown with it, and are otherwise left alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_core::enrolment::mode::Decision;
use warren_core::identity::PodUid;
use warren_core::world::{Pod, World};
use warren_mesh::identity::{PodIdentity, SvidSource};

use super::board::{PodEntry, PodState};
use super::keeper::pod_ref;

/// The observed pods of this node.
#[derive(Default)]
pub(super) struct Observed(BTreeMap<PodUid, (Arc<Pod>, PodIdentity)>);

impl Observed {
    /// Follows the world. A pod that `is_captured`, because it joins or has not quite left, is served elsewhere, and so
    /// is its identity.
    pub(super) fn follow(
        &mut self,
        world: &World,
        node: &str,
        source: &dyn SvidSource,
        is_captured: impl Fn(&PodUid) -> bool,
    ) {
        let is_wanted = |pod: &Pod| pod.decision == Decision::Observe && !is_captured(&pod.uid);
        self.0.retain(|uid, (pod, _)| {
            let stays = world.pod(uid).is_some_and(|now| is_wanted(now) && now.identity == pod.identity);
            if !stays && !is_captured(uid) {
                source.remove_pod(uid);
            }
            stays
        });
        for pod in world.pods_on(node).filter(|pod| is_wanted(pod)) {
            let (known, _) = self.0.entry(pod.uid.clone()).or_insert_with(|| {
                let (namespace, name, identity) = (&pod.namespace, &pod.name, &pod.identity);
                tracing::info!(%identity, "pod {namespace}/{name} is observed: it has an identity and is not captured");
                (pod.clone(), source.add_pod(&pod_ref(pod), &pod.identity))
            });
            known.clone_from(pod);
        }
    }

    /// The observed pods for the board.
    pub(super) fn entries(&self) -> impl Iterator<Item = PodEntry> {
        self.0.values().map(|(pod, identity)| PodEntry {
            pod: pod.clone(),
            local: None,
            identity: Some(identity.clone()),
            state: PodState::Observed,
        })
    }
}
