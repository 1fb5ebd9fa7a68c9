//! Taking pods in and letting them go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use warren_core::identity::PodUid;
use warren_core::policy::InboundPlan;
use warren_ebpf_abi::{OwnKey, PodEntry, map};

use super::address::key;
use super::bpf::{BpfError, Raw};
use super::error::{AtStep, CaptureError, EnrolError, EnrolFailure, EnrolStep};
use super::listeners::{self, WorkerListeners};
use super::node::{NodeCapture, Pod};
use super::plumbing::Plumbing;
use super::pod::{PodObject, pass_all};
use super::self_test::SelfTest;
use super::state::Record;
use crate::sys::netlink::{Address, IpFamily, RouteSocket};
use crate::sys::netns::NetNs;
use crate::sys::sysctl;

/// A pod to be taken in.
#[derive(Debug, Clone)]
pub(crate) struct PodSpec {
    /// Its UID.
    pub(crate) uid: PodUid,
    /// Path of its network namespace.
    pub(crate) netns: PathBuf,
    /// The addresses the world gives it.
    pub(crate) ips: Vec<IpAddr>,
    /// Verdicts on plaintext from outside.
    pub(crate) plan: InboundPlan,
}

/// A pod that was taken in.
#[derive(Debug)]
pub(crate) struct EnrolledPod {
    /// Its network namespace; it lives as long as this is held.
    pub(crate) netns: Arc<NetNs>,
    /// The listeners of each worker.
    pub(crate) listeners: Vec<WorkerListeners>,
    /// Whether an earlier agent had it, so that connections may have been waiting.
    pub(crate) adopted: bool,
}

/// What was found in a pod's network namespace.
struct Found {
    own: BTreeSet<IpAddr>,
    families: Vec<IpFamily>,
}

impl NodeCapture {
    /// Takes a pod in: everything, proven by a connection through the new path, or nothing.
    ///
    /// A pod that an earlier agent had, in the same namespace, is taken over: capture goes on meanwhile, connections
    /// that waited for an agent reach the new listeners, and should a step fail, it stays captured: nothing leaves in
    /// clear, and another attempt may be made.
    pub(crate) fn enrol(&mut self, spec: &PodSpec) -> Result<EnrolledPod, EnrolError> {
        let netns = Arc::new(NetNs::open(&spec.netns).at(EnrolStep::OpenNetns)?);
        let cookie = netns.cookie();
        if self.pods.contains_key(&spec.uid) || self.pod_of(cookie).is_some() {
            return Err(EnrolFailure::Enrolled(spec.uid.to_string())).at(EnrolStep::OpenNetns);
        }
        let found = netns.enter(|| find(&spec.ips)).at(EnrolStep::Addresses)?.at(EnrolStep::Addresses)?;
        let earlier = self.state.pods().get(&cookie).cloned();
        // Written down and captured: pins may have been removed by hand.
        let captured = self.maps.pods.get(&cookie, 0).is_ok() || self.pins.has_pod_elsewhere(cookie);
        let adopted = earlier.is_some() && captured;
        let plumbing = self.write_down(spec, &netns, &found, earlier).at(EnrolStep::State)?;
        let result = self.build(spec, &netns, &found, &plumbing, adopted);
        match result {
            Ok((object, listeners)) => {
                let pod =
                    Pod { netns: netns.clone(), ips: spec.ips.clone(), plumbing, object, capturing: true, wire: None };
                self.pods.insert(spec.uid.clone(), pod);
                Ok(EnrolledPod { netns, listeners, adopted })
            }
            Err(error) => {
                if !adopted {
                    self.undo(&netns, &plumbing, &spec.uid);
                }
                Err(error)
            }
        }
    }

    /// Writes down what a cleanup has to undo, before anything is done.
    fn write_down(
        &mut self,
        spec: &PodSpec,
        netns: &NetNs,
        found: &Found,
        earlier: Option<Record>,
    ) -> Result<Plumbing, EnrolFailure> {
        let plan = || Plumbing::plan(self.config.mark, self.config.route_table, &found.families, &spec.ips);
        let mut plumbing = netns.enter(plan)??;
        if let Some(earlier) = earlier {
            plumbing.inherit(&earlier.plumbing);
            if !plumbing.same_rules(&earlier.plumbing) {
                // Another mark or table. Until the new rules stand, the binding to `lo` holds captured packets.
                netns.enter(|| earlier.plumbing.undo_routing(&RouteSocket::open()?))??;
            }
        }
        let record = Record { uid: spec.uid.to_string(), netns: spec.netns.clone(), plumbing: plumbing.clone() };
        self.state.insert(netns.cookie(), record)?;
        Ok(plumbing)
    }

    fn build(
        &mut self,
        spec: &PodSpec,
        netns: &NetNs,
        found: &Found,
        plumbing: &Plumbing,
        adopted: bool,
    ) -> Result<(PodObject, Vec<WorkerListeners>), EnrolError> {
        let cookie = netns.cookie();
        let workers = u32::try_from(self.config.workers).unwrap_or(u32::MAX);
        let exemption = self.exemption.clone();
        self.heartbeat().beat().at(EnrolStep::Register)?;
        let congestion = self.config.tunnel_congestion.as_deref();
        let opened = netns.enter(|| listeners::open(workers, &found.families, &exemption, congestion));
        let (listeners, placed) = opened.at(EnrolStep::Listeners)?.at(EnrolStep::Listeners)?;
        let mut object = PodObject::load(&mut self.loader, &self.pins, cookie, workers).at(EnrolStep::Load)?;
        // A pod that was captured all along keeps its verdicts; plaintext to a new one passes until it is in.
        let plan = if adopted { spec.plan.clone() } else { pass_all() };
        object.set_plan(&plan).at(EnrolStep::Load)?;
        self.set_own(cookie, &found.own).at(EnrolStep::Register)?;
        self.host.set_addresses(cookie, &spec.ips).at(EnrolStep::Register)?;
        object.fill(&listeners, placed).at(EnrolStep::Sockmap)?;
        netns.enter(|| plumbing.apply()).at(EnrolStep::Plumbing)?.at(EnrolStep::Plumbing)?;
        object.attach(netns).at(EnrolStep::Attach)?;
        let entry = if adopted { PodEntry::CAPTURING } else { PodEntry::SELF_TEST };
        self.set_entry(cookie, entry).at(EnrolStep::Register)?;
        self.pins.take_pod_over(cookie).at(EnrolStep::Register)?;
        let test = SelfTest {
            netns,
            object: &object,
            exemption: &exemption,
            mark: self.config.mark,
            ips: &spec.ips,
            timeout: self.config.self_test_timeout,
        };
        test.run(&found.families).at(EnrolStep::SelfTest)?;
        self.set_entry(cookie, PodEntry::CAPTURING).at(EnrolStep::Activate)?;
        object.set_plan(&spec.plan).at(EnrolStep::Activate)?;
        Ok((object, listeners))
    }

    /// Other addresses or verdicts for a pod that is in.
    pub(crate) fn update(&mut self, uid: &PodUid, ips: &[IpAddr], plan: &InboundPlan) -> Result<(), EnrolError> {
        let pod = self.pods.get_mut(uid).ok_or_else(|| CaptureError::UnknownPod(uid.to_string()));
        let pod = pod.at(EnrolStep::OpenNetns)?;
        if pod.object.plan() != plan {
            pod.object.set_plan(plan).at(EnrolStep::Activate)?;
        }
        if pod.ips == ips {
            return Ok(());
        }
        let netns = pod.netns.clone();
        let found = netns.enter(|| find(ips)).at(EnrolStep::Addresses)?.at(EnrolStep::Addresses)?;
        pod.ips = ips.to_vec();
        pod.plumbing.set_ips(ips);
        let plumbing = pod.plumbing.clone();
        self.set_own(netns.cookie(), &found.own).at(EnrolStep::Register)?;
        self.host.set_addresses(netns.cookie(), ips).at(EnrolStep::Register)?;
        let record = Record { uid: uid.to_string(), netns: netns.path().to_owned(), plumbing: plumbing.clone() };
        self.state.insert(netns.cookie(), record).at(EnrolStep::State)?;
        netns.enter(|| plumbing.apply()).at(EnrolStep::Plumbing)?.at(EnrolStep::Plumbing)?;
        self.rewire(uid).at(EnrolStep::Register)
    }

    /// Stops capturing new connections of a pod, and lets plaintext in. Connections that are open need rules and
    /// listeners' namespace still: [`Self::finish_withdraw`] removes them.
    pub(crate) fn withdraw(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        let pod = self.pods.get_mut(uid).ok_or_else(|| CaptureError::UnknownPod(uid.to_string()))?;
        pod.capturing = false;
        pod.object.set_plan(&pass_all())?;
        let cookie = pod.netns.cookie();
        self.near.close(cookie)?;
        Ok(self.set_entry(cookie, PodEntry::SELF_TEST)?)
    }

    /// Removes everything of a pod from the kernel and from its network namespace, which dies if nobody else holds it.
    pub(crate) fn finish_withdraw(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        let pod = self.pods.remove(uid).ok_or_else(|| CaptureError::UnknownPod(uid.to_string()))?;
        let path = pod.netns.path().to_owned();
        self.unregister(pod.netns.cookie())?;
        let undone = pod.netns.enter(|| pod.plumbing.undo()).and_then(|result| result);
        // Struck out even then: what is left is in a namespace that cannot be entered, so it is gone or goes.
        self.state.remove(pod.netns.cookie())?;
        undone.map_err(|source| CaptureError::Plumbing { path, source })
    }

    /// Removes everything of a pod at once.
    pub(crate) fn forget(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        if self.pods.contains_key(uid) { self.finish_withdraw(uid) } else { Ok(()) }
    }

    /// After a world has been applied: lets go of pods that an earlier agent left and that are not `wanted` any more,
    /// and of what agents of another contract version pinned. A wanted pod that could not be enrolled yet stays
    /// captured, whichever version captured it: its connections wait, or are refused, but do not leave in clear.
    pub(crate) fn settle(&mut self, wanted: impl Fn(&PodUid) -> bool) -> Result<(), CaptureError> {
        let left: Vec<(u64, Record)> = self
            .state
            .pods()
            .iter()
            .filter(|(cookie, _)| self.pod_of(**cookie).is_none())
            .map(|(cookie, record)| (*cookie, record.clone()))
            .collect();
        let mut all_served = true;
        for (cookie, record) in left {
            let uid = PodUid::from(record.uid.as_str());
            // The same pod in another namespace has been enrolled anew; its old namespace is let go.
            if wanted(&uid) && !self.pods.contains_key(&uid) {
                all_served = false;
                continue;
            }
            self.pins.take_pod_over(cookie)?;
            self.unregister(cookie)?;
            super::cleanup::restore(cookie, &record)?;
            self.state.remove(cookie)?;
        }
        for cookie in self.pins.pods() {
            if !self.state.pods().contains_key(&cookie) {
                self.unregister(cookie)?;
            }
        }
        for cookie in super::wire::pinned(&self.pins.wires()) {
            if !self.state.pods().contains_key(&cookie) {
                super::wire::detach(&self.pins.wires(), cookie);
            }
        }
        if all_served { self.pins.remove_other_versions().map(drop) } else { Ok(()) }
    }

    /// Undoes a failed enrolment as far as it got. What cannot be undone is logged; the pod was not captured yet.
    fn undo(&mut self, netns: &NetNs, plumbing: &Plumbing, uid: &PodUid) {
        let results = [
            self.unregister(netns.cookie()),
            netns
                .enter(|| plumbing.undo())
                .and_then(|result| result)
                .map_err(|source| CaptureError::Plumbing { path: netns.path().to_owned(), source }),
            self.state.remove(netns.cookie()),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::error!(pod = %uid, %error, "a failed enrolment could not be undone completely");
        }
    }

    /// Removes a pod from the kernel's maps, and its links and maps.
    fn unregister(&mut self, cookie: u64) -> Result<(), CaptureError> {
        if self.maps.pods.get(&cookie, 0).is_ok() {
            self.maps.pods.remove(&cookie).map_err(BpfError::map(map::PODS))?;
        }
        self.near.forget(cookie)?;
        self.host.set_addresses(cookie, &[])?;
        super::wire::detach(&self.pins.wires(), cookie);
        self.pins.remove_pod(cookie)?;
        self.set_own(cookie, &BTreeSet::new())?;
        Ok(())
    }

    pub(super) fn set_entry(&mut self, cookie: u64, entry: PodEntry) -> Result<(), BpfError> {
        self.maps.pods.insert(cookie, Raw(entry), 0).map_err(BpfError::map(map::PODS))
    }

    /// Makes the map of own addresses hold these for a pod; true if it did not.
    pub(super) fn set_own(&mut self, cookie: u64, own: &BTreeSet<IpAddr>) -> Result<bool, BpfError> {
        let wanted: BTreeSet<OwnKey> = own.iter().map(|ip| OwnKey::new(cookie, key(*ip))).collect();
        let standing: BTreeSet<OwnKey> = self
            .maps
            .own
            .keys()
            .filter_map(|key| key.ok().map(|Raw(key)| key))
            .filter(|key| key.cookie() == cookie)
            .collect();
        for entry in wanted.difference(&standing) {
            self.maps.own.insert(Raw(*entry), 1, 0).map_err(BpfError::map(map::OWN))?;
        }
        for entry in standing.difference(&wanted) {
            self.maps.own.remove(&Raw(*entry)).map_err(BpfError::map(map::OWN))?;
        }
        Ok(wanted != standing)
    }
}

/// Finds the pod's addresses in the namespace this thread is in, and compares them with the world's.
fn find(wanted: &[IpAddr]) -> Result<Found, EnrolFailure> {
    if wanted.is_empty() {
        return Err(EnrolFailure::NoAddress);
    }
    let standing = RouteSocket::open()?.addresses()?;
    for ip in wanted {
        match standing.iter().find(|address| address.ip == *ip) {
            None => return Err(EnrolFailure::AddressMissing(*ip)),
            Some(Address { tentative: true, .. }) => return Err(EnrolFailure::Tentative(*ip)),
            Some(_) => {}
        }
    }
    let mut families = vec![IpFamily::V4];
    if has_ipv6() {
        families.push(IpFamily::V6);
    }
    Ok(Found { own: own(&standing), families })
}

/// The addresses that are the pod's own; those of `lo` itself are known without.
pub(super) fn own(standing: &[Address]) -> BTreeSet<IpAddr> {
    standing.iter().map(|address| address.ip).filter(|ip| !ip.is_loopback()).collect()
}

/// Whether `lo` of the namespace this thread is in has IPv6.
fn has_ipv6() -> bool {
    sysctl::read("net/ipv6/conf/lo/disable_ipv6").is_ok_and(|disabled| disabled == "0")
}
