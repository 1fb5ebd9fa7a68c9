//! A tunnel that a peer opened to the pod, and the connections in it (hbone.md §9).

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use tokio::net::TcpStream;
use warren_core::addr::canonical_addr;
use warren_core::identity::SpiffeId;
use warren_core::tunnel::{Baggage, ConnectRequest, inbound_target};
use warren_core::world::{Pod, World};
use warren_mesh::copy::copy;
use warren_mesh::hbone::{HboneServer, HboneStream, InboundStream, accept};
use warren_mesh::identity::IdentitySnapshot;
use warren_mesh::live::{Cancel, LiveGuard};
use warren_mesh::telemetry::{
    ConnectionFacts, ConnectionRecord, Direction, HandshakeFacts, Parties, ResponseFlag, WorkloadFacts,
};

use super::permitted::{Asked, Connected, Permitted};
use crate::budget::Slot;
use crate::context::{Incoming, Phase, PodContext, left};
use crate::ended::Ended;
use crate::shared::{LiveConnection, Shared, Transport};
use crate::sys::socket::belongs_to;

/// Takes one tunnel from accept to close; its connections are lines of their own.
pub(crate) async fn serve(context: Rc<PodContext>, incoming: Incoming) {
    let Incoming { tcp, peer, slot } = incoming;
    match Accepted::new(&context, tcp, peer) {
        Ok(accepted) => {
            if let Some(authenticated) = accepted.authenticate().await {
                authenticated.requests().await;
            }
        }
        Err(error) => tracing::debug!(%error, "a tunnel ended before it was looked at"),
    }
    drop(slot);
}

/// A TCP connection to the pod's tunnel port.
struct Accepted {
    context: Rc<PodContext>,
    tcp: TcpStream,
    peer: SocketAddr,
    dialled: SocketAddr,
}

impl Accepted {
    fn new(context: &Rc<PodContext>, tcp: TcpStream, peer: SocketAddr) -> std::io::Result<Self> {
        if !belongs_to(tcp.as_fd(), &context.pod.netns)? {
            return Err(std::io::Error::other("it belongs to another network namespace"));
        }
        let dialled = canonical_addr(tcp.local_addr()?);
        Ok(Self { context: context.clone(), tcp, peer: canonical_addr(peer), dialled })
    }

    /// TLS with the pod's own SVID; the outcome is recorded either way.
    async fn authenticate(self) -> Option<Authenticated> {
        let Self { context, tcp, peer, dialled } = self;
        let shared = context.shared.clone();
        let snapshot = match context.pod.svid(&shared.limits).await {
            Ok(snapshot) => snapshot,
            Err(none) => {
                unidentified(&context, peer, dialled, &none.to_string());
                return None;
            }
        };
        // Never closed; a wait here is back-pressure on peers that all come at once.
        let handshake = context.handshakes.acquire().await;
        let started = Instant::now();
        let outcome = accept(tcp, &snapshot, &shared.limits).await;
        drop(handshake);
        let world = shared.world.load();
        let parties = Parties {
            connection_id: shared.telemetry.connection_id().to_string(),
            source_workload: world.pod_by_ip(peer.ip()).map(|pod| pod.workload.name.to_string()),
            destination_workload: world.pod(&context.pod.uid).map(|pod| pod.workload.name.to_string()),
        };
        let facts = outcome.as_ref().map(|server| server.peer_facts().as_ref());
        let own = snapshot.svid.id();
        shared.telemetry.handshake(&HandshakeFacts::inbound(&parties, own, facts, started.elapsed()));
        let server = outcome.ok()?;
        Some(Authenticated { context, server, snapshot, peer, dialled })
    }
}

/// Records a tunnel that could not be answered for want of the pod's own SVID.
fn unidentified(context: &PodContext, peer: SocketAddr, dialled: SocketAddr, reason: &str) {
    let shared = &context.shared;
    let world = shared.world.load();
    let record = ConnectionRecord::open(
        &shared.telemetry,
        ConnectionFacts {
            connection_id: shared.telemetry.connection_id(),
            direction: Direction::Inbound,
            source: None,
            destination: world.pod(&context.pod.uid).map(|pod| WorkloadFacts::of(pod, &world.mesh)),
            src_addr: peer,
            dst_addr: dialled,
            service: None,
        },
    );
    record.fail(ResponseFlag::IdentityError, reason);
}

/// A tunnel whose peer has proven who it is.
struct Authenticated {
    context: Rc<PodContext>,
    server: HboneServer,
    snapshot: Arc<IdentitySnapshot>,
    peer: SocketAddr,
    dialled: SocketAddr,
}

impl Authenticated {
    /// Serves the tunnel's requests until it is over. Driving the tunnel moves the bytes of all its connections.
    async fn requests(mut self) {
        let mut draining = self.context.phase.subscribe();
        let mut stopping = self.context.phase.subscribe();
        let mut leaving = false;
        loop {
            tokio::select! {
                () = left(&mut stopping, Phase::Draining) => return,
                () = left(&mut draining, Phase::Serving), if !leaving => {
                    leaving = true;
                    self.server.drain().drain();
                }
                next = self.server.next() => match next {
                    Some(Ok(stream)) => {
                        let tunnel = self.tunnel();
                        tokio::task::spawn_local(tunnel.line(stream));
                    }
                    Some(Err(error)) => tracing::debug!(%error, peer = %self.server.peer(), "tunnel broke"),
                    None => return,
                },
            }
        }
    }

    fn tunnel(&self) -> Tunnel {
        Tunnel {
            context: self.context.clone(),
            source: self.server.peer().clone(),
            own: self.snapshot.svid.id().clone(),
            peer: self.peer,
            dialled: self.dialled,
        }
    }
}

/// What every connection of one tunnel has in common.
struct Tunnel {
    context: Rc<PodContext>,
    source: SpiffeId,
    own: SpiffeId,
    peer: SocketAddr,
    dialled: SocketAddr,
}

impl Tunnel {
    fn line(self, stream: InboundStream) -> impl Future<Output = ()> {
        // Boxed: what connecting needs is given back before the connection carries a byte.
        let opening = Box::pin(self.open(stream));
        async move {
            match opening.await {
                Ok(answered) => answered.carry().await,
                Err(ended) => ended.conclude(),
            }
        }
    }

    async fn open(self, stream: InboundStream) -> Result<Answered, Ended> {
        let requested = self.request(stream)?;
        let permitted = requested.permit()?;
        permitted.connect().await
    }

    /// Reads the head and finds the application that it asks for.
    fn request(self, stream: InboundStream) -> Result<Requested, Ended> {
        let shared = self.context.shared.clone();
        let world = shared.world.load_full();
        let pod = world.pod(&self.context.pod.uid).cloned();
        let mut record = ConnectionRecord::open(&shared.telemetry, self.facts(&world, pod.as_ref(), &stream));
        record.set_route("tunnel");
        record.set_mtls(&self.source, &self.own, stream.peer());
        let Some(pod) = pod else {
            return Err(refuse(stream, record, StatusCode::SERVICE_UNAVAILABLE, "the pod is not in the world"));
        };
        let head = match ConnectRequest::from_http(stream.parts(), rand::random()) {
            Ok(head) => head,
            Err(error) => return Err(refuse(stream, record, error.status(), &error.to_string())),
        };
        record.set_trace_id(head.traceparent.trace_id());
        record.set_hbone_addr(&head.authority);
        let application = match inbound_target(&world, &pod, self.dialled, &head.authority) {
            Ok(application) => application,
            Err(error) => return Err(refuse(stream, record, error.status(), &error.to_string())),
        };
        record.set_application(application);
        Ok(Requested { tunnel: self, world, pod, stream, record, application })
    }

    fn facts(&self, world: &World, pod: Option<&Arc<Pod>>, stream: &InboundStream) -> ConnectionFacts {
        // The world's record only if it agrees with the identity that was proven.
        let known = world.pod_by_ip(self.peer.ip()).filter(|pod| pod.identity == self.source);
        let source = match known {
            Some(pod) => WorkloadFacts::of(pod, &world.mesh),
            None => WorkloadFacts::of_peer(&Baggage::from_headers(&stream.parts().headers), &self.source),
        };
        ConnectionFacts {
            connection_id: self.context.shared.telemetry.connection_id(),
            direction: Direction::Inbound,
            source: Some(source),
            destination: pod.map(|pod| WorkloadFacts::of(pod, &world.mesh)),
            src_addr: self.peer,
            dst_addr: self.dialled,
            service: None,
        }
    }
}

/// A well-formed request for an application of this pod.
struct Requested {
    tunnel: Tunnel,
    world: Arc<World>,
    pod: Arc<Pod>,
    stream: InboundStream,
    record: ConnectionRecord,
    application: SocketAddr,
}

impl Requested {
    fn permit(self) -> Result<PermittedRequest, Ended> {
        let Self { tunnel, world, pod, stream, mut record, application } = self;
        let own_baggage = Baggage::of(&pod, &world.mesh);
        let asked = Asked {
            pod,
            source: Some(tunnel.source.clone()),
            source_addr: tunnel.peer,
            application,
            transport: Transport::Mtls,
        };
        match asked.permit(&tunnel.context.shared, &mut record) {
            Ok(permitted) => Ok(PermittedRequest { tunnel, stream, record, permitted, own_baggage, application }),
            Err(denial) => {
                record.set_response_code(StatusCode::UNAUTHORIZED.as_u16());
                stream.refuse(StatusCode::UNAUTHORIZED);
                Err(Ended::by_policy(None, record, &denial))
            }
        }
    }
}

/// A request that policy allows.
struct PermittedRequest {
    tunnel: Tunnel,
    stream: InboundStream,
    record: ConnectionRecord,
    permitted: Permitted,
    own_baggage: Baggage,
    application: SocketAddr,
}

impl PermittedRequest {
    /// Connects the application, and answers 200 only then.
    async fn connect(self) -> Result<Answered, Ended> {
        let Self { tunnel, mut stream, mut record, permitted, own_baggage, application } = self;
        let shared = tunnel.context.shared.clone();
        let slot = shared.budget.take(&tunnel.context.pod.uid, 1).await;
        let connected = tokio::select! {
            connected = permitted.connect(&shared, &tunnel.context.pod) => connected,
            () = stream.reset() => {
                return Err(Ended::failed(None, record, ResponseFlag::Aborted, "the client gave up"));
            }
        };
        let Connected { app, live, cancel } = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let reason = format!("application {application}: {error}");
                return Err(refuse(stream, record, StatusCode::SERVICE_UNAVAILABLE, &reason));
            }
        };
        let stream = match stream.accept(&own_baggage) {
            Ok(stream) => stream,
            Err(error) => {
                return Err(Ended::failed(app, record, ResponseFlag::Aborted, error.to_string()));
            }
        };
        record.set_response_code(StatusCode::OK.as_u16());
        record.established();
        Ok(Answered { shared, app: Rc::new(app), stream, record, live, cancel, slot })
    }
}

/// A connection that both ends have. There may be very many of them that do nothing.
struct Answered {
    shared: Arc<Shared>,
    app: Rc<TcpStream>,
    stream: HboneStream,
    record: ConnectionRecord,
    live: LiveGuard<LiveConnection>,
    cancel: Cancel,
    slot: Slot,
}

impl Answered {
    /// Carries the bytes until both directions have ended.
    #[expect(clippy::manual_async_fn, reason = "an async fn would have room for `self` twice")]
    fn carry(self) -> impl Future<Output = ()> {
        async move {
            let outcome = copy(&self.app, &self.stream, &self.shared.limits, &self.cancel, self.record.bytes()).await;
            drop((self.stream, self.app));
            self.record.finish(&outcome);
            drop((self.live, self.slot));
        }
    }
}

/// Answers a request with an error status; the reason stays here.
fn refuse(stream: InboundStream, mut record: ConnectionRecord, status: StatusCode, reason: &str) -> Ended {
    record.set_response_code(status.as_u16());
    stream.refuse(status);
    Ended::failed(None, record, ResponseFlag::Connect, reason)
}
