//! Where an accepted CONNECT leads: always to the pod address that was
//! dialled, never to the address in the authority (hbone.md §9).

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;

use super::authority::Authority;
use crate::addr::canonical;
use crate::route::is_own_port;
use crate::world::{Endpoint, Pod, Service, World};

/// Why a CONNECT leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TargetError {
    /// The authority names another address than the one dialled.
    #[error("the authority is not the address that was dialled")]
    Mismatch,
    /// The port is one of Warren's own: a tunnel into the tunnel.
    #[error("the port belongs to the mesh itself")]
    OwnPort,
    /// The dialled address is not one of the pod's.
    #[error("the dialled address does not belong to the pod")]
    UnknownWorkload,
    /// No service has that host name.
    #[error("no service has that host name")]
    UnknownService,
    /// The service does not lead to this pod at that port.
    #[error("the service does not lead to this pod at that port")]
    NoTargetPort,
}

impl TargetError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Mismatch => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The label for metrics and audit events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Mismatch => "destination_mismatch",
            Self::OwnPort => "illegal_port",
            Self::UnknownWorkload => "unknown_workload",
            Self::UnknownService => "unknown_service",
            Self::NoTargetPort => "no_target_port",
        }
    }
}

/// The application's address for a CONNECT to `authority` that arrived at
/// `dialled`, the local address of the tunnel, in `pod`.
pub fn inbound_target(
    world: &World,
    pod: &Pod,
    dialled: SocketAddr,
    authority: &Authority,
) -> Result<SocketAddr, TargetError> {
    let ip = canonical(dialled.ip());
    if !pod.ips.contains(&ip) {
        return Err(TargetError::UnknownWorkload);
    }
    let port = match authority {
        Authority::Addr(addr) if canonical(addr.ip()) == ip => addr.port(),
        Authority::Addr(_) => return Err(TargetError::Mismatch),
        Authority::Host { host, port } => {
            let service = world.service_by_hostname(host).ok_or(TargetError::UnknownService)?;
            target_port(service, pod, ip, *port).ok_or(TargetError::NoTargetPort)?
        }
    };
    if is_own_port(port) {
        return Err(TargetError::OwnPort);
    }
    Ok(SocketAddr::new(ip, port))
}

/// The pod's port behind a service port. Readiness does not matter here: the
/// source chose this pod, and a pod going down still serves what reaches it.
fn target_port(service: &Service, pod: &Pod, ip: IpAddr, port: u16) -> Option<u16> {
    let own = |e: &&Endpoint| e.pod.as_ref() == Some(&pod.uid);
    let at = |wanted: Option<IpAddr>| {
        let here = |e: &&Endpoint| wanted.is_none_or(|ip| e.ip == ip);
        let mut ends = service.endpoints.iter().filter(own).filter(here);
        ends.find_map(|e| e.ports.get(&port).copied())
    };
    at(Some(ip)).or_else(|| at(None))
}
