//! The pod keeper: makes the pods that are captured and served be the pods that the world wants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use warren_core::audit::{EnrolmentAction, EnrolmentEvent, EnrolmentKind};
use warren_core::enrolment::mode::{Decision, LeaveReason};
use warren_core::enrolment::{self, ActualPod, DesiredPod, EnrolCommand};
use warren_core::identity::PodUid;
use warren_core::world::{Pod, World};
use warren_mesh::identity::{PodRef, SvidSource};
use warren_mesh::live::CancelReason;
use warren_mesh::telemetry::MembershipLog;

use super::board::{PodEntry, PodState};
use super::flows::KernelFlows;
use super::observed::Observed;
use super::places::Places;
use super::severed::{owes, sever};
use crate::capture::{EnrolledPod, NodeCapture, PodSpec};
use crate::cni::Taken;
use crate::pod_netns::{Netns, PodNetns};
use crate::shared::{LocalPod, Shared};
use crate::status::PodError;
use crate::sys::netns::NetNs;
use crate::sys::sock_diag::TcpConnection;
use crate::worker::{Worker, WorkerCommand};

/// First pause before a failed enrolment is tried again; it doubles up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const RETRY_MOST: Duration = Duration::from_secs(30);
/// How soon a namespace is looked for again that nobody found.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A pod that is captured and served.
struct Enrolled {
    pod: Arc<Pod>,
    local: Arc<LocalPod>,
    desired: DesiredPod,
    leaving: bool,
}

/// A pod that could not be enrolled.
struct Failed {
    pod: Arc<Pod>,
    error: PodError,
    pause: Duration,
    again: Instant,
}

/// Keeps pods, kernel objects, identities and workers in step.
pub(crate) struct Keeper {
    node: String,
    shared: Arc<Shared>,
    pub(crate) capture: NodeCapture,
    source: Arc<dyn SvidSource>,
    pub(crate) workers: Vec<Worker>,
    enrolled: BTreeMap<PodUid, Enrolled>,
    failed: BTreeMap<PodUid, Failed>,
    finder: Box<dyn PodNetns>,
    /// Pods to be enrolled whose namespaces nobody has found yet, and why.
    unknown: BTreeMap<PodUid, (Arc<Pod>, String)>,
    /// When they are looked for again.
    look_again: Option<Instant>,
    /// Where the runtime has put pods.
    pub(crate) places: Places,
    observed: Observed,
    membership: MembershipLog,
}

impl Keeper {
    /// A keeper of no pods yet.
    pub(crate) fn new(
        node: String,
        shared: Arc<Shared>,
        capture: NodeCapture,
        source: Arc<dyn SvidSource>,
        workers: Vec<Worker>,
        finder: Box<dyn PodNetns>,
        places: Places,
    ) -> Self {
        let (enrolled, failed, unknown, observed) = Default::default();
        Self {
            membership: MembershipLog::new(shared.telemetry.clone()),
            node,
            shared,
            capture,
            source,
            workers,
            enrolled,
            failed,
            finder,
            unknown,
            look_again: None,
            places,
            observed,
        }
    }

    /// Enrols, updates and withdraws until the pods are as the world in force wants them. Called after every change of
    /// the world and from time to time, because a namespace can be replaced behind the same path.
    pub(crate) fn reconcile(&mut self, flows: &mut KernelFlows) {
        let world = self.shared.world.load_full();
        self.places.prune(&world);
        let desired = self.desired(&world);
        let actual: Vec<ActualPod> = self.enrolled.values().filter(|one| !one.leaving).map(Enrolled::actual).collect();
        self.failed.retain(|uid, _| desired.iter().any(|want| want.pod.uid == *uid));
        for command in enrolment::plan(&desired, &actual) {
            match command {
                EnrolCommand::Enrol(want) => self.enrol(want, flows),
                EnrolCommand::Update(want) => self.update(want),
                EnrolCommand::Withdraw(uid) => self.withdraw(&uid, &world, flows),
            }
        }
        for want in &desired {
            self.rename(&want.pod);
        }
        self.finish_leaving(flows);
        self.observed.follow(&world, &self.node, &*self.source, |uid| self.enrolled.contains_key(uid));
        // What an earlier agent left of a pod that is not found yet must stay.
        let unknown = &self.unknown;
        let wanted = |uid: &PodUid| unknown.contains_key(uid) || desired.iter().any(|want| want.pod.uid == *uid);
        if let Err(error) = self.capture.settle(wanted) {
            tracing::error!(%error, "what an earlier agent left could not be let go completely");
        }
    }

    /// Lets all pods leave the mesh, because no agent follows this one.
    pub(crate) fn retire(&mut self, flows: &mut KernelFlows) {
        let world = self.shared.world.load_full();
        for uid in self.enrolled.keys().cloned().collect::<Vec<_>>() {
            self.withdraw(&uid, &world, flows);
        }
    }

    /// Ends everything of all pods.
    pub(crate) fn forget_all(&mut self, flows: &mut KernelFlows) {
        for uid in self.enrolled.keys().cloned().collect::<Vec<_>>() {
            self.forget(&uid, flows);
        }
    }

    /// When a failed enrolment is to be tried again, if there is one.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.again).chain(self.look_again).min()
    }

    /// The pods for the board.
    pub(crate) fn entries(&self) -> Vec<PodEntry> {
        let enrolled = self.enrolled.values().map(|one| PodEntry {
            pod: one.pod.clone(),
            local: Some(one.local.clone()),
            identity: None,
            state: if one.leaving { PodState::Leaving } else { PodState::Enrolled },
        });
        let failed = self.failed.values().map(|one| PodEntry {
            pod: one.pod.clone(),
            local: None,
            identity: None,
            state: PodState::Failed(one.error.clone()),
        });
        // Why a pod is refused says more than that it is not there.
        let missing = self.unknown.values().filter(|(pod, _)| !matches!(pod.decision, Decision::Refuse(_)));
        let unknown = missing.map(|(pod, reason)| PodEntry {
            pod: pod.clone(),
            local: None,
            identity: None,
            state: PodState::Failed(PodError { step: "namespace".to_owned(), reason: reason.clone() }),
        });
        let world = self.shared.world.load();
        let refused = world.pods_on(&self.node).filter_map(|pod| match pod.decision {
            Decision::Refuse(reason)
                if !self.enrolled.contains_key(&pod.uid) && !self.failed.contains_key(&pod.uid) =>
            {
                Some(PodEntry { pod: pod.clone(), local: None, identity: None, state: PodState::Refused(reason) })
            }
            _ => None,
        });
        enrolled.chain(failed).chain(unknown).chain(self.observed.entries()).chain(refused).collect()
    }

    /// Lets the next round try a pod that failed, however long it was to be left alone.
    pub(crate) fn try_now(&mut self, uid: &PodUid) {
        if let Some(failed) = self.failed.get_mut(uid) {
            (failed.again, failed.pause) = (Instant::now(), RETRY_FIRST);
        }
    }

    /// A pod that is captured and served, or why it is not.
    pub(crate) fn taken(&self, uid: &PodUid) -> Result<Taken, String> {
        match (self.enrolled.get(uid).filter(|one| !one.leaving), self.failed.get(uid)) {
            (Some(one), _) => Ok(Taken { identity: (*one.local.identity()).clone() }),
            (None, Some(failed)) => Err(format!("{}: {}", failed.error.step, failed.error.reason)),
            (None, None) if self.unknown.contains_key(uid) => Err("its network namespace is not there".to_owned()),
            (None, None) => Err("the world does not want it captured on this node: see its nodeName".to_owned()),
        }
    }

    /// The pod with this namespace cookie.
    pub(crate) fn by_cookie(&self, cookie: u64) -> Option<(&Arc<Pod>, &Arc<LocalPod>)> {
        let one = self.enrolled.values().find(|one| one.local.netns.cookie() == cookie)?;
        Some((&one.pod, &one.local))
    }

    /// The object of a pod that is in.
    pub(crate) fn pod(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.enrolled.get(uid).map(|one| &one.pod)
    }

    /// The pods that are served and captured.
    pub(crate) fn served(&self) -> impl Iterator<Item = &Arc<LocalPod>> {
        self.enrolled.values().filter(|one| !one.leaving).map(|one| &one.local)
    }

    /// The pods that the world wants enrolled, as far as their namespaces are known. One that is enrolled stays wanted
    /// where it is, even if nobody finds it just now: only the world lets a pod go.
    fn desired(&mut self, world: &World) -> Vec<DesiredPod> {
        let pods: Vec<Arc<Pod>> = world.local_pods(&self.node).cloned().collect();
        let found = self.finder.find(&pods);
        self.unknown.clear();
        let mut desired = Vec::new();
        for (pod, netns) in pods.into_iter().zip(found) {
            let plan = world.policy().inbound_plan(&pod);
            // What the runtime says counts for more than what is found.
            let placed = self.places.at(&pod.uid).filter(|place| place.netns.exists());
            match placed.map_or(netns, |place| Netns::At(place.netns.clone())) {
                Netns::At(netns) => {
                    let cookie = NetNs::open(&netns).ok().map(|netns| netns.cookie());
                    desired.push(DesiredPod { pod, netns, cookie, plan });
                }
                Netns::NotOurs => {}
                Netns::Unknown(reason) => match self.enrolled.get(&pod.uid).filter(|one| !one.leaving) {
                    Some(_) if self.places.has_departed(&pod.uid) => {}
                    Some(one) => {
                        let (netns, cookie) = (one.desired.netns.clone(), Some(one.local.netns.cookie()));
                        desired.push(DesiredPod { pod, netns, cookie, plan });
                    }
                    None => drop(self.unknown.insert(pod.uid.clone(), (pod, reason))),
                },
            }
        }
        self.look_again = (!self.unknown.is_empty()).then(|| Instant::now() + LOOK_AGAIN);
        desired
    }

    fn enrol(&mut self, want: DesiredPod, flows: &mut KernelFlows) {
        let uid = want.pod.uid.clone();
        // Who is out stays out, and who is in stays in, until somebody says which.
        let was_in = want.cookie.and_then(|cookie| self.capture.recorded(cookie)).is_some_and(|was| was == uid);
        if matches!(want.pod.decision, Decision::Refuse(_)) && !was_in {
            return;
        }
        // A pod that was leaving and is wanted again starts anew: its old rules and listeners go first.
        if self.enrolled.contains_key(&uid) {
            self.forget(&uid, flows);
        }
        let pause = match self.failed.get(&uid) {
            Some(failed) if failed.again > Instant::now() => return,
            Some(failed) => (failed.pause * 2).min(RETRY_MOST),
            None => RETRY_FIRST,
        };
        let spec = PodSpec {
            uid: uid.clone(),
            netns: want.netns.clone(),
            ips: want.pod.ips.to_vec(),
            plan: want.plan.clone(),
        };
        let started = Instant::now();
        match self.capture.enrol(&spec) {
            Ok(enrolled) => {
                let (took, adopted) = (started.elapsed(), enrolled.adopted);
                tracing::info!(pod = %name(&want.pod), ?took, adopted, "pod enrolled");
                self.failed.remove(&uid);
                self.serve(want, enrolled, flows);
            }
            Err(failure) => {
                let error =
                    PodError { step: failure.step.as_str().to_owned(), reason: crate::exit::chain(&failure.source) };
                let (pod, step, reason) = (name(&want.pod), &error.step, &error.reason);
                if failure.is_transient() {
                    tracing::info!(pod, step, reason, "pod not enrolled yet");
                } else {
                    tracing::error!(pod, step, reason, "pod not enrolled");
                }
                self.failed.insert(uid, Failed { pod: want.pod, error, pause, again: Instant::now() + pause });
            }
        }
    }

    fn serve(&mut self, want: DesiredPod, enrolled: EnrolledPod, flows: &mut KernelFlows) {
        let uid = want.pod.uid.clone();
        let identity = self.source.add_pod(&pod_ref(&want.pod), &want.pod.identity);
        let local = Arc::new(LocalPod::new(uid.clone(), enrolled.netns, identity, &self.shared.limits));
        self.shared.budget.add_pod(&uid);
        for (worker, listeners) in self.workers.iter().zip(enrolled.listeners) {
            worker.send(WorkerCommand::Serve { pod: local.clone(), listeners });
        }
        self.adopt(&want.pod, &local, flows);
        self.enrolled.insert(uid, Enrolled { pod: want.pod.clone(), local, desired: want, leaving: false });
    }

    /// Finds the connections of all pods that nobody told of, because the kernel's events were lost.
    pub(crate) fn find_untold(&self, flows: &mut KernelFlows) {
        for one in self.enrolled.values() {
            self.adopt(&one.pod, &one.local, flows);
        }
    }

    fn adopt(&self, pod: &Arc<Pod>, local: &Arc<LocalPod>, flows: &mut KernelFlows) {
        let world = self.shared.world.load();
        let near = |connection: &TcpConnection| {
            let end = self.capture.near_end(connection.local, connection.remote, connection.cookie)?;
            let peer = self.capture.recorded(end.peer).and_then(|uid| world.pod(&uid).cloned());
            Some((end, peer))
        };
        let probe = |connection: &TcpConnection| self.capture.is_probe(&pod.uid, connection.local, connection.remote);
        flows.adopt(pod, local, near, probe);
    }

    /// Follows an object whose content changed. Another ServiceAccount means another identity: what was opened under the
    /// old one ends.
    fn rename(&mut self, pod: &Arc<Pod>) {
        let Some(one) = self.enrolled.get_mut(&pod.uid) else { return };
        one.pod = pod.clone();
        if *one.local.identity().id() != pod.identity {
            one.local.set_identity(self.source.add_pod(&pod_ref(pod), &pod.identity));
            self.cancel_connections(&pod.uid, &CancelReason::IdentityChanged);
            tracing::info!(pod = %name(pod), identity = %pod.identity, "pod has another identity");
        }
    }

    fn cancel_connections(&self, uid: &PodUid, reason: &CancelReason) {
        self.shared.live.for_each(|id, connection| {
            if connection.pod == *uid {
                self.shared.live.cancel(id, reason.clone());
            }
        });
    }

    fn update(&mut self, want: DesiredPod) {
        let Some(one) = self.enrolled.get_mut(&want.pod.uid) else { return };
        match self.capture.update(&want.pod.uid, &want.pod.ips, &want.plan) {
            Ok(()) => {
                one.pod = want.pod.clone();
                one.desired = want;
            }
            // What is in force stays; the next round tries again.
            Err(error) => tracing::error!(pod = %name(&want.pod), %error, "pod not updated"),
        }
    }

    /// Lets a pod go: gently if it merely left the mesh, at once if it is gone.
    fn withdraw(&mut self, uid: &PodUid, world: &World, flows: &mut KernelFlows) {
        let Some(one) = self.enrolled.get_mut(uid) else { return };
        let at = |pod: &Arc<Pod>| {
            let path = one.local.netns.path();
            let placed = self.places.at(uid).is_some_and(|place| place.netns == path);
            placed || self.finder.is_still_at(pod, path)
        };
        let still_there = !self.places.has_departed(uid)
            && world.pod(uid).is_some_and(at)
            && NetNs::open(one.local.netns.path()).is_ok_and(|now| now.cookie() == one.local.netns.cookie());
        if !still_there {
            return self.forget(uid, flows);
        }
        match self.capture.withdraw(uid) {
            Ok(()) => {
                tracing::info!(pod = %name(&one.pod), "pod leaves the mesh; its captured connections go on");
                one.leaving = true;
                let event = left(world.pod(uid).unwrap_or(&one.pod), &self.node);
                self.membership.left(&event);
            }
            Err(error) => {
                tracing::error!(pod = %name(&one.pod), %error, "pod cannot leave gently");
                self.forget(uid, flows);
            }
        }
    }

    /// Ends leaving pods whose connections are over, with all bytes delivered.
    fn finish_leaving(&mut self, flows: &mut KernelFlows) {
        let busy = |uid: &PodUid| self.shared.live.snapshot().iter().any(|(_, one)| one.pod == *uid);
        let leaving = self.enrolled.iter().filter(|(_, one)| one.leaving);
        let done: Vec<PodUid> = leaving
            .filter(|(uid, one)| !busy(uid) && !owes(&one.pod, &one.local, self.shared.mark))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in done {
            self.forget(&uid, flows);
        }
    }

    /// Ends everything of a pod: connections, listeners, keys, kernel objects, descriptors.
    fn forget(&mut self, uid: &PodUid, flows: &mut KernelFlows) {
        let Some(one) = self.enrolled.remove(uid) else { return };
        self.cancel_connections(uid, &CancelReason::PodGone);
        for worker in &self.workers {
            worker.send(WorkerCommand::Stop(uid.clone()));
        }
        flows.forget(uid);
        sever(&one.pod, &one.local, self.shared.mark);
        self.source.remove_pod(uid);
        self.shared.budget.remove_pod(uid);
        match self.capture.forget(uid) {
            Ok(()) => tracing::info!(pod = %name(&one.pod), "pod withdrawn"),
            Err(error) => tracing::error!(pod = %name(&one.pod), %error, "pod not fully withdrawn"),
        }
    }
}

impl Enrolled {
    fn actual(&self) -> ActualPod {
        ActualPod {
            uid: self.pod.uid.clone(),
            netns: self.desired.netns.clone(),
            cookie: self.local.netns.cookie(),
            ips: self.desired.pod.ips.to_vec(),
            plan: self.desired.plan.clone(),
        }
    }
}

/// Says that a pod leaves the mesh, and who wants it.
fn left(pod: &Pod, node: &str) -> EnrolmentEvent {
    let reason = match pod.decision {
        Decision::Leave(LeaveReason::NotAsked) => {
            "no label of the pod or its namespace asks for it any more".to_owned()
        }
        Decision::Leave(LeaveReason::OptedOut) => "a label says none".to_owned(),
        Decision::Leave(LeaveReason::FixedNamespace) => "its namespace is never enrolled".to_owned(),
        Decision::Observe => "it is observed only".to_owned(),
        Decision::Refuse(reason) => reason.to_string(),
        Decision::Enrol => "this node does not look after it any more".to_owned(),
    };
    EnrolmentEvent {
        event: EnrolmentKind::Enrolment,
        timestamp: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        action: EnrolmentAction::Left,
        namespace: pod.namespace.to_string(),
        pod: pod.name.to_string(),
        uid: pod.uid.to_string(),
        identity: pod.identity.clone(),
        reason,
        node: node.to_owned(),
    }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// A pod, as an issuer of SVIDs wants it named.
pub(super) fn pod_ref(pod: &Pod) -> PodRef {
    PodRef { uid: pod.uid.clone(), namespace: pod.namespace.to_string(), name: pod.name.to_string() }
}
