//! The composition root: takes the configuration apart once, binds early, builds everything, and drives it until told
//! to stop.

mod board;
mod cni;
mod flows;
mod gauges;
mod keeper;
mod near;
mod observed;
mod pages;
mod places;
mod pod_events;
mod probes;
mod removal;
mod severed;
mod source;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use warren_core::identity::SpiffeIdError;
use warren_core::world::{Loaded, MeshConfig, World};
use warren_mesh::identity::SvidSource;
use warren_mesh::identity::embedded::{EmbeddedCa, EmbeddedCaConfig};
use warren_mesh::limits::Limits;
use warren_mesh::live::{CancelReason, LiveRegistry};
use warren_mesh::telemetry::{AuditTarget, IncapableDestinations, Telemetry, TelemetryConfig};

use self::board::Board;
use self::cni::Cni;
use self::flows::KernelFlows;
use self::gauges::Gauges;
use self::keeper::Keeper;
use self::near::Near;
use self::pages::{AgentPages, PublicPages, StatusPages};
use self::places::Places;
use self::probes::unprobed;
use self::removal::Removal;
use self::source::{News, Source};
use crate::budget::Budget;
use crate::ca_protocol::controller_id;
use crate::capture::{CaptureConfig, CaptureError, CleanupReport, Events, KernelEvent, NearPair, NodeCapture};
use crate::cli::SameNode;
use crate::config::{AuditLog, Config, IdentitySource, WorldSource, socket_path};
use crate::exit::{Exit, Fatal, chain};
use crate::inbound::DialPorts;
use crate::judge::judge_again;
use crate::mesh_node::Publisher;
use crate::remote_ca::{RemoteCa, RemoteCaConfig};
use crate::shared::Shared;
use crate::sys::socket::has_congestion_control;
use crate::traces::Traces;
use crate::worker::{Worker, WorkerCommand};
use crate::{http, worker};

/// How long the kernel's events are left alone after some were read: each connection within the node makes four, and
/// a wake-up for each would cost more than the connection.
const EVENT_REST: Duration = Duration::from_millis(5);
/// Audit events that may wait to be written.
const AUDIT_QUEUE: usize = 16_384;
/// How long an enrolment's self-test may take.
const SELF_TEST: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) async fn run(mut config: Config) -> Result<(), Fatal> {
    if let Some(name) = &config.tunnel_congestion
        && let Err(error) = has_congestion_control(name)
    {
        tracing::warn!(%error, name, "--tunnel-congestion: the kernel has it not; tunnels take the node's default");
        config.tunnel_congestion = None;
    }
    let budget = Budget::of_process();
    let mut source = Source::open(&config)?;
    let mesh = source.mesh();
    let admin = bind_admin(&config).await?;
    let telemetry = telemetry(&config, &mesh)?;
    let ca = identity(&config, &mesh, &telemetry)?;
    let capture = capture(&config)?;
    let removal = Removal::start(&config);
    let socket = bind_socket(&config.run_dir)?;
    let shared = Arc::new(Shared {
        world: ArcSwap::from_pointee(World::empty(mesh)),
        telemetry: telemetry.clone(),
        live: LiveRegistry::default(),
        limits: Arc::new(limits(&config)),
        budget,
        exemption: capture.exemption(),
        dial_ports: DialPorts::default(),
        mark: config.mark,
        early_data: config.early_data.clone(),
        tunnel_congestion: config.tunnel_congestion.clone(),
        incapable: IncapableDestinations::register(telemetry.metrics()),
    });
    let workers = start_workers(&config, &shared, &capture)?;
    let board = Arc::new(Board::default());
    let pages = AgentPages {
        node: config.node.clone(),
        shared: shared.clone(),
        board: board.clone(),
        issuers: ca.clone(),
        health: source.health(),
        gauges: Gauges::register(
            telemetry.metrics(),
            workers.iter().map(Worker::metrics).collect(),
            capture.counters(),
            source.health(),
        ),
    };
    if let WorldSource::Kubernetes { kubeconfig, .. } = &config.world {
        tokio::task::spawn_local(pod_events::run(board.clone(), config.node.clone(), kubeconfig.clone()));
    }
    tokio::task::spawn_local(http::serve_tcp(admin, PublicPages(pages.clone())));
    tokio::task::spawn_local(http::serve_unix(socket, StatusPages(pages)));
    let publisher = Publisher::of(&config, &ca, telemetry.metrics());
    let places = Places::open(&config.run_dir);
    let keeper = Keeper::new(config.node.clone(), shared.clone(), capture, ca, workers, source.finder(), places);
    let near =
        Near::start(shared.clone()).map_err(|error| Fatal::new(Exit::Runtime, "cannot start a thread", &error))?;
    // Until the first world is there, nothing is enrolled and nothing that an earlier agent enrolled is let go.
    let Some(loaded) = first_world(&mut source).await? else {
        let _ = std::fs::remove_file(socket_path(&config.run_dir));
        if let Some(why) = removal.proven().await {
            tracing::info!(why, "no agent follows: what earlier ones captured is let go");
            drop(keeper);
            removal.finish(&Traces::of(&config)).await;
        }
        announce(&format!("stopped node={}", config.node));
        return Ok(());
    };
    let mut agent = Agent {
        config,
        source,
        flows: KernelFlows::new(shared.clone()),
        near,
        shared,
        board,
        keeper,
        unapplied: false,
        lost: 0,
        cni: Cni::default(),
        removal,
        publishing: None,
    };
    agent.apply(loaded);
    agent.serve_cni()?;
    agent.board.notes().ready = true;
    agent.publishing = publisher.map(|publisher| tokio::task::spawn_local(publisher.run(agent.shared.clone())));
    announce(&format!("ready node={} pods={}", agent.config.node, agent.keeper.entries().len()));
    Box::pin(agent.drive()).await
}

/// The parts of a running agent that its control thread owns.
struct Agent {
    config: Config,
    source: Source,
    shared: Arc<Shared>,
    board: Arc<Board>,
    flows: KernelFlows,
    near: Near,
    keeper: Keeper,
    /// The kernel refused the last world; it is offered again.
    unapplied: bool,
    /// Events that the kernel could not tell, as far as their connections have been looked for.
    lost: u64,
    cni: Cni,
    removal: Removal,
    /// Says what this node can do, if there is somebody to tell.
    publishing: Option<JoinHandle<()>>,
}

impl Agent {
    /// Reacts to files, the kernel and signals until the end.
    async fn drive(mut self) -> Result<(), Fatal> {
        let runtime = |error: std::io::Error| Fatal::new(Exit::Runtime, "cannot go on", &error);
        let mut events = self.keeper.capture.events().map_err(|error| Fatal::new(Exit::Capture, "events", &error))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(runtime)?;
        let mut audit = interval(self.config.audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rested = Instant::now();
        let board = self.board.clone();
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                news = self.source.next(&self.shared.world) => self.news(news),
                _ = audit.tick() => self.audit()?,
                event = self.cni.next() => self.cni_event(event),
                () = board.ending() => self.flows.end_cancelled(),
                () = at(self.keeper.next_try()) => self.reconcile(),
                done = self.near.next() => {
                    self.near.attached(done, &mut self.keeper);
                    board.notes().unprobed = unprobed(&self.keeper);
                }
                told = after(rested, events.next()) => {
                    self.kernel_events(told.map_err(runtime)?);
                    rested = Instant::now() + EVENT_REST;
                }
            }
        }
        let (removal, traces) = (self.removal.clone(), Traces::of(&self.config));
        // Asked before anything else: account and rights may be on their way out as well.
        match removal.proven().await {
            Some(why) => {
                tracing::info!(why, "no agent follows: pods leave the mesh, and this node is cleaned");
                // It would say anew what is taken back at the end.
                if let Some(publishing) = self.publishing.take() {
                    publishing.abort();
                }
                self.retire(&traces);
                Box::pin(self.drain(&mut events, true)).await;
                removal.finish(&traces).await;
            }
            None => Box::pin(self.drain(&mut events, false)).await,
        }
        Ok(())
    }

    /// Takes a new world in: kernel ranges first, so that nothing that is wanted captured is missed; then the world
    /// itself, pods and verdicts; last, everything that is open is judged by it.
    fn apply(&mut self, loaded: Loaded) {
        let Loaded { world, rejections } = loaded;
        let world = self.keeper.places.over(&world).unwrap_or(world);
        if let Err(error) = self.keeper.capture.set_captured(world.captured()) {
            tracing::error!(error = chain(&error), "captured ranges not updated; the last good world stays");
            self.board.notes().source_error = Some(chain(&error));
            self.unapplied = true;
            return;
        }
        self.unapplied = false;
        if self.source.is_busy() {
            tracing::debug!(generation = world.generation, pods = world.pods.len(), "world in force");
        } else {
            tracing::info!(generation = world.generation, pods = world.pods.len(), "world in force");
        }
        self.shared.world.store(Arc::new(world));
        self.near.judge_again(&mut self.keeper);
        self.keeper.reconcile(&mut self.flows);
        self.near.attach(&self.keeper);
        self.find_untold();
        let ended = judge_again(&self.shared);
        if ended > 0 {
            tracing::info!(ended, "live connections are no longer allowed");
        }
        self.flows.end_cancelled();
        let mut notes = self.board.notes();
        notes.rejections = rejections.iter().map(ToString::to_string).collect();
        notes.world_loaded = Some(Instant::now());
        notes.source_error = None;
        notes.pods = self.keeper.entries();
        notes.unprobed = unprobed(&self.keeper);
    }

    fn news(&mut self, news: News) {
        match news {
            News::World(loaded) => self.apply(*loaded),
            News::Fault(text) => {
                let mut notes = self.board.notes();
                if notes.source_error.as_ref() != Some(&text) {
                    tracing::error!(error = text, "the last good world serves");
                    notes.source_error = Some(text);
                }
            }
        }
    }

    /// Compares kernel and world, repairs, reports; and notices namespaces that changed behind their paths.
    fn audit(&mut self) -> Result<(), Fatal> {
        if !self.keeper.workers.iter().all(Worker::is_alive) {
            // Captured connections would wait for a worker that never comes; a restart brings it back.
            return Err(Fatal { exit: Exit::Runtime, message: "a worker died".to_owned() });
        }
        for finding in self.keeper.capture.audit() {
            let what = match &finding.pod {
                Some(pod) => format!("pod {pod}: {}", finding.what),
                None => finding.what,
            };
            tracing::warn!(repaired = finding.repaired, "auditor: {what}");
            self.board.found(what, finding.repaired);
        }
        self.find_untold();
        if self.unapplied {
            self.source.again();
        }
        self.flows.prune();
        self.reconcile();
        Ok(())
    }

    /// If events of the kernel were lost, connections may be open that nobody would end when policy
    /// changes: they are looked for.
    fn find_untold(&mut self) {
        match self.keeper.capture.counters().read() {
            Ok(counters) => {
                if std::mem::replace(&mut self.lost, counters.events_lost) != counters.events_lost {
                    tracing::warn!(lost = counters.events_lost, "events of the kernel were lost");
                    self.keeper.find_untold(&mut self.flows);
                }
            }
            Err(error) => tracing::error!(%error, "the kernel's counters cannot be read"),
        }
    }

    fn reconcile(&mut self) {
        self.keeper.reconcile(&mut self.flows);
        self.near.attach(&self.keeper);
        let mut notes = self.board.notes();
        notes.pods = self.keeper.entries();
        notes.unprobed = unprobed(&self.keeper);
    }

    fn kernel_events(&mut self, told: Vec<KernelEvent>) {
        for event in told {
            self.kernel_event(event);
        }
        if self.flows.has_denied() {
            self.flows.end_cancelled();
        }
    }

    fn kernel_event(&mut self, event: KernelEvent) {
        if let KernelEvent::VerdictWanted { cookie, source, to, destination } = event {
            let pair = NearPair { source: cookie, source_ip: source, destination: to, destination_addr: destination };
            return self.near.wanted(pair, &mut self.keeper);
        }
        let owner = self.keeper.by_cookie(event.cookie()).map(|(pod, local)| (pod.clone(), local.clone()));
        let other = event.other().and_then(|cookie| self.keeper.by_cookie(cookie)).map(|(pod, _)| pod.clone());
        if let Some((pod, local)) = owner {
            self.flows.event(&pod, &local, other, event);
        }
    }

    /// New connections go their own way from here on, and new pods start without the plugin; captured connections go
    /// on until the end of the drain.
    fn retire(&mut self, traces: &Traces) {
        self.cni.stop_installing();
        let mut report = CleanupReport::default();
        traces.remove_plugin(&mut report);
        for left in report.left {
            tracing::error!(left, "not removed yet");
        }
        self.keeper.retire(&mut self.flows);
    }

    /// Accepts nothing more, lets what is open finish until the deadline, then ends it. Capture stays, and connections
    /// wait for the next agent, unless pods are let go for good.
    async fn drain(mut self, events: &mut Events, for_good: bool) {
        tracing::info!(open = self.shared.live.len(), "draining");
        for worker in &self.keeper.workers {
            worker.send(WorkerCommand::Drain);
        }
        let deadline = tokio::time::sleep(self.config.drain);
        tokio::pin!(deadline);
        while self.proxied() > 0 {
            tokio::select! {
                () = &mut deadline => break,
                Ok(told) = events.next() => self.kernel_events(told),
                () = tokio::time::sleep(worker::DRAIN_LOOK) => {}
            }
        }
        self.shared.live.for_each(|id, connection| {
            if connection.is_proxied() {
                self.shared.live.cancel(id, CancelReason::DrainDeadline);
            }
        });
        tokio::time::sleep(worker::DRAIN_LOOK).await;
        if for_good {
            self.keeper.forget_all(&mut self.flows);
        }
        for worker in self.keeper.workers.drain(..) {
            worker.join();
        }
        if !self.shared.telemetry.audit().flush(Duration::from_secs(2)) {
            tracing::error!("some audit events could not be written");
        }
        // A socket that nobody answers would make `warren status` say something else than "not running".
        let _ = std::fs::remove_file(socket_path(&self.config.run_dir));
        let _ = std::fs::remove_file(crate::cni::socket_path(&self.config.run_dir));
        announce(&format!("stopped node={}", self.config.node));
    }

    fn proxied(&self) -> usize {
        self.shared.live.snapshot().iter().filter(|(_, connection)| connection.is_proxied()).count()
    }
}

/// Waits for a world; `None` if the agent is told to stop before.
async fn first_world(source: &mut Source) -> Result<Option<Loaded>, Fatal> {
    let runtime = |error: std::io::Error| Fatal::new(Exit::Runtime, "cannot go on", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(runtime)?;
    tokio::select! {
        loaded = source.first() => Ok(Some(loaded)),
        _ = terminate.recv() => Ok(None),
        _ = interrupt.recv() => Ok(None),
    }
}

/// Tells whoever started the agent; nobody listening is no reason to end.
fn announce(what: &str) {
    let _ = writeln!(std::io::stdout(), "warren: {what}");
}

/// Waits until a moment, then for something.
async fn after<T>(moment: Instant, then: impl Future<Output = T>) -> T {
    if moment > Instant::now() {
        tokio::time::sleep_until(moment.into()).await;
    }
    then.await
}

/// Waits until a moment, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// The budgets, with what the command line says of them. Agents elsewhere are given as long to come back as this one.
fn limits(config: &Config) -> Limits {
    let defaults = Limits::default();
    let peer_retry = config.away_wait.min(defaults.peer_retry);
    let pool_warm = if config.warm_tunnels { defaults.pool_warm } else { Duration::ZERO };
    Limits { svid_wait: config.svid_wait, peer_retry, pool_warm, ..defaults }
}

async fn bind_admin(config: &Config) -> Result<TcpListener, Fatal> {
    TcpListener::bind(config.admin)
        .await
        .map_err(|error| Fatal::new(Exit::Socket, format!("--admin {}", config.admin), &error))
}

fn bind_socket(run_dir: &Path) -> Result<UnixListener, Fatal> {
    use std::os::unix::fs::PermissionsExt;
    let path = socket_path(run_dir);
    let bound = || {
        std::fs::create_dir_all(run_dir)?;
        // Capture holds the node's lock by now, so what lies there was left by an agent that is gone.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bound().map_err(|error| Fatal::new(Exit::Socket, path.display().to_string(), &error))
}

fn telemetry(config: &Config, mesh: &MeshConfig) -> Result<Arc<Telemetry>, Fatal> {
    let audit = match &config.audit_log {
        AuditLog::None => AuditTarget::None,
        AuditLog::Stdout => AuditTarget::Stdout,
        AuditLog::File(path) => AuditTarget::File(path.clone()),
    };
    Telemetry::new(TelemetryConfig {
        node: config.node.clone(),
        cluster: mesh.cluster.clone(),
        region: mesh.region.clone(),
        audit,
        queue: AUDIT_QUEUE,
    })
    .map_err(|error| Fatal::new(Exit::Runtime, "--audit-log", &error))
}

fn identity(config: &Config, mesh: &MeshConfig, telemetry: &Arc<Telemetry>) -> Result<Arc<dyn SvidSource>, Fatal> {
    let trust_domain = mesh.trust_domain.clone();
    match &config.identity {
        IdentitySource::Embedded { dir } => {
            let wrong = |error: &dyn std::error::Error| Fatal::new(Exit::Ca, "--ca-dir", error);
            let ca = EmbeddedCaConfig {
                leaf_ttl: config.leaf_ttl,
                ..EmbeddedCaConfig::new(dir.clone(), trust_domain, &config.node)
            };
            let ca = Arc::new(EmbeddedCa::open(ca, telemetry.clone()).map_err(|error| wrong(&error))?);
            ca.start().map_err(|error| wrong(&error))?;
            Ok(ca)
        }
        IdentitySource::Controller { token, kubeconfig } => {
            let namespace = config.system_namespace.clone();
            let controller = controller_id(trust_domain.as_str(), &namespace).parse();
            let controller = controller.map_err(|error: SpiffeIdError| {
                Fatal::new(Exit::Usage, format!("--system-namespace {namespace}"), &error)
            })?;
            let (kubeconfig, token) = (kubeconfig.clone(), token.clone());
            let ca = RemoteCaConfig { kubeconfig, namespace, controller, token, trust_domain };
            let started = RemoteCa::start(ca, telemetry.clone());
            Ok(started.map_err(|error| Fatal::new(Exit::Runtime, "cannot start a thread", &error))?)
        }
    }
}

fn capture(config: &Config) -> Result<NodeCapture, Fatal> {
    NodeCapture::open(CaptureConfig {
        node: config.node.clone(),
        bpffs: Path::new("/sys/fs/bpf").to_owned(),
        run_dir: config.run_dir.clone(),
        mark: config.mark,
        away_wait: config.away_wait,
        tunnel_congestion: config.tunnel_congestion.clone(),
        workers: config.workers,
        route_table: config.route_table,
        near: config.same_node == SameNode::Kernel,
        pod_cgroups: config.pod_cgroups.clone(),
        splice: config.spliced(),
        self_test_timeout: SELF_TEST,
    })
    .map_err(|error: CaptureError| Fatal::new(Exit::Capture, "capture", &error))
}

fn start_workers(config: &Config, shared: &Arc<Shared>, capture: &NodeCapture) -> Result<Vec<Worker>, Fatal> {
    (0..config.workers)
        .map(|index| {
            let heartbeat = (index == 0).then(|| capture.heartbeat());
            Worker::start(index, shared.clone(), heartbeat)
                .map_err(|error| Fatal::new(Exit::Runtime, "cannot start a worker", &error))
        })
        .collect()
}
