//! The world: one immutable snapshot of pods, services and policies, built
//! from manifests and swapped as a whole.

mod addresses;
mod build;
mod builder;
mod intern;
pub mod manifest;
pub mod model;
mod object;
mod projection;
mod shared_map;
pub mod status;
mod store;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

pub use build::{Loaded, load};
pub use manifest::{Kind, ObjectKey, Rejection, Severity, SourceText};
pub use model::{
    Capabilities, CaptureSet, ContainerPort, Endpoint, IncapableDestination, MeshConfig, MeshMode, Pod, Protocol,
    Service, ServicePort, ServiceRef, UnknownDestination, Workload, WorkloadKind,
};
pub use projection::{Projected, Projection};
pub use shared_map::{Difference, SharedMap};
pub use status::{ObjectState, ObjectStatus};
pub use store::ObjectStore;
pub use text::{Labels, Text};

use crate::addr::canonical;
use crate::enrolment::mode::Said;
use crate::identity::PodUid;
use crate::policy::PolicyIndex;
use build::Objects;

/// One snapshot of everything decisions depend on. Snapshots share what they have in common.
#[derive(Debug, Clone)]
pub struct World {
    /// Grows with every snapshot that a source makes.
    pub generation: u64,
    /// Facts of the whole mesh.
    pub mesh: MeshConfig,
    /// All pods.
    pub pods: SharedMap<PodUid, Arc<Pod>>,
    by_node: SharedMap<Text, Arc<BTreeSet<PodUid>>>,
    /// Pods by their own addresses, all of which are canonical.
    addresses: SharedMap<IpAddr, (u64, PodUid)>,
    on_host: SharedMap<IpAddr, Arc<BTreeSet<PodUid>>>,
    nodes: SharedMap<IpAddr, u32>,
    host_ports: SharedMap<(IpAddr, u16), HostPort>,
    node_ports: SharedMap<u16, NodePort>,
    vips: SharedMap<IpAddr, VipOwner>,
    services: SharedMap<ServiceKey, Arc<Service>>,
    /// What the agents say of their nodes.
    capabilities: SharedMap<Text, Capabilities>,
    captured: CaptureSet,
    policy: Arc<PolicyIndex>,
    /// What each namespace says of its pods.
    namespaces: SharedMap<Text, Said>,
    /// Made when somebody asks.
    status: OnceLock<Vec<ObjectStatus>>,
    /// Policies of which a newer text was refused.
    last_good: Arc<BTreeSet<ObjectKey>>,
    /// Every object in force, for the next version of a world from files to fall back to.
    objects: Arc<Objects>,
}

/// What makes a Service, or anything else that has a namespace and a name, the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct ServiceKey {
    namespace: Text,
    name: Text,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who has an address of a Service.
type VipOwner = (u64, ServiceKey);

/// Where a container's `hostPort` leads. Ordered by rank first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort {
    rank: u64,
    pod: PodUid,
    port: u16,
}

/// Where a Service's `nodePort` leads. Ordered by rank first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct NodePort {
    rank: u64,
    service: ServiceKey,
    port: u16,
}

/// What a port of a node leads to.
#[derive(Debug, Clone, Copy)]
pub enum ExactTarget<'a> {
    /// A service's `nodePort`, or a port of its address where that is a
    /// node's own.
    Service {
        /// The service.
        service: &'a Arc<Service>,
        /// Its service port.
        port: u16,
    },
    /// A container's `hostPort`.
    Pod {
        /// The pod.
        pod: &'a Arc<Pod>,
        /// Its container port.
        port: u16,
    },
}

impl World {
    /// A world with nothing in it.
    pub fn empty(mesh: MeshConfig) -> Self {
        load(&[], &mesh, None, 0).world
    }

    /// The pod with that address. Pods on the node's network share their
    /// address; one is returned only when it is alone.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        let ip = canonical(ip);
        let alone = || {
            let sharing = self.on_host.get(&ip)?;
            sharing.first().filter(|_| sharing.len() == 1)
        };
        self.pods.get(self.addresses.get(&ip).map(|(_, uid)| uid).or_else(alone)?)
    }

    /// The pod with that UID.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// The pods of the mesh that the agent of `node` must enrol, wherever their namespaces are, by UID.
    pub fn local_pods(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let here = self.by_node.get(node).into_iter().flat_map(|uids| uids.iter());
        let pods = here.filter_map(|uid| self.pods.get(uid));
        pods.filter(|pod| pod.mode == MeshMode::Ambient && !pod.host_network)
    }

    /// All pods on `node`, in the mesh or not, by UID.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let here = self.by_node.get(node).into_iter().flat_map(|uids| uids.iter());
        here.filter_map(|uid| self.pods.get(uid))
    }

    /// What the labels of each namespace say of its pods.
    pub fn namespaces(&self) -> &SharedMap<Text, Said> {
        &self.namespaces
    }

    /// All services, in an order that depends on the content only.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service with that cluster, external or load-balancer address,
    /// unless the address is a pod's or a node's own.
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        let ip = canonical(ip);
        let (_, key) = self.vips.get(&ip)?;
        if self.addresses.contains_key(&ip) || self.nodes.contains_key(&ip) {
            return None;
        }
        self.services.get(key)
    }

    /// The service with that host name, in any case.
    pub fn service_by_hostname(&self, host: &str) -> Option<&Arc<Service>> {
        let host = host.to_ascii_lowercase();
        let name = host.strip_suffix(".svc.cluster.local")?;
        // Names may contain dots themselves.
        name.match_indices('.').find_map(|(at, _)| {
            let (namespace, name) = (name[at + 1..].into(), name[..at].into());
            self.services.get(&ServiceKey { namespace, name })
        })
    }

    /// What a port of a node leads to, if it belongs to the mesh's services.
    pub fn exact_target(&self, addr: SocketAddr) -> Option<ExactTarget<'_>> {
        let ip = canonical(addr.ip());
        if let Some(entry) = self.host_ports.get(&(ip, addr.port())) {
            return Some(ExactTarget::Pod { pod: self.pods.get(&entry.pod)?, port: entry.port });
        }
        if !self.nodes.contains_key(&ip) {
            return None;
        }
        let own = self.vips.get(&ip).and_then(|(_, key)| self.services.get(key));
        if let Some(service) = own.filter(|service| service.port(addr.port()).is_some()) {
            return Some(ExactTarget::Service { service, port: addr.port() });
        }
        let entry = self.node_ports.get(&addr.port())?;
        Some(ExactTarget::Service { service: self.services.get(&entry.service)?, port: entry.port })
    }

    /// Whether the address is a node's own.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.nodes.contains_key(&canonical(ip))
    }

    /// What the agent of `node` can do for its pods, as far as is known.
    pub fn capabilities(&self, node: &str) -> Capabilities {
        self.capabilities.get(node).copied().unwrap_or(self.mesh.unpublished)
    }

    /// What the agent of `node` says of it; `None` if it says nothing.
    pub fn published(&self, node: &str) -> Option<Capabilities> {
        self.capabilities.get(node).copied()
    }

    /// What the kernel must hand to the agent: the configured ranges and those of Services, every
    /// pod and service address, and single ports of the nodes.
    pub fn captured(&self) -> &CaptureSet {
        &self.captured
    }

    /// The policies in force.
    pub fn policy(&self) -> &PolicyIndex {
        &self.policy
    }

    /// What became of every policy object, in a fixed order.
    pub fn status(&self) -> &[ObjectStatus] {
        self.status.get_or_init(|| status::of(self.policy.bindings(), &self.last_good))
    }
}

#[cfg(test)]
pub(crate) mod tests;
