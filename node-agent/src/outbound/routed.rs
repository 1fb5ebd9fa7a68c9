//! A captured connection that knows its way: opened, then copied to its end.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use http::StatusCode;
use tokio::net::TcpStream;
use warren_core::identity::SpiffeId;
use warren_core::pool::PoolKey;
use warren_core::route::{IncapableRoute, OwnRoute, PlainRoute, TunnelRoute};
use warren_core::tunnel::{Authority, Baggage, ConnectRequest, Forwarded, TraceParent};
use warren_core::world::{Pod, ServiceRef, World};
use warren_mesh::copy::{copy, copy_plain};
use warren_mesh::hbone::{HboneStream, Open, TunnelError};
use warren_mesh::identity::IdentitySnapshot;
use warren_mesh::live::{Cancel, LiveGuard};
use warren_mesh::telemetry::{ConnectionRecord, Direction, Parties, ResponseFlag, ServiceFacts, WorkloadFacts};

use super::{Accepted, dial};
use crate::budget::Slot;
use crate::context::PodContext;
use crate::ended::Ended;
use crate::shared::{LiveConnection, Transport};

/// The ways a connection may take; denial has ended the line before.
pub(super) enum Way {
    /// In clear, to a destination that is known not to be in the mesh.
    Plain(PlainRoute),
    /// In clear, because configuration says so of destinations that no agent serves yet.
    Migration(IncapableRoute),
    /// Back to the pod itself, without leaving its namespace.
    Own(OwnRoute),
    /// In mutual TLS, to the destination pod's tunnel port.
    Tunnel(TunnelRoute),
}

/// A connection that knows its way.
pub(super) struct Routed {
    pub(super) accepted: Accepted,
    pub(super) world: Arc<World>,
    pub(super) pod: Arc<Pod>,
    pub(super) record: ConnectionRecord,
    pub(super) way: Way,
}

impl Routed {
    /// Opens the way.
    pub(super) async fn open(self) -> Result<Opened, Ended> {
        let Self { accepted, world, pod, mut record, way } = self;
        match way {
            Way::Plain(plain) => {
                describe(&mut record, "plain", plain.pod.as_ref(), &world, plain.service);
                Direct { accepted, record, to: plain.destination }.open().await.map(Opened::direct)
            }
            Way::Migration(incapable) => {
                record.set_remark(incapable.reason());
                describe(&mut record, "plain", Some(&incapable.pod), &world, incapable.service);
                Direct { accepted, record, to: incapable.destination }.open().await.map(Opened::direct)
            }
            Way::Own(own) => {
                describe(&mut record, "own", Some(&pod), &world, own.service);
                Direct { accepted, record, to: own.destination }.open().await.map(Opened::direct)
            }
            Way::Tunnel(route) => {
                describe(&mut record, "tunnel", Some(&route.destination), &world, route.service.clone());
                record.set_hbone_addr(route.authority);
                Tunnelling { accepted, world, pod, record, route }
                    .open()
                    .await
                    .map(|tunnelled| Opened::Tunnelled(Box::new(tunnelled)))
            }
        }
    }
}

/// A connection whose way is open.
pub(super) enum Opened {
    /// Without a tunnel.
    Direct(Box<Connected>),
    /// In one.
    Tunnelled(Box<Tunnelled>),
}

impl Opened {
    fn direct(connected: Connected) -> Self {
        Self::Direct(Box::new(connected))
    }

    /// Carries the bytes until both directions have ended.
    pub(super) async fn carry(self) {
        match self {
            // Boxed: it needs more than a tunnelled connection, and is the rarer one.
            Self::Direct(connected) => Box::pin(connected.carry()).await,
            Self::Tunnelled(tunnelled) => tunnelled.begin().carry().await,
        }
    }
}

pub(super) fn describe(
    record: &mut ConnectionRecord,
    route: &'static str,
    destination: Option<&Arc<Pod>>,
    world: &World,
    service: Option<ServiceRef>,
) {
    record.set_route(route);
    if let Some(pod) = destination {
        record.set_destination(WorkloadFacts::of(pod, &world.mesh));
    }
    if let Some(ServiceRef { namespace, name, hostname }) = service {
        record.set_service(ServiceFacts { namespace, name, hostname });
    }
}

/// A connection that stays TCP.
struct Direct {
    accepted: Accepted,
    record: ConnectionRecord,
    to: std::net::SocketAddr,
}

impl Direct {
    async fn open(self) -> Result<Connected, Ended> {
        let Self { accepted, record, to } = self;
        let context = accepted.context.clone();
        match dial::from_pod(&context.shared, &context.pod, accepted.peer.0.ip(), to).await {
            Ok(other) => Ok(Connected { accepted, record, other }),
            Err(error) => Err(Ended::failed(accepted.tcp, record, ResponseFlag::Connect, format!("{to}: {error}"))),
        }
    }
}

/// An open connection that stays TCP.
pub(super) struct Connected {
    accepted: Accepted,
    record: ConnectionRecord,
    other: TcpStream,
}

impl Connected {
    async fn carry(self: Box<Self>) {
        let Self { accepted, mut record, other } = *self;
        let context = accepted.context.clone();
        let (guard, cancel) = register(&accepted, Transport::Plaintext, None, None);
        record.established();
        let bytes = record.bytes().clone();
        let outcome = copy_plain(accepted.tcp, other, &context.shared.limits, &cancel, &bytes).await;
        record.finish(&outcome);
        drop((guard, accepted.slot));
    }
}

/// A connection on its way into a tunnel.
struct Tunnelling {
    accepted: Accepted,
    world: Arc<World>,
    pod: Arc<Pod>,
    record: ConnectionRecord,
    route: TunnelRoute,
}

impl Tunnelling {
    /// Waits for the pod's SVID, opens a stream to the destination and waits for its 200.
    async fn open(self) -> Result<Tunnelled, Ended> {
        let Self { accepted, world, pod, mut record, route } = self;
        let context = accepted.context.clone();
        let shared = &context.shared;
        let snapshot = match context.pod.svid(&shared.limits).await {
            Ok(snapshot) => snapshot,
            Err(none) => {
                return Err(Ended::failed(accepted.tcp, record, ResponseFlag::IdentityError, none.to_string()));
            }
        };
        let request = connect_request(&accepted, &world, &pod, &route);
        record.set_trace_id(request.traceparent.trace_id());
        let open = Open {
            key: PoolKey::new(snapshot.svid.id().clone(), accepted.peer.0.ip(), &route),
            snapshot: snapshot.clone(),
            request: &request,
            parties: Parties {
                connection_id: record.connection_id().to_string(),
                source_workload: Some(pod.workload.name.to_string()),
                destination_workload: Some(route.destination.workload.name.to_string()),
            },
            early_data: shared.early_data.allowed_to(route.hbone.ip()),
        };
        match context.pool.open(open, &accepted.tcp).await {
            Ok(stream) => Ok(Tunnelled { accepted, record, stream, snapshot }),
            Err(error) => Err(refused(accepted, record, &error)),
        }
    }
}

/// The peer's 401 is its policy's word; everything else is a failure.
fn refused(accepted: Accepted, mut record: ConnectionRecord, error: &TunnelError) -> Ended {
    if let TunnelError::Refused(status) = error {
        record.set_response_code(status.as_u16());
        if *status == StatusCode::UNAUTHORIZED {
            return Ended::denied(accepted.tcp, record, "the destination's policy denies it");
        }
    }
    Ended::failed(accepted.tcp, record, error.response_flag(), error.to_string())
}

fn connect_request(accepted: &Accepted, world: &World, pod: &Pod, route: &TunnelRoute) -> ConnectRequest {
    ConnectRequest {
        authority: Authority::Addr(route.authority),
        baggage: Baggage::of(pod, &world.mesh),
        forwarded: Some(Forwarded {
            client: Some(accepted.peer.0),
            host: route.service.as_ref().map(|service| service.hostname.clone()),
        }),
        traceparent: TraceParent::from_random(rand::random()),
    }
}

/// An open tunnelled connection.
pub(super) struct Tunnelled {
    accepted: Accepted,
    record: ConnectionRecord,
    stream: HboneStream,
    snapshot: Arc<IdentitySnapshot>,
}

impl Tunnelled {
    /// Makes the connection known. What only that needs is gone before the connection waits for bytes.
    fn begin(self: Box<Self>) -> Carried {
        let Self { accepted, mut record, stream, snapshot } = *self;
        let own = snapshot.svid.id().clone();
        let peer = stream.peer().id.clone();
        record.set_mtls(&own, &peer, stream.peer());
        record.set_response_code(StatusCode::OK.as_u16());
        record.established();
        let (guard, cancel) = register(&accepted, Transport::Mtls, Some(own), Some(peer));
        let Accepted { context, tcp, mut slot, .. } = accepted;
        // The other leg is the tunnel's, which many connections share.
        slot.keep(1);
        Carried { context, app: Rc::new(tcp), stream, record, guard, cancel, slot }
    }
}

/// A tunnelled connection that is known, and carries bytes. There may be very many of them that do nothing.
pub(super) struct Carried {
    context: Rc<PodContext>,
    app: Rc<TcpStream>,
    stream: HboneStream,
    record: ConnectionRecord,
    guard: LiveGuard<LiveConnection>,
    cancel: Cancel,
    slot: Slot,
}

impl Carried {
    /// Carries the bytes until both directions have ended.
    #[expect(clippy::manual_async_fn, reason = "an async fn would have room for `self` twice")]
    fn carry(self) -> impl Future<Output = ()> {
        async move {
            let outcome =
                copy(&self.app, &self.stream, &self.context.shared.limits, &self.cancel, self.record.bytes()).await;
            drop((self.stream, self.app));
            self.record.finish(&outcome);
            drop((self.guard, self.slot));
        }
    }
}

fn register(
    accepted: &Accepted,
    transport: Transport,
    source_identity: Option<SpiffeId>,
    destination_identity: Option<SpiffeId>,
) -> (LiveGuard<LiveConnection>, Cancel) {
    accepted.context.shared.live.register(LiveConnection {
        pod: accepted.context.pod.uid.clone(),
        direction: Direction::Outbound,
        transport,
        source: accepted.peer.0,
        destination: accepted.dst.0,
        source_identity,
        destination_identity,
        policy: OnceLock::new(),
        opened: accepted.opened,
    })
}
