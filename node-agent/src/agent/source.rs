//! Where the agent's worlds come from, and what follows for how pods are found.

use std::path::PathBuf;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Interval, MissedTickBehavior, interval};
use warren_core::world::{Capabilities, Loaded, MeshConfig, Severity, SourceText, World, load};

use crate::config::{Config, WorldSource};
use crate::exit::{Exit, Fatal};
use crate::pod_netns::{AnnotatedNetns, PodNetns, ProcessNetns};
use crate::world_file::WorldFile;
use crate::world_kube::{Health, KubeWorld};

/// How often the world's files are looked at; a change is taken in once two looks agree.
const WORLD_POLL: Duration = Duration::from_millis(100);

/// What a source tells.
pub(crate) enum News {
    /// The next world.
    World(Box<Loaded>),
    /// It cannot be read, or not be taken over; the last good one serves.
    Fault(String),
}

/// Files, or a cluster.
pub(crate) enum Source {
    Files(Box<Files>),
    Kubernetes { mesh: MeshConfig, worlds: KubeWorld },
}

/// Manifests, and what they were when they were read first.
pub(crate) struct Files {
    defaults: MeshConfig,
    files: WorldFile,
    first: Option<Loaded>,
    mesh: MeshConfig,
    look: Option<Interval>,
}

impl Source {
    /// Reads the files, or begins to watch the cluster.
    pub(crate) fn open(config: &Config) -> Result<Self, Fatal> {
        let mut mesh = MeshConfig::new(config.trust_domain.clone());
        mesh.unknown_destination = config.unknown_destination;
        mesh.incapable_destination = config.incapable_destination;
        mesh.never_enrolled.extend(config.never_enrol.iter().cloned());
        match &config.world {
            WorldSource::Files(path) => Files::open(path.clone(), mesh).map(|files| Self::Files(Box::new(files))),
            WorldSource::Kubernetes { kubeconfig, captured } => {
                mesh.capture_ranges.clone_from(captured);
                // Of files an operator is the author, who knows; in a cluster each agent speaks for itself.
                mesh.unpublished = Capabilities::NONE;
                let worlds = KubeWorld::start(kubeconfig.clone(), mesh.clone())
                    .map_err(|error| Fatal::new(Exit::Runtime, "cannot start a thread", &error))?;
                Ok(Self::Kubernetes { mesh, worlds })
            }
        }
    }

    /// Facts of the mesh, which hold until the agent ends.
    pub(crate) fn mesh(&self) -> MeshConfig {
        match self {
            Self::Files(files) => files.mesh.clone(),
            Self::Kubernetes { mesh, .. } => mesh.clone(),
        }
    }

    /// What finds the namespaces of this source's pods.
    pub(crate) fn finder(&self) -> Box<dyn PodNetns> {
        match self {
            Self::Files(_) => Box::new(AnnotatedNetns),
            Self::Kubernetes { .. } => Box::new(ProcessNetns::new(PathBuf::from("/proc"))),
        }
    }

    /// How the watches of a cluster are.
    pub(crate) fn health(&self) -> Option<Health> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes { worlds, .. } => Some(worlds.health()),
        }
    }

    /// Whether worlds come so often that not each of them is worth a line of the log.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Kubernetes { .. })
    }

    /// The first world.
    pub(crate) async fn first(&mut self) -> Loaded {
        match self {
            Self::Files(files) => match files.first.take() {
                Some(loaded) => loaded,
                None => std::future::pending().await,
            },
            Self::Kubernetes { worlds, .. } => worlds.next().await,
        }
    }

    /// What comes next, given the world in force. Nothing is lost if the caller stops waiting.
    pub(crate) async fn next(&mut self, in_force: &ArcSwap<World>) -> News {
        match self {
            Self::Files(files) => files.next(in_force).await,
            Self::Kubernetes { worlds, .. } => News::World(Box::new(worlds.next().await)),
        }
    }

    /// Offers the last world once more.
    pub(crate) fn again(&mut self) {
        match self {
            Self::Files(files) => files.files.again(),
            Self::Kubernetes { worlds, .. } => worlds.again(),
        }
    }
}

impl Files {
    fn open(path: PathBuf, defaults: MeshConfig) -> Result<Self, Fatal> {
        let (files, texts) = WorldFile::open(path).map_err(|error| Fatal::new(Exit::World, "--world", &error))?;
        let loaded = load(&texts, &defaults, None, 1);
        report(&loaded);
        Ok(Self { defaults, files, mesh: loaded.world.mesh.clone(), first: Some(loaded), look: None })
    }

    async fn next(&mut self, in_force: &ArcSwap<World>) -> News {
        loop {
            let look = self.look.get_or_insert_with(|| {
                let mut look = interval(WORLD_POLL);
                look.set_missed_tick_behavior(MissedTickBehavior::Delay);
                look
            });
            look.tick().await;
            match self.files.poll() {
                Ok(None) => {}
                Ok(Some(texts)) => return self.reload(&texts, &in_force.load()),
                Err(error) => return News::Fault(error.to_string()),
            }
        }
    }

    fn reload(&self, texts: &[SourceText], before: &World) -> News {
        let loaded = load(texts, &self.defaults, Some(before), before.generation + 1);
        let asked = &loaded.world.mesh.trust_domain;
        if *asked != before.mesh.trust_domain {
            return News::Fault(format!(
                "trust domain {asked}: it changes only with a restart; the last good world serves"
            ));
        }
        report(&loaded);
        News::World(Box::new(loaded))
    }
}

fn report(loaded: &Loaded) {
    for rejection in &loaded.rejections {
        match rejection.severity {
            Severity::Error => tracing::error!("refused {rejection}"),
            Severity::Ignored => tracing::info!("ignored {rejection}"),
        }
    }
}
