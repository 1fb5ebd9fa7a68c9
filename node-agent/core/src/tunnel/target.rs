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
    let own = |e: &&Endpoint| pod.ips.contains(&e.ip);
    let at = |wanted: Option<IpAddr>| {
        let here = |e: &&Endpoint| wanted.is_none_or(|ip| e.ip == ip);
        let mut ends = service.endpoints.iter().filter(own).filter(here);
        ends.find_map(|e| e.ports.get(&port).copied())
    };
    at(Some(ip)).or_else(|| at(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::{pod, world};

    const WORLD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: case, labels: {app: api}}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: case}
spec: {clusterIP: 10.96.0.1, selector: {app: api}, ports: [{port: 80, targetPort: 8080}, {port: 81, targetPort: 15008}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: case}
spec: {clusterIP: 10.96.0.2, selector: {app: other}, ports: [{port: 80}]}
";

    fn target(dialled: &str, authority: &str) -> Result<String, TargetError> {
        let world = world(WORLD);
        let authority = authority.parse().unwrap();
        let found = inbound_target(&world, pod(&world, "case", "a"), dialled.parse().unwrap(), &authority);
        found.map(|addr| addr.to_string())
    }

    #[test]
    fn always_the_address_that_was_dialled() {
        assert_eq!(target("10.0.0.1:15008", "10.0.0.1:5432"), Ok("10.0.0.1:5432".into()));
        assert_eq!(target("[::ffff:10.0.0.1]:15008", "10.0.0.1:5432"), Ok("10.0.0.1:5432".into()));
        assert_eq!(target("[fd00::1]:15008", "[fd00::1]:80"), Ok("[fd00::1]:80".into()));
        for other in ["10.0.0.2:80", "[fd00::1]:80", "127.0.0.1:80", "10.96.0.1:80"] {
            let error = target("10.0.0.1:15008", other).unwrap_err();
            assert_eq!((error, error.status().as_u16()), (TargetError::Mismatch, 400));
        }
    }

    #[test]
    fn a_host_name_leads_to_the_services_target_port() {
        let api = "api.case.svc.cluster.local";
        assert_eq!(target("10.0.0.1:15008", &format!("{api}:80")), Ok("10.0.0.1:8080".into()));
        assert_eq!(target("[fd00::1]:15008", &format!("{api}:80")), Ok("[fd00::1]:8080".into()));
        let cases = [
            (format!("{api}:82"), TargetError::NoTargetPort),
            (format!("{api}:81"), TargetError::OwnPort),
            ("other.case.svc.cluster.local:80".to_owned(), TargetError::NoTargetPort),
            ("none.case.svc.cluster.local:80".to_owned(), TargetError::UnknownService),
        ];
        for (authority, error) in cases {
            assert_eq!(target("10.0.0.1:15008", &authority), Err(error));
            assert_eq!(error.status().as_u16(), 503);
        }
    }

    #[test]
    fn no_tunnel_into_the_tunnel_and_none_for_a_stranger() {
        assert_eq!(target("10.0.0.1:15008", "10.0.0.1:15008"), Err(TargetError::OwnPort));
        assert_eq!(target("10.0.0.9:15008", "10.0.0.9:80"), Err(TargetError::UnknownWorkload));
    }
}
