//! The outbound line: a pod's captured connection on its way to another pod.
//!
//! `Accepted → Sourced → Routed → Tunnelled → copied`. Each stage owns what is known at that point and is consumed by
//! its one method. A line that ends early has its reason recorded, and the application sees a reset.

mod dial;
mod routed;
mod sourced;

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;
use warren_core::addr::{OriginalDst, PeerAddr};
use warren_mesh::telemetry::{ConnectionFacts, ConnectionRecord, Direction, ResponseFlag, WorkloadFacts};

pub(crate) use self::dial::PodDialler;

use crate::budget::Slot;
use crate::context::{Incoming, PodContext};
use crate::ended::Ended;
use crate::outbound::routed::Opened;
use crate::outbound::sourced::Sourced;
use crate::sys::socket::belongs_to;

/// Takes one captured connection from accept to close.
pub(crate) fn serve(context: Rc<PodContext>, incoming: Incoming) -> impl Future<Output = ()> {
    // Boxed: what opening needs is given back before the connection carries a byte.
    let opening = Box::pin(open(context, incoming));
    async move {
        match opening.await {
            Ok(opened) => opened.carry().await,
            Err(Some(ended)) => ended.conclude(),
            Err(None) => {}
        }
    }
}

/// Walks the line up to an open connection; without a word of evidence if it ended before anybody looked at it.
async fn open(context: Rc<PodContext>, incoming: Incoming) -> Result<Opened, Option<Ended>> {
    let accepted = Accepted::new(context, incoming).map_err(|error| {
        tracing::debug!(%error, "a captured connection ended before it was looked at");
        None
    })?;
    let routed = accepted.source()?.route()?;
    Ok(routed.open().await?)
}

/// A connection that `sk_lookup` gave to the pod's outbound listener.
struct Accepted {
    context: Rc<PodContext>,
    tcp: TcpStream,
    slot: Slot,
    peer: PeerAddr,
    dst: OriginalDst,
    opened: Instant,
}

impl Accepted {
    fn new(context: Rc<PodContext>, incoming: Incoming) -> std::io::Result<Self> {
        let dst = OriginalDst::new(incoming.tcp.local_addr()?);
        let peer = PeerAddr::new(incoming.peer);
        Ok(Self { context, tcp: incoming.tcp, slot: incoming.slot, peer, dst, opened: Instant::now() })
    }

    /// Proves that the connection comes from the pod that owns the listener. An address on `lo` can be forged, and a
    /// listener be assigned across namespaces; the namespace's cookie cannot.
    fn source(self) -> Result<Sourced, Ended> {
        let shared = &self.context.shared;
        let world = shared.world.load_full();
        let pod = world.pod(&self.context.pod.uid).cloned();
        let facts = ConnectionFacts {
            connection_id: shared.telemetry.connection_id(),
            direction: Direction::Outbound,
            source: pod.as_ref().map(|pod| WorkloadFacts::of(pod, &world.mesh)),
            destination: None,
            src_addr: self.peer.0,
            dst_addr: self.dst.0,
            service: None,
        };
        let record = ConnectionRecord::open(&shared.telemetry, facts);
        let Some(pod) = pod else {
            return Err(Ended::failed(self.tcp, record, ResponseFlag::NoRoute, "the source pod is not in the world"));
        };
        if !belongs_to(self.tcp.as_fd(), &self.context.pod.netns).unwrap_or(false) {
            return Err(Ended::denied(self.tcp, record, "the connection belongs to another network namespace"));
        }
        if !pod.ips.contains(&self.peer.0.ip()) {
            return Err(Ended::denied(self.tcp, record, "the source address is not the pod's own"));
        }
        Ok(Sourced { accepted: self, world, pod, record })
    }
}
