//! What the world is made of: the mesh, its pods, services and endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::shared_map::SharedMap;
use super::text::{Labels, Text};
use crate::enrolment::mode::{Decision, NEVER_ENROLLED};
use crate::identity::{PodUid, SpiffeId, TrustDomain};

/// Facts that hold for the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// The mesh's own trust domain.
    pub trust_domain: TrustDomain,
    /// Names that policies may use for the own trust domain. `cluster.local`
    /// is always one of them (seeds.md, 004).
    pub trust_domain_aliases: Vec<String>,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// Cluster name, for telemetry.
    pub cluster: String,
    /// Region, for telemetry.
    pub region: String,
    /// Destination ranges captured in addition to every address of the world.
    pub capture_ranges: Vec<IpNet>,
    /// What becomes of a captured connection to an address that the world does not know.
    pub unknown_destination: UnknownDestination,
    /// What a node can do whose agent has said nothing of it.
    pub unpublished: Capabilities,
    /// What becomes of a connection to a pod that ought to be reached by a tunnel and cannot.
    pub incapable_destination: IncapableDestination,
    /// Namespaces whose pods are never enrolled, whatever their labels say.
    pub never_enrolled: Vec<String>,
}

/// What becomes of a connection to an address in a captured range at which the world knows nothing: a Service or pod
/// that the source has not told of yet, an address that belongs to nobody, or a host that a configured range takes in
/// by mistake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownDestination {
    /// It is refused: whether a tunnel belongs there cannot be known.
    #[default]
    Refuse,
    /// It leaves in clear, as without Warren.
    Plain,
}

/// What the agent of a node can do for the node's pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// It takes tunnels for them.
    pub hbone: bool,
}

impl Capabilities {
    /// The word for [`Self::hbone`].
    pub const HBONE: &'static str = "hbone";
    /// Nothing: there is no agent, as far as is known.
    pub const NONE: Self = Self { hbone: false };
    /// All that this release can do.
    pub const ALL: Self = Self { hbone: true };
}

/// What becomes of a connection to a pod whose labels want it in the mesh, on a node whose agent does not say that it
/// takes tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IncapableDestination {
    /// It is refused.
    #[default]
    Refuse,
    /// It passes in clear, and is counted: for the time in which agents come to a cluster's nodes one by one.
    Plain,
}

impl MeshConfig {
    /// The alias of the own trust domain that every Istio policy may use.
    pub const CLUSTER_LOCAL: &'static str = "cluster.local";

    /// A mesh with Istio's usual root namespace and nothing else set.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            trust_domain_aliases: vec![Self::CLUSTER_LOCAL.to_owned()],
            root_namespace: "istio-system".to_owned(),
            cluster: String::new(),
            region: String::new(),
            capture_ranges: Vec::new(),
            unknown_destination: UnknownDestination::Refuse,
            unpublished: Capabilities::ALL,
            incapable_destination: IncapableDestination::Refuse,
            never_enrolled: NEVER_ENROLLED.map(str::to_owned).to_vec(),
        }
    }
}

/// Whether a pod's traffic is Warren's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshMode {
    /// In the mesh: captured, and reached by HBONE.
    Ambient,
    /// Given an identity, and otherwise as if not in the mesh.
    Observe,
    /// Not in the mesh: untouched, and reached in plaintext.
    None,
}

/// Kinds of workload that the `baggage` header can name (hbone.md §7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// An apps/v1 Deployment.
    Deployment,
    /// A batch/v1 CronJob.
    CronJob,
    /// A batch/v1 Job.
    Job,
    /// A pod with no such owner.
    Pod,
}

impl WorkloadKind {
    /// The word used in `k8s.<word>.name`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Job => "job",
            Self::Pod => "pod",
        }
    }
}

/// What a pod is an instance of; for metrics and `baggage`, never for policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Kind of the owner.
    pub kind: WorkloadKind,
    /// Name of the owner, or of the pod when it has none.
    pub name: Text,
}

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerPort {
    /// Name that a Service's `targetPort` may use.
    pub name: Option<String>,
    /// Port inside the pod.
    pub port: u16,
    /// Port of the node that leads here, if any.
    pub host_port: Option<u16>,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Transport protocol of a declared port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the only one Warren carries today.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One pod, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Key of the pod everywhere in Warren.
    pub uid: PodUid,
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `spec.serviceAccountName`, `default` when absent.
    pub service_account: Text,
    /// Node that runs the pod; empty when unknown.
    pub node: Text,
    /// Addresses, canonical, in manifest order.
    pub ips: Arc<[IpAddr]>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Whether services may send to it.
    pub ready: bool,
    /// The name its SVID must carry: computed from the trust domain, the
    /// namespace and the service account (identity.md §13).
    pub identity: SpiffeId,
    /// What became of the wish for it to be in the mesh.
    pub decision: Decision,
    /// Whether it is in the mesh: follows from the decision.
    pub mode: MeshMode,
    /// Path of its network namespace, known for local pods of a standalone
    /// world only.
    pub netns: Option<PathBuf>,
    /// What it is an instance of.
    pub workload: Workload,
    /// Istio's `destination_canonical_service`.
    pub canonical_name: Text,
    /// Istio's `destination_canonical_revision`.
    pub canonical_revision: Text,
    /// Ports its containers declare.
    pub ports: Arc<[ContainerPort]>,
    /// Ports at which kubelet asks it, by probes and lifecycle hooks, in ascending order.
    pub probed: Arc<[u16]>,
    /// Shares the node's network namespace; never captured.
    pub host_network: bool,
    /// Addresses of its node, for `hostPort`s.
    pub host_ips: Arc<[IpAddr]>,
}

/// A service port and the protocol it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Port of the VIP.
    pub port: u16,
    /// Name, needed to match EndpointSlice ports.
    pub name: Option<String>,
    /// Port of every node that leads here, if any.
    pub node_port: Option<u16>,
}

/// One Kubernetes Service, TCP ports only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
    /// `NAME.NAMESPACE.svc.cluster.local`.
    pub hostname: String,
    /// Cluster, external and load-balancer IPs, canonical; empty if headless.
    pub vips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// Where the service leads, in a fixed order.
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// The short handle kept by routes and records.
    pub fn reference(&self) -> ServiceRef {
        ServiceRef {
            namespace: self.namespace.to_string(),
            name: self.name.to_string(),
            hostname: self.hostname.clone(),
        }
    }

    /// The TCP port of that number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// One address behind a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Canonical address. Which pod has it, the world knows.
    pub ip: IpAddr,
    /// Service port → target port. A port missing here is not served.
    pub ports: BTreeMap<u16, u16>,
    /// Whether it may be sent to.
    pub ready: bool,
}

/// Names a service in routes, headers and records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ServiceRef {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `NAME.NAMESPACE.svc.cluster.local`.
    pub hostname: String,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The destinations whose connections the kernel hands to the agent.
///
/// Two versions share what they have in common, so that the kernel's maps follow a change without looking at all of
/// either.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CaptureSet {
    /// Ranges, any port.
    pub ranges: Arc<BTreeSet<IpNet>>,
    /// Addresses of pods and services, any port, and how many there are of each. Some lie within the ranges.
    pub addresses: SharedMap<IpAddr, u32>,
    /// Node addresses, where only some ports belong to the mesh.
    pub exact: Arc<BTreeSet<(IpAddr, u16)>>,
}

impl CaptureSet {
    /// Whether a range takes the address in already.
    pub fn is_covered(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&ip))
    }

    /// Ranges and addresses that no range takes in.
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        let single = self.addresses.keys().filter(|ip| !self.is_covered(**ip)).map(|ip| IpNet::from(*ip));
        self.ranges.iter().copied().chain(single).collect()
    }
}
