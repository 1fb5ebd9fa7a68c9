//! Which pods want an SVID, and when: the controllers' counterpart on a node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use warren_core::identity::{PodUid, SpiffeId, TrustDomain};
use warren_mesh::clock::{Clock, SystemClock};
use warren_mesh::identity::{
    CaCertificate, IdentitySnapshot, IssuerStatus, PodIdentity, PodIdentityWriter, PodRef, Schedule, Svid, SvidSource,
    TrustNotes, certificate_id, pod_identity,
};
use warren_mesh::telemetry::Telemetry;
use warren_mesh::tls::chain_is_trusted;

use super::bundle::{self, Published};
use super::client::ControllerClient;
use super::error::RemoteError;
use crate::kube_client;

/// How often the bundle is read.
const BUNDLE: Duration = Duration::from_secs(10);
/// How often it is while there is none, or while it is known to be behind.
const BUNDLE_WANTED: Duration = Duration::from_secs(1);
/// Requests under way at the same time.
const AT_ONCE: usize = 32;
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How often one looks for pods that are due.
const STEP: Duration = Duration::from_millis(200);
/// When the issuer changes, pods ask within so long, not all at once.
const SPREAD: Duration = Duration::from_secs(5);
/// Lifetime that waits after failures are made for, as long as no SVID has told of another one.
const USUAL_TTL: Duration = Duration::from_secs(24 * 3600);

/// Where controllers are, and who the agent is.
#[derive(Debug, Clone)]
pub(crate) struct RemoteCaConfig {
    /// How the API server is reached.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Warren's own namespace.
    pub(crate) namespace: String,
    /// The identity that every controller has.
    pub(crate) controller: SpiffeId,
    /// The agent's token for controllers.
    pub(crate) token: PathBuf,
    /// The mesh's trust domain.
    pub(crate) trust_domain: TrustDomain,
}

/// SVIDs of one node's pods.
pub(crate) struct RemoteCa {
    telemetry: Arc<Telemetry>,
    clock: Arc<dyn Clock>,
    /// Told when a pod came that has none.
    wanted: Notify,
    /// Told when the bundle seems to be behind.
    behind: Notify,
    trust_domain: TrustDomain,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    published: Option<Published>,
    pods: BTreeMap<PodUid, PodState>,
    /// The intermediates above the SVIDs in use, by their short names.
    intermediates: BTreeMap<String, IssuerStatus>,
    generation: u64,
    /// What is wrong with the bundle; said once.
    trouble: Option<String>,
}

struct PodState {
    pod: PodRef,
    id: SpiffeId,
    writer: PodIdentityWriter,
    schedule: Schedule,
    in_flight: bool,
    /// Short name of the intermediate above the SVID in use.
    issuer: Option<String>,
}

/// What came of a request.
struct Done {
    uid: PodUid,
    id: SpiffeId,
    result: Result<Svid, RemoteError>,
}

impl RemoteCa {
    /// Starts to ask, on a thread of its own. Whether there is a controller yet does not matter.
    pub(crate) fn start(config: RemoteCaConfig, telemetry: Arc<Telemetry>) -> std::io::Result<Arc<Self>> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let this = Arc::new(Self {
            telemetry,
            clock,
            wanted: Notify::new(),
            behind: Notify::new(),
            trust_domain: config.trust_domain.clone(),
            state: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let weak = Arc::downgrade(&this);
        std::thread::Builder::new().name("svid".into()).spawn(move || runtime.block_on(run(weak, config)))?;
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that are due, at most `most`; they count as asked for. None without a bundle: an SVID that nobody here
    /// can judge is of no use.
    fn due(&self, most: usize) -> Vec<(PodRef, SpiffeId, Published)> {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(published) = state.published.clone() else { return Vec::new() };
        let due = state.pods.values_mut().filter(|pod| !pod.in_flight && pod.schedule.is_due(now));
        due.take(most)
            .map(|pod| {
                pod.in_flight = true;
                (pod.pod.clone(), pod.id.clone(), published.clone())
            })
            .collect()
    }

    /// Takes the bundle over if it is newer: pods get it with the SVID that they have, before any new SVID.
    fn adopt(&self, read: Result<Published, RemoteError>) {
        let now = self.clock.now();
        let mut state = self.state();
        let published = match read {
            Ok(published) => published,
            Err(error) => return trouble(&mut state, &error),
        };
        state.trouble = None;
        if state.published.as_ref().is_some_and(|known| known.sequence >= published.sequence) {
            return;
        }
        tracing::info!(sequence = published.sequence, roots = published.bundle.len(), "trust bundle");
        state.generation += 1;
        let generation = state.generation;
        for pod in state.pods.values_mut() {
            if let Some(snapshot) = pod.writer.snapshot() {
                let (svid, bundle) = (Arc::clone(&snapshot.svid), Arc::clone(&published.bundle));
                pod.writer.publish(IdentitySnapshot::new(svid, bundle, generation, Arc::clone(&self.clock)));
            }
            if pod.issuer.as_ref().is_some_and(|issuer| *issuer != published.issuer) {
                pod.schedule.due_by(now + SPREAD.mul_f64(rand::random()));
            }
        }
        state.published = Some(published);
        self.report(&mut state);
    }

    /// Puts an SVID in place, or notes why there is none.
    fn done(&self, Done { uid, id, result }: Done) {
        let now = self.clock.now();
        let mut guard = self.state();
        let state = &mut *guard;
        // Meanwhile it may have gone, or become another one.
        let Some(pod) = state.pods.get_mut(&uid).filter(|pod| pod.id == id) else { return };
        pod.in_flight = false;
        let Some(published) = &state.published else { return };
        let trusted = result.and_then(|svid| {
            if chain_is_trusted(svid.chain(), &published.bundle, &*self.clock) {
                return Ok(svid);
            }
            Err(RemoteError::Answer("it leads to no root of the trust bundle that is known here".to_owned()))
        });
        let metrics = self.telemetry.metrics();
        metrics.certificate_attempt(pod.issuer.is_some(), trusted.is_ok());
        match trusted {
            Ok(svid) => {
                let issuer = svid.chain().get(1).map(certificate_id).unwrap_or_default();
                metrics.leaf(&uid, id.as_str(), svid.not_before(), svid.not_after());
                pod.schedule.succeeded(now, svid.not_after());
                if issuer != published.issuer {
                    // Either the bundle or the controller is behind; both catch up in moments.
                    pod.schedule.due_by(now + SPREAD);
                    self.behind.notify_one();
                }
                let above = svid.chain().get(1).cloned();
                let above = above.and_then(|der| CaCertificate::from_der(der, &self.trust_domain).ok());
                if let Some(above) = above {
                    state.intermediates.entry(issuer.clone()).or_insert_with(|| intermediate(&above));
                }
                pod.issuer = Some(issuer);
                state.generation += 1;
                let bundle = Arc::clone(&published.bundle);
                let snapshot = IdentitySnapshot::new(Arc::new(svid), bundle, state.generation, Arc::clone(&self.clock));
                pod.writer.publish(snapshot);
                self.report(state);
            }
            Err(error) => {
                tracing::warn!(pod = %uid, id = %id, %error, "no new SVID");
                let lifetime = pod.writer.snapshot().and_then(|one| lifetime(&one.svid)).unwrap_or(USUAL_TTL);
                pod.schedule.failed(now, lifetime);
                pod.writer.failed(&error.to_string());
                // A controller whose chain is not known here may be ahead of the bundle.
                if matches!(error, RemoteError::Answer(_) | RemoteError::Unreachable { .. }) {
                    self.behind.notify_one();
                }
            }
        }
    }

    fn report(&self, state: &mut State) {
        let used: BTreeSet<&String> = state.pods.values().filter_map(|pod| pod.issuer.as_ref()).collect();
        state.intermediates.retain(|issuer, _| used.contains(issuer));
        self.telemetry.metrics().issuers(&issuers(state));
    }
}

impl SvidSource for RemoteCa {
    fn add_pod(&self, pod: &PodRef, id: &SpiffeId) -> PodIdentity {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(known) = state.pods.get(&pod.uid)
            && known.id == *id
        {
            return known.writer.reader();
        }
        let writer = pod_identity(&pod.uid, id, Arc::clone(&self.clock));
        let reader = writer.reader();
        if let Some(trouble) = &state.trouble {
            writer.failed(trouble);
        }
        let schedule = Schedule::due_from(now);
        let fresh = PodState { pod: pod.clone(), id: id.clone(), writer, schedule, in_flight: false, issuer: None };
        state.pods.insert(pod.uid.clone(), fresh);
        self.wanted.notify_one();
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
        let now = self.clock.now();
        let mut state = self.state();
        let Some(pod) = state.pods.get_mut(uid) else { return false };
        pod.schedule.due_at(now);
        self.wanted.notify_one();
        true
    }

    fn trust(&self) -> Option<TrustNotes> {
        let state = self.state();
        let bundle = state.published.as_ref()?.bundle.digest();
        let issuers: BTreeSet<String> = state.pods.values().filter_map(|pod| pod.issuer.clone()).collect();
        Some(TrustNotes { bundle, issuers: issuers.into_iter().collect() })
    }
}

fn trouble(state: &mut State, error: &RemoteError) {
    let text = error.to_string();
    if state.trouble.as_ref() == Some(&text) {
        return;
    }
    tracing::error!(error = text, "no trust bundle; the last one serves");
    for pod in state.pods.values().filter(|pod| pod.issuer.is_none()) {
        pod.writer.failed(&text);
    }
    state.trouble = Some(text);
}

fn lifetime(svid: &Svid) -> Option<Duration> {
    svid.not_after().duration_since(svid.not_before()).ok()
}

/// The roots that are trusted, and the intermediates above the SVIDs in use.
fn issuers(state: &State) -> Vec<IssuerStatus> {
    let Some(published) = &state.published else { return Vec::new() };
    let above =
        state.intermediates.iter().map(|(name, one)| IssuerStatus { active: *name == published.issuer, ..one.clone() });
    published.roots.iter().cloned().chain(above).collect()
}

fn intermediate(certificate: &CaCertificate) -> IssuerStatus {
    IssuerStatus {
        kind: "intermediate",
        subject: certificate.subject.clone(),
        serial: certificate.serial.clone(),
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        active: false,
    }
}

/// Asks until the agent ends.
async fn run(source: Weak<RemoteCa>, config: RemoteCaConfig) {
    let client = loop {
        match kube_client::connect(config.kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(error) => {
                let Some(source) = source.upgrade() else { return };
                let error = RemoteError::ApiServer { what: "how it is reached", error: error.to_string() };
                trouble(&mut source.state(), &error);
            }
        }
        tokio::time::sleep(BUNDLE_WANTED).await;
    };
    let RemoteCaConfig { namespace, controller, token, trust_domain, .. } = config;
    let controllers = ControllerClient::new(client.clone(), namespace.clone(), controller, token);
    tokio::spawn(follow_bundle(source.clone(), client, namespace, trust_domain));
    ask(&source, &Arc::new(controllers)).await;
}

/// Reads the bundle again and again.
async fn follow_bundle(source: Weak<RemoteCa>, client: kube::Client, namespace: String, trust_domain: TrustDomain) {
    while let Some(source) = source.upgrade() {
        let read = tokio::time::timeout(ANSWER, bundle::read(&client, &namespace, &trust_domain)).await;
        let read = read.unwrap_or_else(|_| {
            let error = "it does not answer".to_owned();
            Err(RemoteError::ApiServer { what: "reading ConfigMap warren-trust-bundle", error })
        });
        let pause = if read.is_ok() { BUNDLE.mul_f64(0.9 + 0.2 * rand::random::<f64>()) } else { BUNDLE_WANTED };
        source.adopt(read);
        source.wanted.notify_one();
        let soon = async {
            source.behind.notified().await;
            tokio::time::sleep(BUNDLE_WANTED).await;
        };
        let _ = tokio::time::timeout(pause, soon).await;
    }
}

/// Has SVIDs signed for pods that are due.
async fn ask(source: &Weak<RemoteCa>, controllers: &Arc<ControllerClient>) {
    let mut asked: JoinSet<Done> = JoinSet::new();
    while let Some(source) = source.upgrade() {
        for (pod, id, published) in source.due(AT_ONCE.saturating_sub(asked.len())) {
            let controllers = controllers.clone();
            asked.spawn(async move {
                let result = controllers.svid(&pod, &id, &published.bundle).await;
                Done { uid: pod.uid, id, result }
            });
        }
        tokio::select! {
            () = source.wanted.notified() => {}
            Some(done) = asked.join_next() => {
                if let Ok(done) = done {
                    source.done(done);
                }
            }
            () = tokio::time::sleep(STEP) => {}
        }
    }
}
