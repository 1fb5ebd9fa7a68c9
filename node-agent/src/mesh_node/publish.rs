//! Says what this node can do, by its MeshNode.
//!
//! The object is written when there is something new to say and when the world shows that it is not there: every agent
//! watches all of them. It stays when the agent stops: capture stays as well, and connections wait for the next agent.
//! It goes with its Node, by owner reference.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use tokio::time::{sleep, timeout};
use warren_core::world::{Capabilities, World};
use warren_mesh::identity::SvidSource;
use warren_mesh::telemetry::{FloatGauge, Metrics};

use super::{FORMAT, Identity, MeshNode, MeshNodeSpec};
use crate::config::{Config, WorldSource};
use crate::exit::chain;
use crate::kube_client::{self, NoWay, jitter};
use crate::shared::Shared;

/// How often it is asked whether there is something to say.
const LOOK: Duration = Duration::from_secs(2);
/// How long the world is given to show what was written.
const ECHO: Duration = Duration::from_secs(30);
/// How often the object is compared with what it should be, whatever the world shows.
const COMPARE: Duration = Duration::from_secs(600);
/// First pause after a failure; it doubles up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// How long one try may take.
const TRY: Duration = Duration::from_secs(30);

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    NoWay(#[from] NoWay),
    #[error("the API server says no")]
    Api(#[from] kube::Error),
    #[error("the API server has no Node {0}, with which the object would go")]
    NoNode(String),
    #[error("no answer for {TRY:?}")]
    Silent,
}

/// Where what is to be said comes from.
struct Content {
    svids: Arc<dyn SvidSource>,
}

impl Content {
    fn spec(&self) -> MeshNodeSpec {
        MeshNodeSpec {
            format: FORMAT,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: vec![Capabilities::HBONE.to_owned()],
            identity: self.svids.trust().map(|notes| Identity { bundle: notes.bundle, issuers: notes.issuers }),
        }
    }
}

/// Keeps the MeshNode of this node as it should be.
pub(crate) struct Publisher {
    node: String,
    kubeconfig: Option<PathBuf>,
    content: Content,
    client: Option<kube::Client>,
    /// What was written or found last, and when.
    said: Option<(MeshNodeSpec, Instant)>,
    gauge: FloatGauge,
    trouble: Option<String>,
}

impl Publisher {
    /// For an agent whose world comes from an API server; others have nobody to tell.
    pub(crate) fn of(config: &Config, svids: &Arc<dyn SvidSource>, metrics: &Metrics) -> Option<Self> {
        let WorldSource::Kubernetes { kubeconfig, .. } = &config.world else { return None };
        let help = "Whether the API server has this node's MeshNode as it should be (1) or not (0)";
        Some(Self {
            node: config.node.clone(),
            kubeconfig: kubeconfig.clone(),
            content: Content { svids: svids.clone() },
            client: None,
            said: None,
            gauge: metrics.gauge("warren_mesh_node_published", help),
            trouble: None,
        })
    }

    /// Publishes for ever, once a world is in force.
    pub(crate) async fn run(mut self, shared: Arc<Shared>) {
        let mut pause = PAUSE_FIRST;
        loop {
            let spec = self.content.spec();
            if !self.is_due(&spec, &shared.world.load()) {
                sleep(jitter(LOOK)).await;
                continue;
            }
            match timeout(TRY, self.publish(&spec)).await.unwrap_or(Err(PublishError::Silent)) {
                Ok(()) => {
                    self.said = Some((spec, Instant::now()));
                    self.gauge.set(1.0);
                    self.trouble = None;
                    pause = PAUSE_FIRST;
                }
                Err(error) => {
                    self.failed(&error);
                    sleep(jitter(pause)).await;
                    pause = (pause * 2).min(PAUSE_MOST);
                }
            }
        }
    }

    /// Whether the object has to be looked at. Before the first world is in force this node serves nothing.
    fn is_due(&self, spec: &MeshNodeSpec, world: &World) -> bool {
        let in_force = world.generation > 0;
        let is_shown = world.published(&self.node) == Some(Capabilities::ALL);
        let is_said = self.said.as_ref().is_some_and(|(said, at)| {
            let limit = if is_shown { COMPARE } else { ECHO };
            said == spec && at.elapsed() < limit
        });
        in_force && !is_said
    }

    async fn publish(&mut self, spec: &MeshNodeSpec) -> Result<(), PublishError> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(kube_client::connect(self.kubeconfig.as_deref()).await?).clone(),
        };
        let owner = self.owner(&client).await?;
        let objects: Api<MeshNode> = Api::all(client);
        let options = PostParams::default();
        let Some(mut found) = objects.get_opt(&self.node).await? else {
            let name = Some(self.node.clone());
            let metadata = ObjectMeta { name, owner_references: Some(vec![owner]), ..ObjectMeta::default() };
            objects.create(&options, &MeshNode::new(metadata, spec.clone())).await?;
            tracing::info!(node = self.node, "MeshNode created: this node takes tunnels");
            return Ok(());
        };
        let owners = Some(vec![owner]);
        if found.spec == *spec && found.metadata.owner_references == owners {
            return Ok(());
        }
        // With the version that was found: who wrote meanwhile is not overwritten, but looked at again.
        found.metadata.owner_references = owners;
        found.metadata.managed_fields = None;
        objects.replace(&self.node, &options, &MeshNode::new(found.metadata, spec.clone())).await?;
        tracing::info!(node = self.node, "MeshNode updated");
        Ok(())
    }

    /// The Node with which the object goes. Listed, because the agent may list Nodes and needs no other right to them.
    async fn owner(&self, client: &kube::Client) -> Result<OwnerReference, PublishError> {
        let nodes: Api<Node> = Api::all(client.clone());
        let only = ListParams::default().fields(&format!("metadata.name={}", self.node));
        let node = nodes.list(&only).await?.items.into_iter().next();
        let uid = node.and_then(|node| node.metadata.uid).ok_or_else(|| PublishError::NoNode(self.node.clone()))?;
        Ok(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid,
            ..OwnerReference::default()
        })
    }

    fn failed(&mut self, error: &PublishError) {
        // Certificates and tokens may have been replaced.
        self.client = None;
        self.gauge.set(0.0);
        let text = chain(error);
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(
                node = self.node,
                error = text,
                "MeshNode not published: other nodes refuse this node's pods, or reach them in clear if so configured"
            );
            self.trouble = Some(text);
        }
    }
}
