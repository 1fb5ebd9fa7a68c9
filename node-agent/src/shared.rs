//! What every thread of the agent may see.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use warren_core::identity::{PodUid, SpiffeId};
use warren_core::world::{Pod, World};
use warren_mesh::identity::{IdentitySnapshot, NoIdentity, PodIdentity};
use warren_mesh::limits::Limits;
use warren_mesh::live::LiveRegistry;
use warren_mesh::telemetry::{Direction, IncapableDestinations, Telemetry};

use crate::budget::Budget;
use crate::capture::{Exemption, Mark};
use crate::config::EarlyData;
use crate::inbound::DialPorts;
use crate::sys::netns::NetNs;

/// How long one waits for the identity that takes the place of one that was taken back.
const NEXT_IDENTITY: Duration = Duration::from_secs(1);

/// State shared by the control thread and the workers.
pub(crate) struct Shared {
    /// The world in force; the control thread swaps it.
    pub(crate) world: ArcSwap<World>,
    /// Evidence.
    pub(crate) telemetry: Arc<Telemetry>,
    /// Connections that are open now.
    pub(crate) live: LiveRegistry<LiveConnection>,
    /// Every budget of the data path.
    pub(crate) limits: Arc<Limits>,
    /// Descriptors for connections.
    pub(crate) budget: Arc<Budget>,
    /// Keeps the agent's own sockets from being captured.
    pub(crate) exemption: Exemption,
    /// From which applications are dialled for clients of this node.
    pub(crate) dial_ports: DialPorts,
    /// Mark of captured connections.
    pub(crate) mark: Mark,
    /// Congestion control of tunnels; `None` is the node's default.
    pub(crate) tunnel_congestion: Option<String>,
    /// Which peers get client bytes before their 200.
    pub(crate) early_data: EarlyData,
    /// Counts connections to pods that no agent serves.
    pub(crate) incapable: IncapableDestinations,
}

impl Shared {
    /// Counts a plaintext connection to an enrolled pod by caller, destination and port; the caller is named by its
    /// address only.
    pub(crate) fn plaintext_seen(&self, pod: &Pod, peer: SocketAddr, local: SocketAddr, verdict: &'static str) {
        let world = self.world.load();
        let caller = world
            .pod_by_ip(peer.ip())
            .map_or_else(|| "unknown".to_owned(), |pod| format!("{}/{}", pod.namespace, pod.workload.name));
        self.telemetry.metrics().plaintext_seen(&caller, &pod.workload.name, &pod.namespace, local.port(), verdict);
    }
}

/// A local pod as the workers know it. The rest is looked up in the world, by UID, for each connection.
pub(crate) struct LocalPod {
    /// Its UID.
    pub(crate) uid: PodUid,
    /// Its network namespace.
    pub(crate) netns: Arc<NetNs>,
    identity: ArcSwap<PodIdentity>,
    held: Semaphore,
}

/// Why a connection cannot have its pod's SVID.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSvid {
    /// There is none, and waiting did not help.
    #[error(transparent)]
    None(#[from] NoIdentity),
    /// So many connections wait for it already that another one is refused at once.
    #[error("too many connections of this pod wait for its SVID")]
    TooManyHeld,
}

impl LocalPod {
    /// A pod as it was enrolled.
    pub(crate) fn new(uid: PodUid, netns: Arc<NetNs>, identity: PodIdentity, limits: &Limits) -> Self {
        let identity = ArcSwap::from_pointee(identity);
        Self { uid, netns, identity, held: Semaphore::new(limits.held_for_svid) }
    }

    /// Its identity, with the SVID when there is one.
    pub(crate) fn identity(&self) -> Arc<PodIdentity> {
        self.identity.load_full()
    }

    /// Gives the pod another identity: its object names another ServiceAccount now.
    pub(crate) fn set_identity(&self, identity: PodIdentity) {
        self.identity.store(Arc::new(identity));
    }

    /// Calls `changed` whenever the SVID, the roots or the whole identity are others, for ever.
    pub(crate) async fn follow_identity(&self, changed: impl Fn()) {
        loop {
            let mut changes = self.identity().changes();
            while changes.next().await {
                changed();
            }
            // Taken back: for another one, which is in place in a moment, or because the pod leaves.
            tokio::time::sleep(NEXT_IDENTITY).await;
            changed();
        }
    }

    /// The SVID for a handshake now. Without one the connection is held, within the limits, and then refused.
    pub(crate) async fn svid(&self, limits: &Limits) -> Result<Arc<IdentitySnapshot>, NoSvid> {
        let identity = self.identity();
        if let Ok(snapshot) = identity.current() {
            return Ok(snapshot);
        }
        let _held = self.held.try_acquire().map_err(|_| NoSvid::TooManyHeld)?;
        Ok(identity.wait(limits.svid_wait).await?)
    }
}

/// How a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// In HBONE.
    Mtls,
    /// In clear, through the agent.
    Plaintext,
    /// In clear, admitted by the kernel without the agent.
    Kernel,
    /// In clear, older than the pod's enrolment.
    PreEnrolment,
    /// In clear, as a probe of the node's host.
    Probe,
}

impl Transport {
    /// The word in `warren status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Plaintext => "plaintext",
            Self::Kernel => "kernel",
            Self::PreEnrolment => "pre-enrolment",
            Self::Probe => "probe",
        }
    }
}

/// What is needed to show a live connection and to judge it again.
pub(crate) struct LiveConnection {
    /// The local pod it belongs to.
    pub(crate) pod: PodUid,
    /// Seen from that pod.
    pub(crate) direction: Direction,
    /// How it is carried.
    pub(crate) transport: Transport,
    /// The caller's address.
    pub(crate) source: SocketAddr,
    /// The address dialled (outbound) or the application's (inbound).
    pub(crate) destination: SocketAddr,
    /// The caller's proven identity.
    pub(crate) source_identity: Option<SpiffeId>,
    /// The server's proven or presented identity.
    pub(crate) destination_identity: Option<SpiffeId>,
    /// The policy that allowed it, once decided.
    pub(crate) policy: OnceLock<String>,
    /// When it was opened.
    pub(crate) opened: Instant,
}

impl LiveConnection {
    /// Whether its bytes go through the agent.
    pub(crate) fn is_proxied(&self) -> bool {
        matches!(self.transport, Transport::Mtls | Transport::Plaintext)
    }

    /// How long it has been open.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }
}
