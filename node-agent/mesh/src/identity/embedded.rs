//! The embedded CA: root (shared directory) → intermediate (this agent's own,
//! in memory) → one leaf per pod.
//!
//! A thread of its own renews and watches the directory. It works by the clock
//! it was given, in small steps, rather than by timers: a machine that slept
//! catches up at once, and tests move time.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use warren_core::identity::{PodUid, SpiffeId, TrustDomain};

use super::ca_dir::{CaDir, CaError, Root};
use super::issue::{Intermediate, IssueError};
use super::schedule::{Schedule, renew_at};
use super::{
    IdentitySnapshot, IssuerStatus, PodIdentity, PodIdentityWriter, PodRef, SvidSource, TrustBundle, pod_identity,
};
use crate::clock::{Clock, SystemClock};
use crate::telemetry::Telemetry;

/// Shortest leaf lifetime; for tests.
pub const MIN_LEAF_TTL: Duration = Duration::from_secs(2);

/// Configuration of the embedded CA.
#[derive(Debug, Clone)]
pub struct EmbeddedCaConfig {
    /// Directory of the shared root; created if empty.
    pub dir: PathBuf,
    /// Trust domain of root and leaves.
    pub trust_domain: TrustDomain,
    /// Node name, for the intermediate's subject.
    pub node: String,
    /// Lifetime of leaves; at least [`MIN_LEAF_TTL`].
    pub leaf_ttl: Duration,
    /// Lifetime of the intermediate; renewed at half, so that the expiry alerts
    /// for issuers (7 d, 24 h) stay silent in good health.
    pub intermediate_ttl: Duration,
    /// How often the directory is looked at.
    pub poll: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl EmbeddedCaConfig {
    /// Defaults: leaves of 24 h, an intermediate of 30 d, a look every second.
    pub fn new(dir: PathBuf, trust_domain: TrustDomain, node: &str) -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            dir,
            trust_domain,
            node: node.into(),
            leaf_ttl: 24 * HOUR,
            intermediate_ttl: 30 * 24 * HOUR,
            poll: Duration::from_secs(1),
            clock: Arc::new(SystemClock),
        }
    }
}

/// The embedded CA of one agent.
pub struct EmbeddedCa {
    config: EmbeddedCaConfig,
    dir: CaDir,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
}

struct State {
    trust: Trust,
    intermediate: Intermediate,
    intermediate_renew: SystemTime,
    pods: BTreeMap<PodUid, PodState>,
    generation: u64,
    /// When each trusted root was first seen here.
    first_seen: BTreeMap<String, SystemTime>,
    /// Last trouble with the directory; said once, not every second.
    trouble: Option<String>,
}

/// The roots of the directory as last read without error.
struct Trust {
    roots: Vec<Root>,
    bundle: Arc<TrustBundle>,
}

impl Trust {
    fn new(trust_domain: &TrustDomain, roots: Vec<Root>, dir: &CaDir) -> Result<Self, CaError> {
        let ders: Vec<CertificateDer<'static>> = roots.iter().map(|root| root.der.clone()).collect();
        let bundle = TrustBundle::new(trust_domain.clone(), ders)
            .map_err(|e| CaError::Corrupt { path: dir.path().into(), reason: e.to_string() })?;
        Ok(Self { roots, bundle: Arc::new(bundle) })
    }

    fn active(&self) -> Option<&Root> {
        self.roots.iter().find(|root| root.info.active)
    }

    fn has(&self, id: &str) -> bool {
        self.roots.iter().any(|root| root.info.id == id)
    }
}

struct PodState {
    id: SpiffeId,
    writer: PodIdentityWriter,
    schedule: Schedule,
    /// Root above the SVID in use.
    root: Option<String>,
}

impl EmbeddedCa {
    /// Opens or creates the directory and makes this agent's intermediate. All
    /// that could be wrong with either is an error here.
    pub fn open(config: EmbeddedCaConfig, telemetry: Arc<Telemetry>) -> Result<Self, CaError> {
        let now = config.clock.now();
        let config = EmbeddedCaConfig { leaf_ttl: config.leaf_ttl.max(MIN_LEAF_TTL), ..config };
        let dir = CaDir::init(&config.dir, &config.trust_domain, now)?;
        let trust = Trust::new(&config.trust_domain, dir.read_roots()?, &dir)?;
        let intermediate = new_intermediate(&dir, &trust, &config, now)?;
        // What is active at the start has been agreed on before.
        let long_ago = SystemTime::UNIX_EPOCH;
        let first_seen = trust.roots.iter().map(|root| (root.info.id.clone(), long_ago)).collect();
        let state = State {
            intermediate_renew: renew_at(now, intermediate.not_after),
            trust,
            intermediate,
            pods: BTreeMap::new(),
            generation: 0,
            first_seen,
            trouble: None,
        };
        let ca = Self { config, dir, telemetry, state: Mutex::new(state) };
        ca.report_issuers(&ca.state());
        Ok(ca)
    }

    /// Starts renewal and the watch over the directory; ends when the last
    /// handle to the CA is dropped.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        let ca = Arc::downgrade(self);
        let shortest = Duration::from_millis(50);
        let step = self.config.poll.min(self.config.leaf_ttl / 20).max(shortest);
        std::thread::Builder::new().name("svid".into()).spawn(move || run(&ca, step)).map(drop)
    }

    /// One step: read the directory, then renew what is due. Bundles come
    /// before SVIDs, so nobody gets an SVID that its own bundle does not know.
    pub fn step(&self) {
        let now = self.config.clock.now();
        let mut state = self.state();
        self.refresh_trust(&mut state, now);
        self.refresh_intermediate(&mut state, now);
        let due: Vec<PodUid> =
            state.pods.iter().filter(|(_, pod)| pod.schedule.is_due(now)).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.issue(&mut state, &uid, now);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh_trust(&self, state: &mut State, now: SystemTime) {
        let read = self.dir.read_roots().and_then(|roots| {
            if roots == state.trust.roots {
                return Ok(None);
            }
            Trust::new(&self.config.trust_domain, roots, &self.dir).map(Some)
        });
        match read {
            Err(error) => self.trouble(state, &format!("{error}; the last good roots stay")),
            Ok(None) => state.trouble = None,
            Ok(Some(trust)) => {
                state.trouble = None;
                self.adopt(state, trust, now);
            }
        }
    }

    /// Gives every pod the new bundle with the SVID it has.
    fn adopt(&self, state: &mut State, trust: Trust, now: SystemTime) {
        let ids: Vec<&str> = trust.roots.iter().map(|root| root.info.id.as_str()).collect();
        tracing::info!(roots = ?ids, "trusted roots changed");
        state.first_seen.retain(|id, _| trust.has(id));
        for root in &trust.roots {
            state.first_seen.entry(root.info.id.clone()).or_insert(now);
        }
        state.trust = trust;
        state.generation += 1;
        for pod in state.pods.values_mut() {
            if let Some(snapshot) = pod.writer.snapshot() {
                pod.writer.publish(IdentitySnapshot::new(
                    Arc::clone(&snapshot.svid),
                    Arc::clone(&state.trust.bundle),
                    state.generation,
                    Arc::clone(&self.config.clock),
                ));
            }
            if pod.root.as_ref().is_some_and(|root| !state.trust.has(root)) {
                pod.schedule.due_at(now);
            }
        }
        self.report_issuers(state);
    }

    fn refresh_intermediate(&self, state: &mut State, now: SystemTime) {
        if !self.intermediate_due(state, now) {
            return;
        }
        match new_intermediate(&self.dir, &state.trust, &self.config, now) {
            Ok(intermediate) => {
                state.intermediate_renew = renew_at(now, intermediate.not_after);
                state.intermediate = intermediate;
                let spread = (self.config.leaf_ttl / 10).min(Duration::from_secs(5));
                for pod in state.pods.values_mut() {
                    if pod.root.as_ref() != Some(&state.intermediate.root) {
                        pod.schedule.due_by(now + spread.mul_f64(rand::random()));
                    }
                }
                self.report_issuers(state);
            }
            Err(error) => {
                self.trouble(state, &format!("no new intermediate: {error}"));
            }
        }
    }

    /// Whether a new intermediate is wanted now. A root that has just appeared
    /// does not sign before other agents have had time to read it, unless the
    /// one in use is not trusted any more.
    fn intermediate_due(&self, state: &State, now: SystemTime) -> bool {
        let Some(active) = state.trust.active().map(|root| &root.info.id) else { return false };
        let current = &state.intermediate.root;
        if active == current || !state.trust.has(current) {
            return active != current || now >= state.intermediate_renew;
        }
        let seen = state.first_seen.get(active).copied().unwrap_or(now);
        now >= seen + 3 * self.config.poll
    }

    fn trouble(&self, state: &mut State, text: &str) {
        if state.trouble.as_deref() != Some(text) {
            tracing::error!(ca = %self.dir.path().display(), "{text}");
            state.trouble = Some(text.into());
        }
    }

    /// Issues to one pod now; on failure the last good SVID stays.
    fn issue(&self, state: &mut State, uid: &PodUid, now: SystemTime) {
        let State { trust, intermediate, pods, generation, .. } = state;
        let Some(pod) = pods.get_mut(uid) else { return };
        let renewal = pod.root.is_some();
        // Peers would not accept what a removed root vouches for.
        let issued = if trust.has(&intermediate.root) {
            intermediate.issue(&pod.id, now, self.config.leaf_ttl)
        } else {
            Err(IssueError::Make("the intermediate's root is not trusted any more".into()))
        };
        let metrics = self.telemetry.metrics();
        metrics.certificate_attempt(renewal, issued.is_ok());
        match issued {
            Ok(svid) => {
                *generation += 1;
                let (from, to) = (svid.not_before(), svid.not_after());
                metrics.leaf(uid, pod.id.as_str(), from, to);
                pod.root = Some(intermediate.root.clone());
                pod.schedule.succeeded(now, to);
                pod.writer.publish(IdentitySnapshot::new(
                    Arc::new(svid),
                    Arc::clone(&trust.bundle),
                    *generation,
                    Arc::clone(&self.config.clock),
                ));
            }
            Err(error) => {
                tracing::warn!(pod = %uid, id = %pod.id, %error, "no new SVID");
                pod.schedule.failed(now, self.config.leaf_ttl);
                pod.writer.failed(&error.to_string());
            }
        }
    }

    fn report_issuers(&self, state: &State) {
        self.telemetry.metrics().issuers(&issuers(state));
    }
}

impl SvidSource for EmbeddedCa {
    fn add_pod(&self, PodRef { uid, .. }: &PodRef, id: &SpiffeId) -> PodIdentity {
        let now = self.config.clock.now();
        let mut state = self.state();
        if let Some(pod) = state.pods.get(uid)
            && pod.id == *id
        {
            return pod.writer.reader();
        }
        let writer = pod_identity(uid, id, Arc::clone(&self.config.clock));
        let reader = writer.reader();
        let schedule = Schedule::due_from(now);
        let pod = PodState { id: id.clone(), writer, schedule, root: None };
        state.pods.insert(uid.clone(), pod);
        self.issue(&mut state, uid, now);
        reader
    }

    fn remove_pod(&self, uid: &PodUid) {
        self.state().pods.remove(uid);
        self.telemetry.metrics().forget_leaf(uid);
    }

    fn issuers(&self) -> Vec<IssuerStatus> {
        issuers(&self.state())
    }

    fn renew(&self, uid: &PodUid) -> bool {
        let now = self.config.clock.now();
        let mut state = self.state();
        let known = state.pods.contains_key(uid);
        self.issue(&mut state, uid, now);
        known
    }
}

fn run(ca: &Weak<EmbeddedCa>, step: Duration) {
    loop {
        std::thread::sleep(step);
        match ca.upgrade() {
            Some(ca) => ca.step(),
            None => return,
        }
    }
}

fn new_intermediate(
    dir: &CaDir,
    trust: &Trust,
    config: &EmbeddedCaConfig,
    now: SystemTime,
) -> Result<Intermediate, CaError> {
    let root = trust.active().ok_or_else(|| CaError::UnknownRoot("(active)".into()))?;
    let signer = dir.signer(root)?;
    let id = &root.info.id;
    Ok(Intermediate::new(&signer, id, &config.node, now, config.intermediate_ttl)?)
}

fn issuers(state: &State) -> Vec<IssuerStatus> {
    let roots = state.trust.roots.iter().map(|root| IssuerStatus {
        kind: "root",
        subject: root.info.subject.clone(),
        serial: root.info.serial.clone(),
        not_before: root.info.not_before,
        not_after: root.info.not_after,
        active: root.info.active,
    });
    let own = &state.intermediate;
    let intermediate = IssuerStatus {
        kind: "intermediate",
        subject: own.subject.clone(),
        serial: own.serial.clone(),
        not_before: own.not_before,
        not_after: own.not_after,
        active: true,
    };
    roots.chain([intermediate]).collect()
}
