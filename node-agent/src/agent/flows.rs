//! Connections that run between pods' own sockets, without the agent: those between pods of this node that the kernel
//! vouches for, those in clear that it lets in because the pod is PERMISSIVE and has no policies or because they are
//! kubelet's probes, and those older than the pod's enrolment.
//!
//! They are recorded, listed and judged like all others; what ends one is not a closed socket of ours but the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use warren_core::identity::{PodUid, SpiffeId};
use warren_core::policy::Connection;
use warren_core::route::is_own_port;
use warren_core::world::Pod;
use warren_ebpf_abi::ProbeRefusal;
use warren_mesh::copy::{CopyEnd, CopyOutcome};
use warren_mesh::live::{Cancel, CancelReason, LiveGuard};
use warren_mesh::telemetry::{ConnectionFacts, ConnectionRecord, Direction, ResponseFlag, WorkloadFacts};

use super::probes::{Probes, words};
use crate::capture::{KernelEvent, NearEnd};
use crate::judge::{cancelled_by, decide, no_longer_probed};
use crate::shared::{LiveConnection, LocalPod, Shared, Transport};
use crate::sys::sock_diag::{self, TcpConnection};

/// What stands for the policy that allows a probe: the pod's spec.
const PROBE_POLICY: &str = "probe";

/// A flow as long as it is known to be open.
struct Flow {
    record: ConnectionRecord,
    live: LiveGuard<LiveConnection>,
    cancel: Cancel,
    local: Arc<LocalPod>,
}

/// All flows of this node, by pod and socket cookie.
pub(crate) struct KernelFlows {
    shared: Arc<Shared>,
    flows: BTreeMap<(PodUid, u64), Flow>,
    probes: Probes,
    /// Whether one was denied when it was opened, and is still to be ended.
    denied: bool,
}

/// One flow, as the kernel told of it.
struct Seen {
    socket: u64,
    peer: SocketAddr,
    local: SocketAddr,
    direction: Direction,
    transport: Transport,
    /// The pod at the other end, if the kernel vouches for it.
    attested: Option<Arc<Pod>>,
}

impl KernelFlows {
    /// No flows yet.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let probes = Probes::register(shared.telemetry.metrics());
        Self { shared, flows: BTreeMap::new(), probes, denied: false }
    }

    /// Takes in what a pod had open without the agent when it was enrolled. `near` says whether a connection is one that
    /// an earlier agent admitted, and to which pod its other end belongs; `probe` whether it is a probe that was let in.
    pub(crate) fn adopt(
        &mut self,
        pod: &Arc<Pod>,
        local: &Arc<LocalPod>,
        near: impl Fn(&TcpConnection) -> Option<(NearEnd, Option<Arc<Pod>>)>,
        probe: impl Fn(&TcpConnection) -> bool,
    ) {
        let found = local.netns.enter(|| Ok((sock_diag::tcp_connections()?, sock_diag::listening_ports()?)));
        let (connections, listening) = match found.and_then(|found: std::io::Result<_>| found) {
            Ok(found) => found,
            Err(error) => {
                return tracing::warn!(%error, pod = %pod.uid, "cannot list the pod's earlier connections");
            }
        };
        for connection in connections {
            if !self.is_clear_text(&connection) {
                continue;
            }
            let near = near(&connection);
            let dialled = match &near {
                Some((end, _)) => end.dialled,
                None => !listening.contains(&connection.local.port()),
            };
            let seen = Seen {
                socket: connection.cookie,
                peer: connection.remote,
                local: connection.local,
                direction: if dialled { Direction::Outbound } else { Direction::Inbound },
                transport: match &near {
                    Some(_) => Transport::Kernel,
                    None if probe(&connection) => Transport::Probe,
                    None => Transport::PreEnrolment,
                },
                attested: near.and_then(|(_, peer)| peer),
            };
            self.open(pod, local, seen);
        }
        self.end_cancelled();
    }

    /// Not captured, not the agent's, and not within the pod.
    fn is_clear_text(&self, connection: &TcpConnection) -> bool {
        let mark = self.shared.mark;
        connection.mark & mark.mask != mark.value
            && !connection.local.ip().is_loopback()
            && connection.local.ip() != connection.remote.ip()
            && !is_own_port(connection.local.port())
            && !is_own_port(connection.remote.port())
    }

    /// Takes in what the kernel tells of a pod; `other` is the pod at the other end, if the kernel vouches for it.
    pub(crate) fn event(
        &mut self,
        pod: &Arc<Pod>,
        local_pod: &Arc<LocalPod>,
        other: Option<Arc<Pod>>,
        event: KernelEvent,
    ) {
        let transport = Transport::Kernel;
        match event {
            KernelEvent::FlowOpened { socket, peer, local, .. } => {
                let direction = Direction::Inbound;
                self.open(pod, local_pod, Seen { socket, peer, local, direction, transport, attested: other });
            }
            KernelEvent::ProbeOpened { socket, peer, local, .. } => {
                let (direction, transport) = (Direction::Inbound, Transport::Probe);
                self.open(pod, local_pod, Seen { socket, peer, local, direction, transport, attested: None });
            }
            KernelEvent::NotAProbe { peer, local, why, .. } => {
                tracing::debug!(%peer, %local, "{}; policy decides", words(why));
                self.probes.refused(pod, why);
            }
            KernelEvent::FlowDialled { socket, peer, local, .. } => {
                let direction = Direction::Outbound;
                self.open(pod, local_pod, Seen { socket, peer, local, direction, transport, attested: other });
            }
            KernelEvent::FlowFailed { peer, local, .. } => self.failed(pod, local, peer),
            KernelEvent::VerdictWanted { .. } => {}
            KernelEvent::FlowClosed { socket, received, sent, .. } => {
                self.close(&pod.uid, socket, received, sent);
            }
            KernelEvent::PlaintextRefused { peer, local, no_probe, .. } => self.refused(pod, peer, local, no_probe),
            KernelEvent::ConnectRefused { destination, reason, .. } => {
                self.connect_refused(pod, destination, reason);
            }
        }
    }

    /// Whether a flow was denied as soon as it was seen, so that [`Self::end_cancelled`] has something to do.
    pub(crate) fn has_denied(&self) -> bool {
        self.denied
    }

    /// Ends the flows that were told to end since the last call.
    pub(crate) fn end_cancelled(&mut self) {
        self.denied = false;
        let ended: Vec<_> = self
            .flows
            .iter()
            .filter_map(|(key, flow)| flow.cancel.reason().map(|reason| (key.clone(), reason)))
            .collect();
        for (key, reason) in ended {
            let Some(flow) = self.flows.remove(&key) else { continue };
            if let Err(error) = destroy(&flow.local, key.1) {
                tracing::error!(%error, pod = %key.0, "cannot end a connection that is no longer allowed");
            }
            finish(flow.record, CopyEnd::Cancelled(reason));
        }
    }

    /// Forgets flows that ended without the kernel telling, as those older than the enrolment do.
    pub(crate) fn prune(&mut self) {
        let mut open: BTreeMap<PodUid, BTreeSet<u64>> = BTreeMap::new();
        for ((uid, _), flow) in &self.flows {
            if !open.contains_key(uid) {
                let listed = flow.local.netns.enter(sock_diag::tcp_connections).and_then(|listed| listed);
                // A namespace that cannot be listed is gone, and its connections with it.
                let cookies = listed.unwrap_or_default().iter().map(|connection| connection.cookie).collect();
                open.insert(uid.clone(), cookies);
            }
        }
        let gone: Vec<_> = self
            .flows
            .keys()
            .filter(|(uid, socket)| !open.get(uid).is_some_and(|cookies| cookies.contains(socket)))
            .cloned()
            .collect();
        for key in gone {
            if let Some(flow) = self.flows.remove(&key) {
                finish(flow.record, CopyEnd::Clean);
            }
        }
    }

    /// Forgets a pod that left. Its flows in clear are no longer the agent's business; those that the kernel led past
    /// the network would go on in clear, and end.
    pub(crate) fn forget(&mut self, uid: &PodUid) {
        let keys: Vec<_> = self.flows.keys().filter(|(of, _)| of == uid).cloned().collect();
        for key in keys {
            if let Some(flow) = self.flows.remove(&key) {
                if flow.live.info().source_identity.is_some()
                    && let Err(error) = destroy(&flow.local, key.1)
                {
                    tracing::error!(%error, pod = %uid, "cannot end a connection of a pod that left");
                }
                finish(flow.record, CopyEnd::Cancelled(CancelReason::PodGone));
            }
        }
    }

    fn open(&mut self, pod: &Arc<Pod>, local: &Arc<LocalPod>, seen: Seen) {
        let key = (pod.uid.clone(), seen.socket);
        if self.flows.contains_key(&key) {
            return;
        }
        let (source, destination) = match seen.direction {
            Direction::Inbound => (seen.peer, seen.local),
            Direction::Outbound => (seen.local, seen.peer),
        };
        let mut record = self.record(pod, seen.direction, source, destination);
        record.set_route(seen.transport.as_str());
        let (source_identity, destination_identity) = identities(pod, &seen);
        if let (Some(source), Some(destination)) = (&source_identity, &destination_identity) {
            record.set_attested(source, destination);
        }
        let (live, cancel) = self.shared.live.register(LiveConnection {
            pod: pod.uid.clone(),
            direction: seen.direction,
            transport: seen.transport,
            source,
            destination,
            source_identity,
            destination_identity,
            policy: OnceLock::new(),
            opened: Instant::now(),
        });
        if seen.direction == Direction::Inbound {
            self.denied |= !self.judge(pod, &mut record, &live);
        }
        record.established();
        self.flows.insert(key, Flow { record, live, cancel, local: local.clone() });
    }

    /// The kernel's verdict may be older than the policy in force. False if that denies.
    fn judge(&self, pod: &Arc<Pod>, record: &mut ConnectionRecord, live: &LiveGuard<LiveConnection>) -> bool {
        let world = self.shared.world.load();
        let LiveConnection { source, destination, .. } = *live.info();
        let pod = world.pod(&pod.uid).unwrap_or(pod);
        if live.info().transport == Transport::Probe {
            return self.judge_probe(pod, record, live);
        }
        let in_clear = live.info().source_identity.is_none();
        match decide(&world, pod, live.info()) {
            Ok(permit) => {
                record.set_policy(permit.policy());
                let _ = live.info().policy.set(permit.policy().to_string());
                if in_clear {
                    self.shared.plaintext_seen(pod, source, destination, "pass");
                }
                true
            }
            Err(denial) => {
                if in_clear {
                    self.shared.plaintext_seen(pod, source, destination, "refused");
                }
                self.shared.live.cancel(live.id(), cancelled_by(&denial));
                false
            }
        }
    }

    fn judge_probe(&self, pod: &Pod, record: &mut ConnectionRecord, live: &LiveGuard<LiveConnection>) -> bool {
        if let Some(reason) = no_longer_probed(pod, live.info()) {
            self.probes.refused(pod, ProbeRefusal::PortNotDeclared);
            self.shared.live.cancel(live.id(), reason);
            return false;
        }
        self.probes.passed(pod);
        record.set_policy(PROBE_POLICY);
        let _ = live.info().policy.set(PROBE_POLICY.to_owned());
        true
    }

    fn close(&mut self, uid: &PodUid, socket: u64, received: u64, sent: u64) {
        if let Some(flow) = self.flows.remove(&(uid.clone(), socket)) {
            flow.record.bytes().set(received, sent);
            finish(flow.record, CopyEnd::Clean);
            drop(flow.live);
        }
    }

    fn refused(&self, pod: &Arc<Pod>, peer: SocketAddr, local: SocketAddr, no_probe: Option<ProbeRefusal>) {
        let world = self.shared.world.load();
        let decision = world.policy().decide(&Connection {
            source: None,
            source_ip: peer.ip(),
            destination: pod,
            destination_ip: local.ip(),
            destination_port: local.port(),
        });
        let (reason, policy) = match decision {
            Err(denial) => (denial.to_string(), denial.policy.map(|policy| policy.to_string())),
            Ok(_) => ("plaintext was refused by the policy in force at that moment".to_owned(), None),
        };
        let reason = match no_probe {
            Some(why) => format!("{reason}; {}", words(why)),
            None => reason,
        };
        if let Some(why) = no_probe {
            self.probes.refused(pod, why);
        }
        self.shared.plaintext_seen(pod, peer, local, "refused");
        let mut record = self.record(pod, Direction::Inbound, peer, local);
        record.set_route("kernel");
        record.deny(reason, policy);
    }

    fn failed(&self, pod: &Arc<Pod>, source: SocketAddr, destination: SocketAddr) {
        let mut record = self.record(pod, Direction::Outbound, source, destination);
        record.set_route("kernel");
        record.fail(ResponseFlag::Connect, "the application does not answer");
    }

    fn connect_refused(&self, pod: &Arc<Pod>, destination: SocketAddr, reason: &str) {
        let source = SocketAddr::new(pod.ips.first().copied().unwrap_or(destination.ip()), 0);
        let mut record = self.record(pod, Direction::Outbound, source, destination);
        record.set_route("none");
        record.fail(ResponseFlag::Connect, format!("refused at connect: {reason}"));
    }

    fn record(
        &self,
        pod: &Arc<Pod>,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> ConnectionRecord {
        let world = self.shared.world.load();
        let by_address = |addr: SocketAddr| world.pod_by_ip(addr.ip()).map(|pod| WorkloadFacts::of(pod, &world.mesh));
        let own = Some(WorkloadFacts::of(pod, &world.mesh));
        let (from, to) = match direction {
            Direction::Inbound => (by_address(source), own),
            Direction::Outbound => (own, by_address(destination)),
        };
        let facts = ConnectionFacts {
            connection_id: self.shared.telemetry.connection_id(),
            direction,
            source: from,
            destination: to,
            src_addr: source,
            dst_addr: destination,
            service: None,
        };
        ConnectionRecord::open(&self.shared.telemetry, facts)
    }
}

/// Who is at the source and who at the destination, if the kernel vouches for both.
fn identities(pod: &Pod, seen: &Seen) -> (Option<SpiffeId>, Option<SpiffeId>) {
    let own = seen.attested.is_some().then(|| pod.identity.clone());
    let other = seen.attested.as_ref().map(|other| other.identity.clone());
    match seen.direction {
        Direction::Inbound => (other, own),
        Direction::Outbound => (own, other),
    }
}

fn finish(record: ConnectionRecord, end: CopyEnd) {
    let bytes = record.bytes().clone();
    record.finish(&CopyOutcome { to_app: bytes.to_app(), to_tunnel: bytes.to_tunnel(), end });
}

fn destroy(local: &LocalPod, socket: u64) -> std::io::Result<()> {
    local.netns.enter(|| {
        for connection in sock_diag::tcp_connections()?.iter().filter(|connection| connection.cookie == socket) {
            sock_diag::destroy(connection)?;
        }
        Ok(())
    })?
}
