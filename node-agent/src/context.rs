//! What a worker gives to each line: the pod it serves, and the connection that was accepted.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use warren_mesh::hbone::Pool;

use crate::budget::Slot;
use crate::shared::{LocalPod, Shared};

/// What a pod's listeners and tunnels may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Everything.
    Serving,
    /// Accept nothing; tunnels say GOAWAY and finish their streams.
    Draining,
    /// End now.
    Stopping,
}

/// A pod as the lines of one worker see it.
pub(crate) struct PodContext {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Arc<LocalPod>,
    /// Tunnels of this pod on this worker.
    pub(crate) pool: Pool,
    /// Server handshakes that may be under way at once.
    pub(crate) handshakes: Semaphore,
    /// What listeners and tunnels may still do.
    pub(crate) phase: watch::Sender<Phase>,
}

/// One accepted connection, before anything is known about it.
pub(crate) struct Incoming {
    pub(crate) tcp: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) slot: Slot,
}

/// Waits until the phase is later than `than`.
pub(crate) async fn left(phase: &mut watch::Receiver<Phase>, than: Phase) {
    // An error means that the sender is gone, and with it the pod.
    let _ = phase.wait_for(|phase| *phase > than).await;
}
