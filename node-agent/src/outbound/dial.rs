//! Opening the agent's own connections from inside a pod's network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use warren_core::pool::PoolKey;
use warren_core::route::is_tunnelled;
use warren_mesh::hbone::{Connecting, Dialler, Occasion};
use warren_mesh::telemetry::Parties;

use crate::shared::{LocalPod, Shared};
use crate::sys::socket::{connect_within, pod_socket, set_congestion_control};

/// Pause between two tries.
const PEER_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Connects from the pod, at the address of the connection that is carried, outside of capture.
pub(super) async fn from_pod(shared: &Shared, pod: &LocalPod, source: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    connect_from(shared, pod, source, to, None).await
}

async fn connect_from(
    shared: &Shared,
    pod: &LocalPod,
    source: IpAddr,
    to: SocketAddr,
    congestion: Option<&str>,
) -> io::Result<TcpStream> {
    let socket = pod_socket(&pod.netns, source, &shared.exemption)?;
    if let Some(name) = congestion {
        set_congestion_control(socket.as_fd(), name)?;
    }
    connect_within(shared.limits.tcp_connect_timeout, socket, to).await
}

/// Connects to a peer's tunnel port. A refusal means that nobody listens: an agent that restarts, most likely.
async fn to_peer(shared: &Shared, pod: &LocalPod, source: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let until = Instant::now() + shared.limits.peer_retry;
    loop {
        match connect_from(shared, pod, source, to, shared.tunnel_congestion.as_deref()).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {
                sleep(PEER_RETRY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Dials tunnels for one pod.
pub(crate) struct PodDialler {
    shared: Arc<Shared>,
    pod: Arc<LocalPod>,
}

impl PodDialler {
    /// For this pod.
    pub(crate) fn new(shared: Arc<Shared>, pod: Arc<LocalPod>) -> Self {
        Self { shared, pod }
    }
}

impl Dialler for PodDialler {
    fn connect<'a>(&'a self, key: &'a PoolKey) -> Connecting<'a> {
        Box::pin(to_peer(&self.shared, &self.pod, key.source_ip, key.destination))
    }

    /// The world of now decides: a pod that left, whose address is another pod's, or whose node's agent is
    /// gone, is not dialled.
    fn occasion(&self, key: &PoolKey) -> Option<Occasion> {
        let world = self.shared.world.load();
        let source = world.pod(&self.pod.uid)?;
        let peer = world.pod_by_ip(key.destination.ip())?;
        if !is_tunnelled(&world, source, peer) || !key.expected.contains(&peer.identity) {
            return None;
        }
        let snapshot = self.pod.identity().current().ok()?;
        let parties = Parties {
            connection_id: String::new(),
            source_workload: Some(source.workload.name.to_string()),
            destination_workload: Some(peer.workload.name.to_string()),
        };
        (*snapshot.svid.id() == key.source).then_some(Occasion { snapshot, parties })
    }
}
