//! Pods.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::metadata::{Metadata, unknown_mode};
use super::probed::{self, Lifecycle, Probe};
use super::{FieldProblem, typed};
use crate::addr::canonical;
use crate::enrolment::mode::PodFacts;
use crate::identity::PodUid;
use crate::world::manifest::Document;
use crate::world::model::{ContainerPort, Protocol, Workload, WorkloadKind};

const NETNS: &str = "warren.dev/netns";
const IPS: &str = "warren.dev/ips";

/// What a Pod says, apart from what only the whole world can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct PodObject {
    pub(in crate::world) uid: PodUid,
    pub(in crate::world) service_account: String,
    pub(in crate::world) node: String,
    pub(in crate::world) ips: Vec<IpAddr>,
    /// Where the addresses stand, for messages.
    pub(in crate::world) ips_field: String,
    pub(in crate::world) host_ips: Vec<IpAddr>,
    pub(in crate::world) labels: std::collections::BTreeMap<String, String>,
    pub(in crate::world) ready: bool,
    /// What it says and is, as far as enrolment depends on it.
    pub(in crate::world) facts: PodFacts,
    /// Succeeded or failed: its addresses may belong to another pod already.
    pub(in crate::world) is_finished: bool,
    pub(in crate::world) netns: Option<PathBuf>,
    pub(in crate::world) workload: Workload,
    pub(in crate::world) ports: Vec<ContainerPort>,
    /// Where kubelet asks it, in ascending order.
    pub(in crate::world) probed: Vec<u16>,
}

#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    service_account_name: Option<String>,
    host_network: bool,
    runtime_class_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

/// A container, and what kubelet asks it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) ports: Vec<Port>,
    pub(super) restart_policy: String,
    pub(super) liveness_probe: Option<Probe>,
    pub(super) readiness_probe: Option<Probe>,
    pub(super) startup_probe: Option<Probe>,
    pub(super) lifecycle: Option<Lifecycle>,
}

/// A port that a container declares.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) container_port: u16,
    host_port: Option<u16>,
    #[serde(default)]
    protocol: WireProtocol,
}

/// `protocol` of a port, TCP when absent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum WireProtocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl From<WireProtocol> for Protocol {
    fn from(protocol: WireProtocol) -> Self {
        match protocol {
            WireProtocol::Tcp => Self::Tcp,
            WireProtocol::Udp => Self::Udp,
            WireProtocol::Sctp => Self::Sctp,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Ip>,
    #[serde(rename = "hostIP")]
    host_ip: Option<IpAddr>,
    #[serde(rename = "hostIPs")]
    host_ips: Vec<Ip>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Deserialize)]
struct Ip {
    ip: IpAddr,
}

#[derive(Debug, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

pub(super) fn read(document: &Document) -> Result<PodObject, Vec<FieldProblem>> {
    let pod: Pod = typed(&document.root)?;
    let one = |problem| vec![problem];
    let key = &document.key;
    let Pod { metadata, spec, status } = pod;
    let (labels, annotations) = (&metadata.labels, &metadata.annotations);
    let facts = PodFacts::read(labels, annotations, spec.host_network, spec.runtime_class_name.as_deref())
        .map_err(|error| one(unknown_mode(error)))?;
    let service_account = spec.service_account_name.filter(|sa| !sa.is_empty());
    let (ips, ips_field) = pod_ips(&metadata, &status, spec.host_network).map_err(one)?;
    Ok(PodObject {
        uid: uid(&metadata, &key.namespace, &key.name).map_err(one)?,
        service_account: service_account.unwrap_or_else(|| "default".to_owned()),
        node: spec.node_name,
        probed: probed::ports(&spec.containers, &spec.init_containers, &ips),
        ips,
        ips_field,
        host_ips: merged(status.host_ip, &status.host_ips),
        ready: metadata.deletion_timestamp.is_none() && is_ready(status.conditions.as_deref()),
        facts,
        is_finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        netns: netns(&metadata).map_err(one)?,
        workload: workload(&metadata, &key.name),
        ports: spec.init_containers.iter().chain(&spec.containers).flat_map(ports).collect(),
        labels: metadata.labels,
    })
}

/// The UID becomes part of file names, so it is not taken as it comes. The
/// one made from the name cannot collide: names have no underscore.
fn uid(metadata: &Metadata, namespace: &str, name: &str) -> Result<PodUid, FieldProblem> {
    let Some(uid) = metadata.uid.as_deref() else {
        return Ok(PodUid::from(format!("{namespace}_{name}").as_str()));
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !uid.is_empty() && uid.len() <= 64 && uid.chars().all(legal) {
        Ok(PodUid::from(uid))
    } else {
        Err(FieldProblem::new("metadata.uid", "not a UID: a-z A-Z 0-9 - only, at most 64"))
    }
}

fn netns(metadata: &Metadata) -> Result<Option<PathBuf>, FieldProblem> {
    let Some(path) = metadata.annotations.get(NETNS).map(PathBuf::from) else { return Ok(None) };
    if path.is_absolute() {
        Ok(Some(path))
    } else {
        Err(FieldProblem::new(format!("metadata.annotations.{NETNS}"), "not an absolute path"))
    }
}

/// The addresses and the field they come from.
fn pod_ips(metadata: &Metadata, status: &PodStatus, host_network: bool) -> Result<(Vec<IpAddr>, String), FieldProblem> {
    let reported = merged(status.pod_ip, &status.pod_ips);
    let annotated = metadata.annotations.get(IPS).filter(|_| reported.is_empty());
    let (ips, field) = match annotated {
        None if status.pod_ips.is_empty() => (reported, "status.podIP".to_owned()),
        None => (reported, "status.podIPs".to_owned()),
        Some(text) => {
            let field = format!("metadata.annotations.{IPS}");
            let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
            let ips: Result<Vec<IpAddr>, _> = words.map(|w| w.parse().map(canonical)).collect();
            let reason = "not a list of addresses separated by commas";
            (ips.map_err(|_| FieldProblem::new(&field, reason))?, field)
        }
    };
    match ips.iter().find(|ip| !host_network && !is_pod_address(**ip)) {
        None => Ok((ips, field)),
        Some(ip) => Err(FieldProblem::new(field, format!("{ip} cannot be a pod's address"))),
    }
}

fn is_pod_address(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Canonical, each address once, the single one first.
fn merged(first: Option<IpAddr>, all: &[Ip]) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for ip in first.into_iter().chain(all.iter().map(|ip| ip.ip)).map(canonical) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

/// A manifest that no kubelet has reported about counts as ready.
fn is_ready(conditions: Option<&[Condition]>) -> bool {
    conditions.is_none_or(|all| all.iter().any(|c| c.r#type == "Ready" && c.status == "True"))
}

fn ports(container: &Container) -> impl Iterator<Item = ContainerPort> {
    container.ports.iter().map(|port| ContainerPort {
        name: port.name.clone(),
        port: port.container_port,
        host_port: port.host_port.filter(|p| *p != 0),
        protocol: port.protocol.into(),
    })
}

/// The Deployment behind a ReplicaSet and the CronJob behind a Job are told by
/// their names, as Kubernetes forms them.
fn workload(metadata: &Metadata, pod: &str) -> Workload {
    let owner = metadata.owner_references.iter().find(|o| o.controller);
    let owner = owner.or_else(|| metadata.owner_references.first());
    let found = owner.and_then(|owner| match owner.kind.as_str() {
        "Deployment" => Some((WorkloadKind::Deployment, owner.name.as_str())),
        "ReplicaSet" => {
            let hash = metadata.labels.get("pod-template-hash")?;
            let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
            Some((WorkloadKind::Deployment, name))
        }
        "CronJob" => Some((WorkloadKind::CronJob, owner.name.as_str())),
        "Job" => match owner.name.rsplit_once('-') {
            Some((name, minute)) if is_cron_minute(minute) => Some((WorkloadKind::CronJob, name)),
            _ => Some((WorkloadKind::Job, owner.name.as_str())),
        },
        _ => None,
    });
    let (kind, name) = found.unwrap_or((WorkloadKind::Pod, pod));
    Workload { kind, name: name.into() }
}

fn is_cron_minute(text: &str) -> bool {
    (8..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}
