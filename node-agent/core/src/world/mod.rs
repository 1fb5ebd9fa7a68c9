//! The world: one immutable snapshot of pods, services and policies, built
//! from manifests and swapped as a whole.

mod build;
mod index;
pub mod manifest;
pub mod model;
mod object;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

pub use build::{Loaded, load};
pub use manifest::{Rejection, Severity, SourceText};
pub use model::{
    CaptureSet, ContainerPort, Endpoint, MeshConfig, MeshMode, Pod, Protocol, Service, ServicePort, ServiceRef,
    Workload, WorkloadKind,
};
pub use status::{ObjectState, ObjectStatus};

use crate::addr::canonical;
use crate::identity::PodUid;
use crate::policy::PolicyIndex;
use build::Objects;
use index::{ExactEntry, Indexes};

/// One snapshot of everything decisions depend on.
#[derive(Debug, Clone)]
pub struct World {
    /// Grows with every snapshot that a source makes.
    pub generation: u64,
    /// Facts of the whole mesh.
    pub mesh: MeshConfig,
    /// All pods.
    pub pods: BTreeMap<PodUid, Arc<Pod>>,
    services: Vec<Arc<Service>>,
    indexes: Arc<Indexes>,
    policy: Arc<PolicyIndex>,
    status: Vec<ObjectStatus>,
    /// Every object in force, for the next version to fall back to.
    objects: Arc<Objects>,
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
        self.pods.get(self.indexes.pod(canonical(ip))?)
    }

    /// The pod with that UID.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// The pods that the agent of `node` must enrol.
    pub fn local_pods<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.values().filter(move |pod| {
            pod.node == node && pod.mode == MeshMode::Ambient && pod.netns.is_some() && !pod.host_network
        })
    }

    /// All services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The service with that cluster, external or load-balancer address,
    /// unless the address is a node's own.
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.indexes.service(canonical(ip))?)
    }

    /// The service with that host name, in any case.
    pub fn service_by_hostname(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(self.indexes.service_of_host(host)?)
    }

    /// What a port of a node leads to, if it belongs to the mesh's services.
    pub fn exact_target(&self, addr: SocketAddr) -> Option<ExactTarget<'_>> {
        match self.indexes.exact(canonical(addr.ip()), addr.port())? {
            ExactEntry::Service { index, port } => {
                let service = self.services.get(*index)?;
                Some(ExactTarget::Service { service, port: *port })
            }
            ExactEntry::Pod { uid, port } => {
                let pod = self.pods.get(uid)?;
                Some(ExactTarget::Pod { pod, port: *port })
            }
        }
    }

    /// Whether the address is a node's own.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.indexes.is_node(canonical(ip))
    }

    /// What the kernel must hand to the agent: the configured ranges, every
    /// pod and service address, and single ports of the nodes.
    pub fn captured(&self) -> CaptureSet {
        let mut prefixes: BTreeSet<IpNet> = self.mesh.capture_ranges.iter().copied().collect();
        let pods = self.pods.values().filter(|pod| !pod.host_network);
        let vips = self.services.iter().flat_map(|s| s.vips.iter().copied());
        let vips = vips.filter(|vip| !self.indexes.is_node(*vip));
        let single = pods.flat_map(|pod| pod.ips.iter().copied()).chain(vips);
        prefixes.extend(single.map(IpNet::from));
        CaptureSet { prefixes, exact: self.indexes.exact_keys().collect() }
    }

    /// The policies in force.
    pub fn policy(&self) -> &PolicyIndex {
        &self.policy
    }

    /// What became of every policy object, in a fixed order.
    pub fn status(&self) -> &[ObjectStatus] {
        &self.status
    }
}

#[cfg(test)]
pub(crate) mod tests;
