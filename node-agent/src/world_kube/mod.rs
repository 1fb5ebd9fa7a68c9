//! The world source of a cluster: what the API server tells, kind by kind.
//!
//! Watches and the store that they fill live on a thread of their own: parsing a hundred thousand pods must not keep
//! the control thread from anything. The control thread gets worlds, the newest only.

mod client;
mod error;
mod event;
mod health;
mod kinds;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch as newest};
use warren_core::world::{Kind, Loaded, MeshConfig, ObjectStore, Severity};

pub(crate) use client::Api;
pub(crate) use error::WatchError;
pub(crate) use health::{Health, Standing, WatchHealth};
use kinds::WATCHED;
pub(crate) use kinds::Watched;
use watch::{Told, Watch};

/// What may wait between the watches and the store.
const QUEUE: usize = 1024;
/// How long changes are gathered for one world: a rollout changes many pods within moments.
const GATHER: Duration = Duration::from_millis(50);

/// The world of a cluster.
pub(crate) struct KubeWorld {
    worlds: newest::Receiver<Option<Loaded>>,
    health: Health,
}

impl KubeWorld {
    /// Starts to watch. Nothing that the API server does or fails to do is an error here.
    pub(crate) fn start(kubeconfig: Option<PathBuf>, mesh: MeshConfig) -> std::io::Result<Self> {
        Self::start_with(kubeconfig, mesh, &WATCHED)
    }

    /// The same with what policies and the pods that they bind are made of, and nothing else.
    pub(crate) fn start_policies(kubeconfig: Option<PathBuf>, mesh: MeshConfig) -> std::io::Result<Self> {
        let of_policies = [Kind::Namespace, Kind::Pod, Kind::AuthorizationPolicy, Kind::PeerAuthentication];
        let kinds: Vec<Watched> = WATCHED.into_iter().filter(|watched| of_policies.contains(&watched.kind)).collect();
        Self::start_with(kubeconfig, mesh, &kinds)
    }

    fn start_with(kubeconfig: Option<PathBuf>, mesh: MeshConfig, kinds: &[Watched]) -> std::io::Result<Self> {
        let health = Health::new(kinds);
        let kinds = kinds.to_vec();
        let (send, worlds) = newest::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let watched = health.clone();
        std::thread::Builder::new().name("world".into()).spawn(move || {
            runtime.block_on(async move {
                let (told, heard) = mpsc::channel(QUEUE);
                let unsynced = kinds.iter().map(|watched| watched.kind).collect();
                for kind in kinds {
                    tokio::spawn(Watch::new(kind, kubeconfig.clone(), watched.clone(), told.clone()).run());
                }
                drop(told);
                Collector { store: ObjectStore::new(mesh), unsynced, health: watched, generation: 0 }
                    .run(heard, send)
                    .await;
            });
        })?;
        Ok(Self { worlds, health })
    }

    /// The next world. The first one comes when every kind has been told of completely.
    pub(crate) async fn next(&mut self) -> Loaded {
        loop {
            if self.worlds.changed().await.is_err() {
                // The thread is gone; the last good world serves, and its age tells.
                std::future::pending::<()>().await;
            }
            if let Some(loaded) = self.worlds.borrow_and_update().clone() {
                return loaded;
            }
        }
    }

    /// Offers the newest world once more.
    pub(crate) fn again(&mut self) {
        self.worlds.mark_changed();
    }

    /// How the watches are.
    pub(crate) fn health(&self) -> Health {
        self.health.clone()
    }
}

/// Fills the store and makes worlds of it.
struct Collector {
    store: ObjectStore,
    unsynced: BTreeSet<Kind>,
    health: Health,
    generation: u64,
}

impl Collector {
    async fn run(mut self, mut heard: mpsc::Receiver<Told>, worlds: newest::Sender<Option<Loaded>>) {
        let mut batch = Vec::new();
        while heard.recv_many(&mut batch, QUEUE).await > 0 {
            self.take_all(&mut batch);
            // During the first sync there is nothing to gather for.
            if !self.unsynced.is_empty() {
                continue;
            }
            let until = tokio::time::Instant::now() + GATHER;
            while let Ok(more) = tokio::time::timeout_at(until, heard.recv_many(&mut batch, QUEUE)).await {
                if more == 0 {
                    return;
                }
                self.take_all(&mut batch);
            }
            self.generation += 1;
            let world = self.store.snapshot(self.generation);
            if worlds.send(Some(Loaded { world, rejections: self.store.rejections() })).is_err() {
                return;
            }
        }
    }

    fn take_all(&mut self, batch: &mut Vec<Told>) {
        for told in batch.drain(..) {
            self.take(told);
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Begin(kind) => self.store.begin_list(kind),
            Told::Put(object) => {
                for fault in self.store.put(*object) {
                    match fault.severity {
                        Severity::Error => tracing::error!("refused {fault}"),
                        Severity::Ignored => tracing::debug!("ignored {fault}"),
                    }
                }
            }
            Told::Delete(kind, object) => {
                if let Some(name) = object.name() {
                    self.store.delete(kind, object.namespace().unwrap_or_default(), name);
                }
            }
            Told::End(kind) => {
                let gone = self.store.end_list(kind);
                let objects = self.store.count(kind);
                tracing::info!(kind = kind.as_str(), objects, gone, "listed");
                if let Some(watched) = WATCHED.into_iter().find(|watched| watched.kind == kind) {
                    self.health.set(watched, |one| one.synced = true);
                }
                self.unsynced.remove(&kind);
            }
        }
    }
}
