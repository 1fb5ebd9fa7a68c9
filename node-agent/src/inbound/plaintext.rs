//! A connection in clear that the kernel gave to the agent because policies apply to the pod.

use std::os::fd::AsFd;
use std::rc::Rc;

use warren_core::addr::canonical_addr;
use warren_mesh::copy::copy_plain;
use warren_mesh::telemetry::{ConnectionFacts, ConnectionRecord, Direction, ResponseFlag, WorkloadFacts};

use super::permitted::Asked;
use crate::context::{Incoming, PodContext};
use crate::ended::Ended;
use crate::shared::Transport;
use crate::sys::socket::belongs_to;

/// Takes one plaintext connection from accept to close.
pub(crate) async fn serve(context: Rc<PodContext>, incoming: Incoming) {
    let dialled = match incoming.tcp.local_addr() {
        Ok(dialled) => canonical_addr(dialled),
        Err(error) => return tracing::debug!(%error, "a plaintext connection ended before it was looked at"),
    };
    if let Err(ended) = walk(&context, incoming, dialled).await {
        ended.conclude();
    }
}

async fn walk(context: &PodContext, incoming: Incoming, dialled: std::net::SocketAddr) -> Result<(), Ended> {
    let shared = &context.shared;
    let Incoming { tcp, peer, slot } = incoming;
    let peer = canonical_addr(peer);
    let world = shared.world.load_full();
    let pod = world.pod(&context.pod.uid).cloned();
    let mut record = ConnectionRecord::open(
        &shared.telemetry,
        ConnectionFacts {
            connection_id: shared.telemetry.connection_id(),
            direction: Direction::Inbound,
            // By address only: good enough to name a caller in a report, never to judge it.
            source: world.pod_by_ip(peer.ip()).map(|pod| WorkloadFacts::of(pod, &world.mesh)),
            destination: pod.as_ref().map(|pod| WorkloadFacts::of(pod, &world.mesh)),
            src_addr: peer,
            dst_addr: dialled,
            service: None,
        },
    );
    record.set_route("plain");
    let Some(pod) = pod else {
        return Err(Ended::failed(tcp, record, ResponseFlag::NoRoute, "the pod is not in the world"));
    };
    if !belongs_to(tcp.as_fd(), &context.pod.netns).unwrap_or(false) {
        return Err(Ended::denied(tcp, record, "the connection belongs to another network namespace"));
    }
    let asked = Asked {
        pod: pod.clone(),
        source: None,
        source_addr: peer,
        application: dialled,
        transport: Transport::Plaintext,
    };
    let permitted = match asked.permit(shared, &mut record) {
        Ok(permitted) => permitted,
        Err(denial) => {
            shared.plaintext_seen(&pod, peer, dialled, "refused");
            return Err(Ended::by_policy(Some(tcp), record, &denial));
        }
    };
    shared.plaintext_seen(&pod, peer, dialled, "agent");
    let connected = match permitted.connect(shared, &context.pod).await {
        Ok(connected) => connected,
        Err(error) => {
            let reason = format!("application {dialled}: {error}");
            return Err(Ended::failed(tcp, record, ResponseFlag::Connect, reason));
        }
    };
    record.established();
    let bytes = record.bytes().clone();
    let outcome = copy_plain(connected.app, tcp, &shared.limits, &connected.cancel, &bytes).await;
    record.finish(&outcome);
    drop((connected.live, slot));
    Ok(())
}
