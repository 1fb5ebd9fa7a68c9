//! Connections between pods of this node that the kernel carries alone: gives pods' links their programs, which kubelet's
//! probes need as well, and verdicts as soon as somebody could use one, and takes verdicts back when the world allows them no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use warren_core::identity::PodUid;
use warren_core::world::{Pod, World};
use warren_ebpf_abi::MAX_VERDICTS;

use super::keeper::Keeper;
use crate::capture::{AttachedWire, NearPair, WireError, WireJob};
use crate::judge::decide_near;
use crate::shared::Shared;

/// Time until a link that was of no use is tried again: a pod's link may be made after its namespace. It doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest time between two attempts.
const RETRY_MOST: Duration = Duration::from_secs(60);

/// Attaching makes the kernel wait with its network lock held, and whoever enrols a pod then waits for it: it is done once
/// no pod has come for so long.
const QUIET: Duration = Duration::from_millis(250);
/// But not later than this.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

/// A pod, its namespace's cookie, and what is to be done.
type Job = (PodUid, u64, WireJob);

/// The jobs of pods that came together; `None` when there will be none.
fn next_jobs(todo: &Receiver<Job>) -> Option<Vec<Job>> {
    let mut jobs = vec![todo.recv().ok()?];
    let until = Instant::now() + QUIET_WITHIN;
    while let Ok(job) = todo.recv_timeout(QUIET.min(until.saturating_duration_since(Instant::now()))) {
        jobs.push(job);
    }
    Some(jobs)
}

/// A job that is done.
pub(crate) struct WireDone {
    uid: PodUid,
    cookie: u64,
    result: Result<AttachedWire, WireError>,
}

/// The pods of a verdict.
struct Parties {
    source: PodUid,
    destination: PodUid,
}

/// Where a pod's link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    /// With the thread; should it fail, it rests for so long.
    Tried(Duration),
    /// In service, as long as the auditor finds it so.
    Attached,
    /// Of no use; it rests for so long since then, and is tried again, since what hinders may go.
    Unusable(Instant, Duration),
}

/// Wires and verdicts.
pub(crate) struct Near {
    shared: Arc<Shared>,
    verdicts: BTreeMap<NearPair, Parties>,
    /// What became of each pod's link, by UID and namespace.
    links: BTreeMap<(PodUid, u64), LinkState>,
    jobs: std::sync::mpsc::Sender<Job>,
    done: mpsc::UnboundedReceiver<WireDone>,
}

impl Near {
    /// Starts the thread that attaches.
    pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (jobs, todo) = std::sync::mpsc::channel();
        let (report, done) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("wires".into()).spawn(move || {
            while let Some(jobs) = next_jobs(&todo) {
                for (uid, cookie, job) in jobs {
                    if report.send(WireDone { uid, cookie, result: job.run() }).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(Self { shared, verdicts: BTreeMap::new(), links: BTreeMap::new(), jobs, done })
    }

    /// Waits for a job to be done.
    pub(crate) async fn next(&mut self) -> WireDone {
        match self.done.recv().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    /// Hands the links of pods that came to the thread.
    pub(crate) fn attach(&mut self, keeper: &Keeper) {
        let pods: BTreeSet<(PodUid, u64)> =
            keeper.served().map(|local| (local.uid.clone(), local.netns.cookie())).collect();
        self.links.retain(|pod, _| pods.contains(pod));
        for pod in pods {
            let rest = match self.links.get(&pod) {
                None => Some(RETRY_FIRST),
                Some(LinkState::Attached) => (!keeper.capture.is_wired(&pod.0)).then_some(RETRY_FIRST),
                Some(LinkState::Unusable(since, rest)) => {
                    (since.elapsed() > *rest).then_some((*rest * 2).min(RETRY_MOST))
                }
                Some(LinkState::Tried(_)) => None,
            };
            if let Some(rest) = rest
                && let Some(job) = keeper.capture.wire_job(&pod.0)
                && self.jobs.send((pod.0.clone(), pod.1, job)).is_ok()
            {
                self.links.insert(pod, LinkState::Tried(rest));
            }
        }
    }

    /// Puts a link into service.
    pub(crate) fn attached(&mut self, done: WireDone, keeper: &mut Keeper) {
        let WireDone { uid, cookie, result } = done;
        let wired = match result {
            Ok(wire) => keeper.capture.wired(&uid, cookie, wire).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let Some(link) = self.links.get_mut(&(uid.clone(), cookie)) else { return };
        let rest = match link {
            LinkState::Tried(rest) => *rest,
            _ => RETRY_FIRST,
        };
        *link = match wired {
            Ok(()) => {
                tracing::debug!(pod = %uid, "the pod's link is watched");
                LinkState::Attached
            }
            Err(reason) => {
                tracing::info!(pod = %uid, reason, "connections within the node go through the agent; kubelet's probes are refused");
                LinkState::Unusable(Instant::now(), rest)
            }
        };
    }

    /// A connection went through the agent for want of a verdict: the next one needs not, if it is allowed.
    pub(crate) fn wanted(&mut self, pair: NearPair, keeper: &mut Keeper) {
        let (Some((source, _)), Some((destination, _))) =
            (keeper.by_cookie(pair.source), keeper.by_cookie(pair.destination))
        else {
            return;
        };
        let parties = Parties { source: source.uid.clone(), destination: destination.uid.clone() };
        let world = self.shared.world.load();
        if !is_allowed(&world, &pair, &parties) {
            return;
        }
        if self.verdicts.len() >= MAX_VERDICTS && !self.verdicts.contains_key(&pair) {
            // Somebody tries many ports. Those that are in use ask again.
            self.verdicts.clear();
            if let Err(error) = keeper.capture.withdraw_verdicts() {
                tracing::error!(%error, "verdicts could not be taken back");
            }
        }
        match keeper.capture.permit(&pair) {
            Ok(()) => drop(self.verdicts.insert(pair, parties)),
            Err(error) => tracing::warn!(%error, "a verdict could not be given"),
        }
    }

    /// Takes back what the world in force does not allow. To be called before open connections are judged by it.
    pub(crate) fn judge_again(&mut self, keeper: &mut Keeper) {
        let world = self.shared.world.load();
        let withdrawn: Vec<NearPair> = self
            .verdicts
            .iter()
            .filter(|(pair, parties)| !is_allowed(&world, pair, parties))
            .map(|(pair, _)| *pair)
            .collect();
        for pair in withdrawn {
            self.verdicts.remove(&pair);
            if let Err(error) = keeper.capture.withdraw_verdict(&pair) {
                tracing::error!(%error, "a verdict could not be taken back; all of them are void");
                self.verdicts.clear();
                return;
            }
        }
    }
}

/// The world may give an address to another pod than the one whose namespace the verdict names.
fn is_allowed(world: &World, pair: &NearPair, parties: &Parties) -> bool {
    let (Some(source), Some(destination)) = (world.pod(&parties.source), world.pod(&parties.destination)) else {
        return false;
    };
    let has = |pod: &Pod, ip| pod.ips.contains(ip);
    has(source, &pair.source_ip)
        && has(destination, &pair.destination_addr.ip())
        && decide_near(world, source, pair.source_ip, pair.destination_addr).is_some()
}
