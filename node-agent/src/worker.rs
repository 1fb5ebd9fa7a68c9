//! One worker: a thread with its own runtime that owns its connections from accept to close.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::RuntimeMetrics;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use warren_core::identity::PodUid;
use warren_mesh::copy::reset;
use warren_mesh::hbone::Pool;

use crate::capture::{Heartbeat, WorkerListeners};
use crate::context::{Incoming, Phase, PodContext, left};
use crate::outbound::PodDialler;
use crate::shared::{LocalPod, Shared};
use crate::{inbound, outbound};

/// How often the kernel is told that somebody serves.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// How long the connections of a pod that left get to end by themselves.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// Pause after an accept failed for want of descriptors or memory; trying again at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How often a drain looks whether it is done.
pub(crate) const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// What the control thread asks of a worker.
pub(crate) enum WorkerCommand {
    /// Serve a pod's connections on these listeners.
    Serve {
        /// The pod.
        pod: Arc<LocalPod>,
        /// This worker's share of the pod's listeners.
        listeners: WorkerListeners,
    },
    /// Close a pod's listeners and tunnels.
    Stop(PodUid),
    /// Accept nothing more; let tunnels finish.
    Drain,
}

/// A worker as the control thread holds it.
pub(crate) struct Worker {
    commands: mpsc::UnboundedSender<WorkerCommand>,
    thread: JoinHandle<()>,
    metrics: RuntimeMetrics,
}

impl Worker {
    /// Starts a worker; the one that is given the heartbeat beats it.
    pub(crate) fn start(index: usize, shared: Arc<Shared>, heartbeat: Option<Heartbeat>) -> io::Result<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let metrics = runtime.handle().metrics();
        let thread = std::thread::Builder::new().name(format!("warren-worker-{index}")).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, run(shared, receiver, heartbeat));
        })?;
        Ok(Self { commands, thread, metrics })
    }

    /// Asks for something; a worker that is gone is noticed by [`Self::is_alive`].
    pub(crate) fn send(&self, command: WorkerCommand) {
        let _ = self.commands.send(command);
    }

    /// What its runtime tells of itself, from any thread.
    pub(crate) fn metrics(&self) -> RuntimeMetrics {
        self.metrics.clone()
    }

    /// Whether its thread still runs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends the worker and whatever it still carries.
    pub(crate) fn join(self) {
        drop(self.commands);
        if self.thread.join().is_err() {
            tracing::error!("a worker ended by a panic");
        }
    }
}

struct Served {
    context: Rc<PodContext>,
    loops: JoinSet<()>,
}

async fn run(shared: Arc<Shared>, mut commands: mpsc::UnboundedReceiver<WorkerCommand>, heartbeat: Option<Heartbeat>) {
    if let Some(heartbeat) = heartbeat {
        tokio::task::spawn_local(beat(heartbeat));
    }
    let mut pods: BTreeMap<PodUid, Served> = BTreeMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            WorkerCommand::Serve { pod, listeners } => {
                let uid = pod.uid.clone();
                if let Some(before) = pods.insert(uid, serve(&shared, pod, listeners)) {
                    stop(before);
                }
            }
            WorkerCommand::Stop(uid) => {
                if let Some(served) = pods.remove(&uid) {
                    stop(served);
                }
            }
            WorkerCommand::Drain => {
                for served in pods.values() {
                    served.context.phase.send_replace(Phase::Draining);
                }
            }
        }
    }
}

async fn beat(heartbeat: Heartbeat) {
    let mut tick = tokio::time::interval(HEARTBEAT);
    loop {
        tick.tick().await;
        if let Err(error) = heartbeat.beat() {
            tracing::error!(%error, "cannot write the heartbeat: the kernel will refuse captured connections");
        }
    }
}

fn serve(shared: &Arc<Shared>, pod: Arc<LocalPod>, listeners: WorkerListeners) -> Served {
    let dialler = PodDialler::new(shared.clone(), pod.clone());
    let pool = Pool::new(shared.limits.clone(), shared.telemetry.clone(), dialler);
    let context = Rc::new(PodContext {
        shared: shared.clone(),
        pod,
        pool,
        handshakes: Semaphore::new(shared.limits.inflight_handshakes),
        phase: watch::Sender::new(Phase::Serving),
    });
    let mut loops = JoinSet::new();
    for listener in listeners.outbound {
        loops.spawn_local(accept_loop(listener, context.clone(), 2, outbound::serve));
    }
    for listener in listeners.hbone {
        loops.spawn_local(accept_loop(listener, context.clone(), 1, inbound::hbone::serve));
    }
    for listener in listeners.plaintext {
        loops.spawn_local(accept_loop(listener, context.clone(), 2, inbound::plaintext::serve));
    }
    loops.spawn_local(follow_identity(context.clone()));
    Served { context, loops }
}

/// Tells the pod's tunnels of each change of its SVID, and that nothing is dialled ahead any more once it is not served
/// as before.
async fn follow_identity(context: Rc<PodContext>) {
    let mut phase = context.phase.subscribe();
    let pod = context.pod.clone();
    let changes = pod.follow_identity(|| context.pool.identity_changed());
    tokio::select! {
        () = left(&mut phase, Phase::Serving) => context.pool.stop_dialling_ahead(),
        () = changes => {}
    }
}

/// Ends a pod's lines: listeners at once, connections (which the control thread has cancelled) within the grace.
fn stop(mut served: Served) {
    served.context.phase.send_replace(Phase::Stopping);
    tokio::task::spawn_local(async move {
        let ended = async { while served.loops.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_GRACE, ended).await;
        served.loops.abort_all();
    });
}

/// Accepts while the pod is served. Each connection takes `descriptors` of the budget before it goes on; while it waits
/// for them, the next ones wait in the kernel's backlog.
async fn accept_loop<F>(
    listener: std::net::TcpListener,
    context: Rc<PodContext>,
    descriptors: usize,
    line: fn(Rc<PodContext>, Incoming) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, pod = %context.pod.uid, "listener unusable"),
    };
    let mut phase = context.phase.subscribe();
    let mut lines = JoinSet::new();
    let mut accepted: Option<(TcpStream, SocketAddr)> = None;
    let uid = context.pod.uid.clone();
    loop {
        tokio::select! {
            () = left(&mut phase, Phase::Serving) => break,
            Some(_) = lines.join_next(), if !lines.is_empty() => {}
            next = accept(&listener, &uid), if accepted.is_none() => accepted = Some(next),
            slot = context.shared.budget.take(&uid, descriptors), if accepted.is_some() => {
                if let Some((tcp, peer)) = accepted.take() {
                    lines.spawn_local(line(context.clone(), Incoming { tcp, peer, slot }));
                }
            }
        }
    }
    drop(listener);
    if let Some((tcp, _)) = accepted {
        // Nobody looked at it: a clean end would be an answer.
        reset(tcp);
    }
    while lines.join_next().await.is_some() {}
}

async fn accept(listener: &TcpListener, pod: &PodUid) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_exhausted(&error) => {
                tracing::warn!(%error, %pod, "cannot accept; connections wait in the backlog");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            Err(error) => tracing::debug!(%error, "a connection ended before it was accepted"),
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
