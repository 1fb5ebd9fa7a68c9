//! Where a captured connection goes, decided once per connection at the
//! source (hbone.md §10). Plaintext is an explicit answer, never a fallback.

use std::fmt;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::addr::{OriginalDst, canonical_addr};
use crate::identity::SpiffeId;
use crate::world::{
    Endpoint, ExactTarget, IncapableDestination, MeshMode, Pod, Service, ServiceRef, UnknownDestination, World,
};

/// Port on which every pod of the mesh accepts tunnels.
pub const HBONE_PORT: u16 = 15008;

/// Whether a port of a pod is Warren's own, so that no connection may be led
/// to it (hbone.md §18). Warren's other listeners bind to no known port.
pub fn is_own_port(port: u16) -> bool {
    port == HBONE_PORT
}

/// The decision about one outbound connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Refuse it.
    Deny(RouteDenied),
    /// The destination is outside the mesh: plain TCP.
    Plain(PlainRoute),
    /// The chosen endpoint is the source pod itself: inside its own namespace.
    Own(OwnRoute),
    /// Mutual TLS to the destination pod.
    Tunnel(TunnelRoute),
    /// The destination ought to be reached in mutual TLS, and no agent says that it takes tunnels for it.
    Incapable(IncapableRoute),
}

/// Plain TCP to a destination known to be outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainRoute {
    /// Address to connect to, after load balancing.
    pub destination: SocketAddr,
    /// The pod with that address, if it is one.
    pub pod: Option<Arc<Pod>>,
    /// The service that was addressed.
    pub service: Option<ServiceRef>,
}

/// Plain TCP from a pod to itself, by way of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRoute {
    /// The pod's own address and target port.
    pub destination: SocketAddr,
    /// The service that was addressed.
    pub service: Option<ServiceRef>,
}

/// A tunnel to a pod of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelRoute {
    /// Address to dial: the pod's, at [`HBONE_PORT`].
    pub hbone: SocketAddr,
    /// What CONNECT asks for: the pod's address and target port.
    pub authority: SocketAddr,
    /// Identities accepted from the peer; never empty.
    pub expected: Vec<SpiffeId>,
    /// The destination pod.
    pub destination: Arc<Pod>,
    /// The service that was addressed.
    pub service: Option<ServiceRef>,
}

/// A pod that labels want in the mesh, and that no agent serves as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncapableRoute {
    /// The pod's address and target port.
    pub destination: SocketAddr,
    /// The destination pod.
    pub pod: Arc<Pod>,
    /// The service that was addressed.
    pub service: Option<ServiceRef>,
    /// What becomes of the connection, by configuration alone.
    pub fate: IncapableDestination,
}

impl IncapableRoute {
    /// What is to be said of it.
    pub fn reason(&self) -> &'static str {
        match self.fate {
            IncapableDestination::Refuse => {
                "the destination is meant to be in the mesh, but no agent says that it takes tunnels on its node"
            }
            IncapableDestination::Plain => {
                "in clear by --incapable-destination plain: no agent says that it takes tunnels on the destination's node"
            }
        }
    }
}

/// Why a connection has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum RouteDenied {
    /// The world knows nothing at that address.
    #[error("nothing in the world has the destination address")]
    UnknownDestination,
    /// The service has no ready endpoint of the destination's address family
    /// that serves the port.
    #[error("the service has no ready endpoint")]
    NoReadyEndpoint,
    /// The service has no such TCP port.
    #[error("the service has no such TCP port")]
    NoSuchServicePort,
    /// The destination is a loopback address or a port of Warren's own.
    #[error("the destination is a loopback address or a port of the mesh itself")]
    IllegalPort,
    /// The source pod is not in this world.
    #[error("the source pod is not in the world")]
    SourceUnknown,
}

impl RouteDenied {
    /// The label for metrics and audit events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownDestination => "unknown_destination",
            Self::NoReadyEndpoint => "no_ready_endpoint",
            Self::NoSuchServicePort => "no_such_service_port",
            Self::IllegalPort => "illegal_port",
            Self::SourceUnknown => "source_unknown",
        }
    }
}

impl Route {
    /// The label for audit events and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Deny(_) => "none",
            Self::Plain(_) => "plain",
            Self::Own(_) => "own",
            Self::Tunnel(_) => "tunnel",
            Self::Incapable(r) => match r.fate {
                IncapableDestination::Refuse => "none",
                IncapableDestination::Plain => "plain",
            },
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deny(why) => write!(f, "none: {why}"),
            Self::Plain(r) => write!(f, "plain to {}", r.destination),
            Self::Own(r) => write!(f, "own {}", r.destination),
            Self::Tunnel(r) => write!(f, "tunnel to {} by {}", r.authority, r.hbone),
            Self::Incapable(r) => write!(f, "{} to incapable {}", self.as_str(), r.destination),
        }
    }
}

/// Routes one connection of `source` to `dst`. `pick` is a random number that
/// chooses among the ready endpoints of a service.
pub fn outbound(world: &World, source: &Pod, dst: OriginalDst, pick: u64) -> Route {
    match try_outbound(world, source, dst, pick) {
        Ok(route) => route,
        Err(why) => Route::Deny(why),
    }
}

/// The pod that a connection of `source` to `dst` may reach by the kernel
/// alone: it is of the mesh and of the same node, and dialled by its own
/// address. A service goes through the agent, which balances.
pub fn near<'a>(world: &'a World, source: &Pod, dst: SocketAddr) -> Option<&'a Arc<Pod>> {
    match outbound(world, source, OriginalDst(dst), 0) {
        Route::Tunnel(TunnelRoute { destination, authority, service: None, .. })
            if authority == canonical_addr(dst) && destination.node == source.node =>
        {
            world.pod(&destination.uid)
        }
        _ => None,
    }
}

/// Whether a connection of `source` to the pod goes by a tunnel: the pod is of the mesh, and an agent takes tunnels for
/// it.
pub fn is_tunnelled(world: &World, source: &Pod, pod: &Pod) -> bool {
    is_in_mesh(pod) && takes_tunnels(world, source, pod)
}

fn try_outbound(world: &World, source: &Pod, dst: OriginalDst, pick: u64) -> Result<Route, RouteDenied> {
    if world.pod(&source.uid).is_none() {
        return Err(RouteDenied::SourceUnknown);
    }
    let dst = canonical_addr(dst.0);
    if dst.ip().is_loopback() || dst.port() == 0 {
        return Err(RouteDenied::IllegalPort);
    }
    if let Some(service) = world.service_by_vip(dst.ip()) {
        return by_service(world, source, service, dst.ip(), dst.port(), pick);
    }
    if let Some(pod) = world.pod_by_ip(dst.ip()).filter(|pod| !pod.host_network) {
        return to_address(world, source, Some(pod), dst, None);
    }
    match world.exact_target(dst) {
        Some(ExactTarget::Service { service, port }) => by_service(world, source, service, dst.ip(), port, pick),
        Some(ExactTarget::Pod { pod, port }) => {
            let ip = pod.ips.iter().find(|ip| ip.is_ipv4() == dst.is_ipv4());
            let ip = ip.ok_or(RouteDenied::NoReadyEndpoint)?;
            to_address(world, source, Some(pod), SocketAddr::new(*ip, port), None)
        }
        None if world.is_node_address(dst.ip()) => to_address(world, source, world.pod_by_ip(dst.ip()), dst, None),
        None if world.mesh.unknown_destination == UnknownDestination::Plain => {
            to_address(world, source, None, dst, None)
        }
        None => Err(RouteDenied::UnknownDestination),
    }
}

fn by_service(
    world: &World,
    source: &Pod,
    service: &Service,
    vip: IpAddr,
    port: u16,
    pick: u64,
) -> Result<Route, RouteDenied> {
    service.port(port).ok_or(RouteDenied::NoSuchServicePort)?;
    let usable = |e: &Endpoint| e.ready && e.ip.is_ipv4() == vip.is_ipv4() && e.ports.contains_key(&port);
    let lead = |endpoint: &Endpoint| {
        let target = endpoint.ports.get(&port).ok_or(RouteDenied::NoReadyEndpoint)?;
        let destination = SocketAddr::new(endpoint.ip, *target);
        to_address(world, source, world.pod_by_ip(endpoint.ip), destination, Some(service.reference()))
    };
    let drawn = lead(draw(&service.endpoints, usable, pick).ok_or(RouteDenied::NoReadyEndpoint)?)?;
    match drawn {
        // Its share goes to endpoints that are reached in mutual TLS, never to those outside of the mesh: nothing that
        // was to be encrypted leaves in clear because something else failed.
        Route::Incapable(IncapableRoute { fate: IncapableDestination::Refuse, .. }) => {
            let capable =
                |e: &Endpoint| usable(e) && world.pod_by_ip(e.ip).is_some_and(|pod| is_tunnelled(world, source, pod));
            draw(&service.endpoints, capable, scatter(pick)).map_or(Ok(drawn), lead)
        }
        drawn => Ok(drawn),
    }
}

/// Whether labels and everything else say that the pod is of the mesh.
fn is_in_mesh(pod: &Pod) -> bool {
    pod.mode == MeshMode::Ambient && !pod.host_network
}

/// Whether an agent takes tunnels for the pod. On the source's own node it is the one that asks.
fn takes_tunnels(world: &World, source: &Pod, pod: &Pod) -> bool {
    (pod.node == source.node && !pod.node.is_empty()) || world.capabilities(&pod.node).hbone
}

/// One of the usable endpoints, each as likely as any other. They are drawn until one is usable, which takes no longer
/// for a thousand than for one; only where few are usable are they counted.
fn draw(endpoints: &[Endpoint], usable: impl Fn(&Endpoint) -> bool, pick: u64) -> Option<&Endpoint> {
    const DRAWS: usize = 8;
    let at = |pick: u64| endpoints.get(pick.checked_rem(endpoints.len() as u64)? as usize);
    let drawn = iter::successors(Some(pick), |pick| Some(scatter(*pick))).take(DRAWS).filter_map(at);
    drawn.into_iter().find(|endpoint| usable(endpoint)).or_else(|| {
        let count = endpoints.iter().filter(|endpoint| usable(endpoint)).count() as u64;
        let index = scatter(pick).checked_rem(count)?;
        endpoints.iter().filter(|endpoint| usable(endpoint)).nth(index as usize)
    })
}

/// Another random number made of one (SplitMix64).
fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn to_address(
    world: &World,
    source: &Pod,
    pod: Option<&Arc<Pod>>,
    destination: SocketAddr,
    service: Option<ServiceRef>,
) -> Result<Route, RouteDenied> {
    let Some(pod) = pod.filter(|pod| is_in_mesh(pod)) else {
        return Ok(Route::Plain(PlainRoute { destination, pod: pod.cloned(), service }));
    };
    if is_own_port(destination.port()) {
        return Err(RouteDenied::IllegalPort);
    }
    if pod.uid == source.uid {
        return Ok(Route::Own(OwnRoute { destination, service }));
    }
    if !takes_tunnels(world, source, pod) {
        let (pod, fate) = (Arc::clone(pod), world.mesh.incapable_destination);
        return Ok(Route::Incapable(IncapableRoute { destination, pod, service, fate }));
    }
    Ok(Route::Tunnel(TunnelRoute {
        hbone: SocketAddr::new(destination.ip(), HBONE_PORT),
        authority: destination,
        expected: vec![pod.identity.clone()],
        destination: Arc::clone(pod),
        service,
    }))
}

#[cfg(test)]
mod tests;
