//! Services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::pod::WireProtocol;
use super::{FieldProblem, typed};
use crate::addr::canonical;
use crate::world::manifest::Document;

/// What a Service says; TCP ports only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct ServiceObject {
    /// Each address with the field it came from.
    pub(in crate::world) vips: Vec<(IpAddr, String)>,
    pub(in crate::world) ports: Vec<ServicePortObject>,
    /// `None` when endpoints come from EndpointSlices only.
    pub(in crate::world) selector: Option<BTreeMap<String, String>>,
    pub(in crate::world) publish_not_ready: bool,
}

/// One TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct ServicePortObject {
    pub(in crate::world) name: Option<String>,
    pub(in crate::world) port: u16,
    pub(in crate::world) target: TargetPort,
    pub(in crate::world) node_port: Option<u16>,
}

/// `targetPort`: a number, or the name of a container's port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a port number from 0 to 65535 or the name of a container port")]
pub(in crate::world) enum TargetPort {
    Number(u16),
    Name(String),
}

#[derive(Debug, Deserialize)]
struct Service {
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    r#type: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Vec<String>,
    ports: Vec<Port>,
    selector: BTreeMap<String, String>,
    publish_not_ready_addresses: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    port: u16,
    target_port: Option<TargetPort>,
    node_port: Option<u16>,
    #[serde(default)]
    protocol: WireProtocol,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<Ingress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ingress {
    ip: Option<String>,
}

pub(super) fn read(document: &Document) -> Result<ServiceObject, Vec<FieldProblem>> {
    let Service { spec, status } = typed(&document.root)?;
    let vips = vips(&spec, &status).map_err(|problem| vec![problem])?;
    let has_selector = !spec.selector.is_empty() && spec.r#type != "ExternalName";
    Ok(ServiceObject {
        vips,
        ports: ports(spec.ports)?,
        selector: has_selector.then_some(spec.selector),
        publish_not_ready: spec.publish_not_ready_addresses,
    })
}

fn vips(spec: &ServiceSpec, status: &ServiceStatus) -> Result<Vec<(IpAddr, String)>, FieldProblem> {
    let single = spec.cluster_ip.iter().map(|ip| (ip, "spec.clusterIP".to_owned()));
    let listed = |list: &'static str| move |(i, ip)| (ip, format!("{list}[{i}]"));
    let cluster = spec.cluster_ips.iter().enumerate().map(listed("spec.clusterIPs"));
    let external = spec.external_ips.iter().enumerate().map(listed("spec.externalIPs"));
    let ingress = status.load_balancer.ingress.iter().enumerate();
    let balanced =
        ingress.filter_map(|(i, entry)| Some((entry.ip.as_ref()?, format!("status.loadBalancer.ingress[{i}].ip"))));
    let mut vips: Vec<(IpAddr, String)> = Vec::new();
    for (text, field) in single.chain(cluster).chain(external).chain(balanced) {
        if text == "None" || text.is_empty() {
            continue;
        }
        let Ok(ip) = text.parse::<IpAddr>().map(canonical) else {
            return Err(FieldProblem::new(field, format!("{text:?} is not an IP address")));
        };
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return Err(FieldProblem::new(field, format!("{ip} cannot be a service's address")));
        }
        if !vips.iter().any(|(known, _)| *known == ip) {
            vips.push((ip, field));
        }
    }
    Ok(vips)
}

fn ports(ports: Vec<Port>) -> Result<Vec<ServicePortObject>, Vec<FieldProblem>> {
    let mut read: Vec<ServicePortObject> = Vec::new();
    for (i, port) in ports.into_iter().enumerate() {
        if port.protocol != WireProtocol::Tcp {
            continue;
        }
        let field = |field| format!("spec.ports[{i}].{field}");
        if port.port == 0 {
            return Err(vec![FieldProblem::new(field("port"), "0 is not a port")]);
        }
        if read.iter().any(|known| known.port == port.port) {
            let reason = format!("TCP port {} is given twice", port.port);
            return Err(vec![FieldProblem::new(field("port"), reason)]);
        }
        let target = match port.target_port {
            None | Some(TargetPort::Number(0)) => TargetPort::Number(port.port),
            Some(target) => target,
        };
        let name = port.name.filter(|name| !name.is_empty());
        let node_port = port.node_port.filter(|p| *p != 0);
        read.push(ServicePortObject { name, port: port.port, target, node_port });
    }
    Ok(read)
}
