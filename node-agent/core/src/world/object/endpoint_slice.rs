//! EndpointSlices.

use std::net::IpAddr;

use serde::Deserialize;

use super::metadata::Metadata;
use super::pod::WireProtocol;
use super::{FieldProblem, typed};
use crate::addr::canonical;
use crate::world::manifest::Document;

const SERVICE: &str = "kubernetes.io/service-name";

/// What an EndpointSlice says; TCP ports and IP addresses only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct EndpointSliceObject {
    /// The service, of the same namespace; `None` belongs to no service.
    pub(in crate::world) service: Option<String>,
    pub(in crate::world) endpoints: Vec<EndpointObject>,
    /// Port name (`None` for the unnamed one) and number.
    pub(in crate::world) ports: Vec<(Option<String>, u16)>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct EndpointObject {
    pub(in crate::world) ip: IpAddr,
    pub(in crate::world) ready: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSlice {
    metadata: Metadata,
    address_type: AddressType,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum AddressType {
    IPv4,
    IPv6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
    #[serde(default)]
    protocol: WireProtocol,
}

pub(super) fn read(document: &Document) -> Result<EndpointSliceObject, Vec<FieldProblem>> {
    let slice: EndpointSlice = typed(&document.root)?;
    let tcp = slice.ports.into_iter().filter(|p| p.protocol == WireProtocol::Tcp);
    let named = |name: Option<String>| name.filter(|name| !name.is_empty());
    let ports = tcp.filter_map(|p| Some((named(p.name), p.port?))).collect();
    let mut endpoints = Vec::new();
    if slice.address_type != AddressType::Fqdn {
        for (i, endpoint) in slice.endpoints.iter().enumerate() {
            // Kubernetes: an absent condition means ready.
            let ready = endpoint.conditions.ready.unwrap_or(true);
            for (j, address) in endpoint.addresses.iter().enumerate() {
                let ip = address.parse().map(canonical).map_err(|_| {
                    let field = format!("endpoints[{i}].addresses[{j}]");
                    vec![FieldProblem::new(field, format!("{address:?} is not an IP address"))]
                })?;
                endpoints.push(EndpointObject { ip, ready });
            }
        }
    }
    let service = slice.metadata.labels.get(SERVICE).cloned();
    Ok(EndpointSliceObject { service, endpoints, ports })
}
