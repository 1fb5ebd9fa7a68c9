//! The stages that tunnelled and plaintext connections share: the policy's permit, and the application it opens.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::net::TcpStream;
use warren_core::identity::SpiffeId;
use warren_core::policy::{Denial, Permit};
use warren_core::world::Pod;
use warren_mesh::live::{Cancel, LiveGuard};
use warren_mesh::telemetry::{ConnectionRecord, Direction};

use crate::judge::decide;
use crate::shared::{LiveConnection, LocalPod, Shared, Transport};
use crate::sys::socket::{app_socket, connect_within, pod_socket};

/// Who asks for which application.
pub(super) struct Asked {
    pub(super) pod: Arc<Pod>,
    pub(super) source: Option<SpiffeId>,
    pub(super) source_addr: SocketAddr,
    pub(super) application: SocketAddr,
    pub(super) transport: Transport,
}

/// A connection that policy allows, registered so that a later change of policy finds it.
pub(super) struct Permitted {
    permit: Permit,
    source_addr: SocketAddr,
    application: SocketAddr,
    pub(super) live: LiveGuard<LiveConnection>,
    pub(super) cancel: Cancel,
}

/// A permitted connection whose application answers.
pub(super) struct Connected {
    pub(super) app: TcpStream,
    pub(super) live: LiveGuard<LiveConnection>,
    pub(super) cancel: Cancel,
}

impl Asked {
    /// Registers, then decides: a policy that changes in between judges the registered connection again.
    pub(super) fn permit(self, shared: &Shared, record: &mut ConnectionRecord) -> Result<Permitted, Denial> {
        let (live, cancel) = shared.live.register(LiveConnection {
            pod: self.pod.uid.clone(),
            direction: Direction::Inbound,
            transport: self.transport,
            source: self.source_addr,
            destination: self.application,
            source_identity: self.source,
            destination_identity: (self.transport == Transport::Mtls).then(|| self.pod.identity.clone()),
            policy: OnceLock::new(),
            opened: Instant::now(),
        });
        let world = shared.world.load();
        // The pod as of now: its labels may have changed since the stage before.
        let pod = world.pod(&self.pod.uid).unwrap_or(&self.pod);
        let permit = decide(&world, pod, live.info())?;
        record.set_policy(permit.policy());
        let _ = live.info().policy.set(permit.policy().to_string());
        Ok(Permitted { permit, source_addr: self.source_addr, application: self.application, live, cancel })
    }
}

impl Permitted {
    /// Connects to the application in the client's name, spending the permit.
    pub(super) async fn connect(self, shared: &Shared, pod: &LocalPod) -> io::Result<Connected> {
        let Self { permit, source_addr, application, live, cancel } = self;
        let app = application_stream(permit, shared, pod, source_addr, application).await?;
        Ok(Connected { app, live, cancel })
    }
}

async fn application_stream(
    _spent: Permit,
    shared: &Shared,
    pod: &LocalPod,
    source: SocketAddr,
    application: SocketAddr,
) -> io::Result<TcpStream> {
    // A client at the pod's own address needs no borrowed one, and could not be answered through it.
    let socket = if source.ip() == application.ip() || source.is_ipv4() != application.is_ipv4() {
        pod_socket(&pod.netns, application.ip(), &shared.exemption)?
    } else {
        app_socket(&pod.netns, source.ip(), shared.mark, &shared.exemption)?
    };
    connect_within(shared.limits.tcp_connect_timeout, socket, application).await
}
