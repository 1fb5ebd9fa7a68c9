//! A pod's programs: a server and many clients, on a thread inside the pod's
//! network namespace. Ending it drops them all at once, as the end of a pod's
//! processes would.

mod client;
mod flow;
mod server;
mod trouble;
mod wire;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, gettid};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use self::client::Client;
use super::lab::{PAIRS, PODS, Pair};
use super::ledger::{Kind, Ledger};

/// How much load there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Profile {
    /// Short connections at once, for each pair.
    pub(super) shorts: usize,
    /// Idle connections of each pair.
    pub(super) idle: usize,
    /// What a stream or an idle connection is planned to last at most.
    pub(super) longest: Duration,
    /// KiB a second of each direction of a stream.
    pub(super) rate: u32,
    /// KiB that a slow reader is sent at once.
    pub(super) unread: u32,
}

impl Profile {
    fn clients(self, kind: Kind) -> usize {
        match kind {
            Kind::Short => self.shorts,
            Kind::Idle => self.idle,
            _ => 1,
        }
    }

    /// Connections open at once, if none fails.
    pub(super) fn at_once(self) -> usize {
        Kind::ALL.map(|kind| self.clients(kind)).iter().sum::<usize>() * PAIRS.len()
    }
}

/// Turns all clients on and off; what is open ends in its order.
#[derive(Debug)]
pub(super) struct Switch {
    on: AtomicBool,
    profile: Profile,
}

impl Switch {
    /// Off at first.
    pub(super) fn new(profile: Profile) -> Self {
        Self { on: AtomicBool::new(false), profile }
    }

    /// Clients make connections, or finish theirs.
    pub(super) fn turn(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn profile(&self) -> Profile {
        self.profile
    }
}

/// What every pod's programs share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) ledger: Arc<Ledger>,
    pub(super) switch: Arc<Switch>,
    pub(super) seed: u64,
}

/// The programs of one pod.
#[derive(Debug)]
pub(super) struct Programs {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// The thread, whose files in /proc show the pod's network.
    task: Pid,
}

impl Programs {
    /// Starts them; they listen when this returns.
    pub(super) fn start(pod: usize, shared: &Shared) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let shared = shared.clone();
        let name = PODS[pod].name;
        let thread = std::thread::Builder::new()
            .name(format!("pod {name}"))
            .spawn(move || run(pod, &shared, stopped, &tell))
            .context("thread for a pod")?;
        let task = told.recv().unwrap_or_else(|_| Err(anyhow!("its thread ended")));
        let task = task.with_context(|| format!("programs of pod {name}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread), task })
    }

    /// The thread inside the pod.
    pub(super) fn task(&self) -> Pid {
        self.task
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(pod: usize, shared: &Shared, stopped: oneshot::Receiver<()>, tell: &mpsc::Sender<Result<Pid>>) {
    // The runtime comes first: what all runtimes of the process share must not be in the first pod's namespace.
    let runtime = Builder::new_current_thread().enable_all().build().context("runtime");
    let runtime = match runtime.and_then(|runtime| enter(pod).map(|()| runtime)) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let listening = server::listen().context("listen");
        let listener = match listening {
            Ok(listener) => listener,
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        tokio::spawn(server::serve(listener, pod, Arc::clone(&shared.ledger)));
        for pair in PAIRS.into_iter().filter(|pair| pair.from == pod) {
            start_clients(pair, shared);
        }
        let _ = tell.send(Ok(gettid()));
        let _ = stopped.await;
    });
}

fn enter(pod: usize) -> Result<()> {
    let path = PODS[pod].netns();
    let netns = File::open(&path).with_context(|| path.display().to_string())?;
    setns(netns, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))
}

fn start_clients(pair: Pair, shared: &Shared) {
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        for number in 0..shared.switch.profile().clients(kind) {
            let own = ((pair.from * PODS.len() + pair.to) * Kind::ALL.len() + place) * 1000 + number;
            let seed = shared.seed.wrapping_mul(1_000_003).wrapping_add(own as u64);
            let (ledger, switch) = (Arc::clone(&shared.ledger), Arc::clone(&shared.switch));
            tokio::spawn(Client::new(pair, kind, ledger, switch, seed).run());
        }
    }
}
