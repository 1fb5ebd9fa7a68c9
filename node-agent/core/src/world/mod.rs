//! The world: one immutable snapshot of pods, services and policies, built
//! from manifests and swapped as a whole.

pub mod manifest;
pub mod model;
pub mod status;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

pub use manifest::{Rejection, Severity, SourceText};
pub use model::{
    CaptureSet, ContainerPort, Endpoint, MeshConfig, MeshMode, Pod, Protocol, Service, ServicePort,
    ServiceRef, Workload, WorkloadKind,
};
pub use status::{ObjectState, ObjectStatus};

use crate::addr::canonical;
use crate::identity::PodUid;

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
    indexes: Indexes,
}

/// Look-ups by key only: nothing iterates over these maps, so their order
/// never reaches an output.
#[derive(Debug, Clone, Default)]
struct Indexes {
    pod_by_ip: HashMap<IpAddr, PodUid>,
    service_by_vip: HashMap<IpAddr, usize>,
    service_by_hostname: HashMap<String, usize>,
    exact: BTreeMap<(IpAddr, u16), ExactEntry>,
    node_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone)]
enum ExactEntry {
    Service { index: usize, port: u16 },
    Pod { uid: PodUid, port: u16 },
}

/// What a port of a node leads to.
#[derive(Debug, Clone, Copy)]
pub enum ExactTarget<'a> {
    /// A service's `nodePort`.
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
        Self::assemble(0, mesh, BTreeMap::new(), Vec::new())
    }

    fn assemble(
        generation: u64,
        mesh: MeshConfig,
        pods: BTreeMap<PodUid, Arc<Pod>>,
        services: Vec<Arc<Service>>,
    ) -> Self {
        let indexes = Indexes::build(&pods, &services);
        Self {
            generation,
            mesh,
            pods,
            services,
            indexes,
        }
    }

    /// The pod with that address. Pods on the node's network share their
    /// address; one is returned only when it is alone.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.pods.get(self.indexes.pod_by_ip.get(&canonical(ip))?)
    }

    /// The pod with that UID.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// The pods that the agent of `node` must enrol.
    pub fn local_pods<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods.values().filter(move |pod| {
            pod.node == node
                && pod.mode == MeshMode::Ambient
                && pod.netns.is_some()
                && !pod.host_network
        })
    }

    /// All services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The service with that cluster, external or load-balancer address.
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services
            .get(*self.indexes.service_by_vip.get(&canonical(ip))?)
    }

    /// The service with that host name, in any case.
    pub fn service_by_hostname(&self, host: &str) -> Option<&Arc<Service>> {
        let host = host.to_ascii_lowercase();
        self.services
            .get(*self.indexes.service_by_hostname.get(&host)?)
    }

    /// What a port of a node leads to, if it belongs to the mesh's services.
    pub fn exact_target(&self, addr: SocketAddr) -> Option<ExactTarget<'_>> {
        match self
            .indexes
            .exact
            .get(&(canonical(addr.ip()), addr.port()))?
        {
            ExactEntry::Service { index, port } => {
                let service = self.services.get(*index)?;
                Some(ExactTarget::Service {
                    service,
                    port: *port,
                })
            }
            ExactEntry::Pod { uid, port } => Some(ExactTarget::Pod {
                pod: self.pods.get(uid)?,
                port: *port,
            }),
        }
    }

    /// Whether the address is a node's own.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.indexes.node_addresses.contains(&canonical(ip))
    }

    /// What the kernel must hand to the agent: the configured ranges, every
    /// pod and service address, and single ports of the nodes.
    pub fn captured(&self) -> CaptureSet {
        let mut prefixes: BTreeSet<IpNet> = self.mesh.capture_ranges.iter().copied().collect();
        let pods = self.pods.values().filter(|pod| !pod.host_network);
        prefixes.extend(
            pods.flat_map(|pod| pod.ips.iter().copied())
                .map(IpNet::from),
        );
        let vips = self.services.iter().flat_map(|s| s.vips.iter().copied());
        prefixes.extend(vips.map(IpNet::from));
        CaptureSet {
            prefixes,
            exact: self.indexes.exact.keys().copied().collect(),
        }
    }
}

impl Indexes {
    fn build(pods: &BTreeMap<PodUid, Arc<Pod>>, services: &[Arc<Service>]) -> Self {
        let mut indexes = Self::default();
        for pod in pods.values() {
            indexes.add_pod(pod);
        }
        indexes.add_host_network_pods(pods);
        for (index, service) in services.iter().enumerate() {
            for vip in &service.vips {
                indexes.service_by_vip.entry(*vip).or_insert(index);
            }
            let hostname = service.hostname.to_ascii_lowercase();
            indexes.service_by_hostname.entry(hostname).or_insert(index);
            indexes.add_node_ports(index, service);
        }
        indexes
    }

    fn add_pod(&mut self, pod: &Pod) {
        self.node_addresses.extend(&pod.host_ips);
        if pod.host_network {
            self.node_addresses.extend(&pod.ips);
            return;
        }
        for ip in &pod.ips {
            self.pod_by_ip.entry(*ip).or_insert_with(|| pod.uid.clone());
        }
        for declared in pod.ports.iter().filter(|p| p.protocol == Protocol::Tcp) {
            let Some(host_port) = declared.host_port else {
                continue;
            };
            for ip in &pod.host_ips {
                let entry = ExactEntry::Pod {
                    uid: pod.uid.clone(),
                    port: declared.port,
                };
                self.exact.entry((*ip, host_port)).or_insert(entry);
            }
        }
    }

    fn add_host_network_pods(&mut self, pods: &BTreeMap<PodUid, Arc<Pod>>) {
        let mut owners: BTreeMap<IpAddr, Vec<&PodUid>> = BTreeMap::new();
        for pod in pods.values().filter(|pod| pod.host_network) {
            for ip in &pod.ips {
                owners.entry(*ip).or_default().push(&pod.uid);
            }
        }
        for (ip, uids) in owners {
            if let [only] = uids[..] {
                self.pod_by_ip.entry(ip).or_insert_with(|| only.clone());
            }
        }
    }

    fn add_node_ports(&mut self, index: usize, service: &Service) {
        for declared in &service.ports {
            let Some(node_port) = declared.node_port else {
                continue;
            };
            for ip in self.node_addresses.clone() {
                let entry = ExactEntry::Service {
                    index,
                    port: declared.port,
                };
                self.exact.entry((ip, node_port)).or_insert(entry);
            }
        }
    }
}
