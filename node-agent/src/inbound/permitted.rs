//! The stages that tunnelled and plaintext connections share: the policy's permit, and the application it opens.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
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
    let limit = shared.limits.tcp_connect_timeout;
    // A client at the pod's own address needs no borrowed one, and could not be answered through it.
    if source.ip() == application.ip() || source.is_ipv4() != application.is_ipv4() {
        let socket = pod_socket(&pod.netns, application.ip(), &shared.exemption)?;
        return connect_within(limit, socket, application).await;
    }
    let from = |port| app_socket(&pod.netns, (source.ip(), port).into(), shared.mark, &shared.exemption);
    if is_of_the_same_node(shared, pod, source.ip()) {
        for port in shared.dial_ports.draw() {
            let connected = match from(port) {
                Ok(socket) => connect_within(limit, socket, application).await,
                Err(error) => Err(error),
            };
            match connected {
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {}
                connected => return connected,
            }
        }
    }
    connect_within(limit, from(0)?, application).await
}

fn is_of_the_same_node(shared: &Shared, pod: &LocalPod, ip: IpAddr) -> bool {
    let world = shared.world.load();
    let (client, pod) = (world.pod_by_ip(ip), world.pod(&pod.uid));
    client.zip(pod).is_some_and(|(client, pod)| client.node == pod.node)
}
