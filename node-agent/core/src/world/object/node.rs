//! Nodes and ServiceCIDRs: where nodes are, and from which ranges Services get their addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::{FieldProblem, typed};
use crate::addr::canonical;
use crate::world::manifest::Document;

/// What a Node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct NodeObject {
    /// Its addresses, canonical, without host names.
    pub(in crate::world) addresses: Vec<IpAddr>,
}

/// What a ServiceCIDR says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct ServiceCidrObject {
    pub(in crate::world) cidrs: Vec<IpNet>,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    r#type: String,
    address: String,
}

#[derive(Debug, Deserialize)]
struct ServiceCidr {
    spec: ServiceCidrSpec,
}

#[derive(Debug, Deserialize)]
struct ServiceCidrSpec {
    cidrs: Vec<String>,
}

pub(super) fn read_node(document: &Document) -> Result<NodeObject, Vec<FieldProblem>> {
    let Node { status } = typed(&document.root)?;
    let mut addresses = Vec::new();
    for (i, entry) in status.addresses.iter().enumerate() {
        if !matches!(entry.r#type.as_str(), "InternalIP" | "ExternalIP") {
            continue;
        }
        let ip = entry.address.parse().map(canonical).map_err(|_| {
            let field = format!("status.addresses[{i}].address");
            vec![FieldProblem::new(field, format!("{:?} is not an IP address", entry.address))]
        })?;
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Ok(NodeObject { addresses })
}

pub(super) fn read_service_cidr(document: &Document) -> Result<ServiceCidrObject, Vec<FieldProblem>> {
    let ServiceCidr { spec } = typed(&document.root)?;
    let read = |(i, text): (usize, &String)| {
        let problem = |reason| vec![FieldProblem::new(format!("spec.cidrs[{i}]"), reason)];
        let net: IpNet = text.parse().map_err(|_| problem(format!("{text:?} is not a CIDR")))?;
        match net.prefix_len() {
            // A range that takes in everything would take the node's own connections to anywhere for the cluster's.
            0 => Err(problem("takes in every address".to_owned())),
            _ => Ok(net.trunc()),
        }
    };
    Ok(ServiceCidrObject { cidrs: spec.cidrs.iter().enumerate().map(read).collect::<Result<_, _>>()? })
}
