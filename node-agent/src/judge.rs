//! Judging registered connections: when they come, and again after the world changed, ending those that it no longer
//! allows.

use std::net::{IpAddr, SocketAddr};

use warren_core::policy::{Connection, Denial, Permit};
use warren_core::route;
use warren_core::world::{Pod, World};
use warren_mesh::live::CancelReason;
use warren_mesh::telemetry::Direction;

use crate::shared::{LiveConnection, Shared, Transport};

/// Judges every live connection by the world in force. Returns how many were told to end.
pub(crate) fn judge_again(shared: &Shared) -> usize {
    let world = shared.world.load();
    let mut ended = 0;
    shared.live.for_each(|id, connection| {
        if let Some(reason) = verdict(&world, connection) {
            shared.live.cancel(id, reason);
            ended += 1;
        }
    });
    ended
}

/// Why a connection may no longer exist, if so. Only the destination judges; the source's side ends with it.
fn verdict(world: &World, connection: &LiveConnection) -> Option<CancelReason> {
    let Some(pod) = world.pod(&connection.pod) else { return Some(CancelReason::PodGone) };
    if connection.direction == Direction::Outbound {
        return None;
    }
    if connection.transport == Transport::Probe {
        return no_longer_probed(pod, connection);
    }
    decide(world, pod, connection).err().map(|denial| cancelled_by(&denial))
}

/// Why a probe may no longer exist, if so: policies do not ask for kubelet's identity, but the pod's spec is to name the
/// port.
pub(crate) fn no_longer_probed(pod: &Pod, connection: &LiveConnection) -> Option<CancelReason> {
    let named = pod.probed.contains(&connection.destination.port());
    let reason = || "the pod's spec names the port in no probe and no lifecycle hook any more".to_owned();
    (!named).then(|| CancelReason::PolicyChanged { policy: None, reason: reason() })
}

/// Decides, before there is one, on connections from a pod to another of the same node. The kernel knows both by their
/// network namespaces, so that they count as proven; what it answers is asked again for each connection that comes.
pub(crate) fn decide_near(world: &World, source: &Pod, source_ip: IpAddr, destination: SocketAddr) -> Option<Permit> {
    let pod = route::near(world, source, destination)?;
    let connection = Connection {
        source: Some(&source.identity),
        source_ip,
        destination: pod,
        destination_ip: destination.ip(),
        destination_port: destination.port(),
    };
    world.policy().decide(&connection).ok()
}

/// Decides on a registered inbound connection: the first time and every time after, so that both ask the same.
pub(crate) fn decide(world: &World, pod: &Pod, connection: &LiveConnection) -> Result<Permit, Denial> {
    world.policy().decide(&Connection {
        source: connection.source_identity.as_ref(),
        source_ip: connection.source.ip(),
        destination: pod,
        destination_ip: connection.destination.ip(),
        destination_port: connection.destination.port(),
    })
}

/// A denial as the reason a live connection ends with.
pub(crate) fn cancelled_by(denial: &Denial) -> CancelReason {
    CancelReason::PolicyChanged { policy: denial.policy.as_ref().map(ToString::to_string), reason: denial.to_string() }
}
