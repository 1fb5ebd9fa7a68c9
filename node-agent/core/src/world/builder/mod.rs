//! Objects, one by one, to worlds: what each object changes is changed at once, and a snapshot shares everything else
//! with the one before.

mod claims;
mod pods;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::intern::Interner;
use super::manifest::{Kind, ObjectKey};
use super::model::{Capabilities, CaptureSet, MeshConfig, Pod, Service};
use super::object::{EndpointSliceObject, FieldProblem, Object, ServiceObject};
use super::shared_map::SharedMap;
use super::text::Text;
use super::{HostPort, NodePort, ServiceKey, VipOwner, World};
use crate::enrolment::mode::Said;
use crate::identity::PodUid;
use crate::policy::{NotUnderstood, PolicyBuilder, PolicyKind};
use claims::Claims;
pub(super) use claims::{count_down, count_up};
use pods::PodSlot;

/// What an object's claims weigh: of two the lower counts. Files give the position of the document, Kubernetes the time
/// of creation.
pub(super) type Rank = u64;

/// Everything a world is made of, as it is now.
#[derive(Debug)]
pub(super) struct WorldBuilder {
    mesh: MeshConfig,
    interner: Interner,
    namespaces: HashMap<Text, NamespaceState>,
    /// What each Namespace object says of its pods.
    said: SharedMap<Text, Said>,
    pods: SharedMap<PodUid, Arc<Pod>>,
    by_node: SharedMap<Text, Arc<BTreeSet<PodUid>>>,
    addresses: Claims<IpAddr, (Rank, PodUid)>,
    /// Pods on a node's network, by the address that they share.
    on_host: SharedMap<IpAddr, Arc<BTreeSet<PodUid>>>,
    nodes: SharedMap<IpAddr, u32>,
    host_ports: Claims<(IpAddr, u16), HostPort>,
    objects: HashMap<ServiceKey, ServiceSlot>,
    services: SharedMap<ServiceKey, Arc<Service>>,
    changed_services: BTreeSet<ServiceKey>,
    vips: Claims<IpAddr, VipOwner>,
    node_ports: Claims<u16, NodePort>,
    /// By service, then by the slice's own name.
    slices: HashMap<ServiceKey, BTreeMap<Text, EndpointSliceObject>>,
    /// Which service a slice belongs to, by the slice's key.
    service_of_slice: HashMap<ServiceKey, ServiceKey>,
    /// Addresses of Node objects.
    node_objects: BTreeMap<Text, Vec<IpAddr>>,
    service_cidrs: BTreeMap<Text, Vec<IpNet>>,
    /// What the agents say of their nodes.
    capabilities: SharedMap<Text, Capabilities>,
    captured: CaptureSet,
    exact_changed: bool,
    policies: PolicyBuilder,
}

/// What is known of a namespace.
#[derive(Debug, Default)]
struct NamespaceState {
    said: Said,
    pods: BTreeMap<Text, PodSlot>,
    /// Services whose endpoints are found by their selectors.
    selecting: BTreeSet<Text>,
}

impl NamespaceState {
    fn is_empty(&self) -> bool {
        self.said == Said::Nothing && self.pods.is_empty() && self.selecting.is_empty()
    }
}

#[derive(Debug)]
struct ServiceSlot {
    object: ServiceObject,
    rank: Rank,
}

impl WorldBuilder {
    /// A world with nothing in it.
    pub(super) fn new(mesh: MeshConfig) -> Self {
        let ranges = mesh.capture_ranges.iter().copied().collect();
        Self {
            policies: PolicyBuilder::new(mesh.clone()),
            captured: CaptureSet { ranges: Arc::new(ranges), ..CaptureSet::default() },
            mesh,
            interner: Interner::default(),
            namespaces: HashMap::new(),
            said: SharedMap::default(),
            pods: SharedMap::default(),
            by_node: SharedMap::default(),
            addresses: Claims::default(),
            on_host: SharedMap::default(),
            nodes: SharedMap::default(),
            host_ports: Claims::default(),
            objects: HashMap::new(),
            services: SharedMap::default(),
            changed_services: BTreeSet::new(),
            vips: Claims::default(),
            node_ports: Claims::default(),
            slices: HashMap::new(),
            service_of_slice: HashMap::new(),
            node_objects: BTreeMap::new(),
            service_cidrs: BTreeMap::new(),
            capabilities: SharedMap::default(),
            exact_changed: false,
        }
    }

    /// Adds an object, or replaces the one with that key.
    pub(super) fn put(&mut self, key: &ObjectKey, rank: Rank, object: Object) -> Result<(), FieldProblem> {
        match object {
            Object::Pod(pod) => return self.put_pod(key, rank, &pod),
            Object::Namespace(namespace) => self.set_namespace(&key.name, Some(namespace.said)),
            Object::Service(service) => self.put_service(key, rank, service),
            Object::EndpointSlice(slice) => self.put_slice(key, slice),
            Object::Node(node) => self.put_node(&key.name, node.addresses),
            Object::ServiceCidr(cidr) => self.put_service_cidr(&key.name, cidr.cidrs),
            Object::MeshNode(capabilities) => {
                let node = self.interner.text(&key.name);
                self.capabilities.insert(node, capabilities);
            }
            Object::AuthorizationPolicy(policy) => {
                self.remove_policy(key);
                self.policies.put_authorization(policy);
            }
            Object::PeerAuthentication(policy) => {
                self.remove_policy(key);
                self.policies.put_peer_authentication(policy);
            }
            Object::Mesh(_) | Object::ServiceAccount => {}
        }
        Ok(())
    }

    /// Puts a policy that nobody understood beside all others of that name.
    pub(super) fn put_not_understood(&mut self, refused: NotUnderstood) {
        self.policies.put_not_understood(refused);
    }

    /// Takes out what has that key.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Pod => self.remove_pod(key),
            Kind::Namespace => self.set_namespace(&key.name, None),
            Kind::Service => self.remove_service(key),
            Kind::EndpointSlice => self.remove_slice(key),
            Kind::Node => self.put_node(&key.name, Vec::new()),
            Kind::ServiceCidr => self.put_service_cidr(&key.name, Vec::new()),
            Kind::MeshNode => {
                self.capabilities.remove(key.name.as_str());
            }
            Kind::AuthorizationPolicy | Kind::PeerAuthentication => self.remove_policy(key),
            Kind::Mesh | Kind::ServiceAccount => {}
        }
    }

    /// The world as it is now.
    pub(super) fn snapshot(&mut self, generation: u64) -> World {
        self.rebuild_services();
        if std::mem::take(&mut self.exact_changed) {
            self.captured.exact = Arc::new(self.exact());
        }
        let namespaces = &self.namespaces;
        self.policies.commit(|namespace| {
            let pods = namespaces.get(namespace).map(|state| state.pods.values());
            pods.into_iter().flatten().map(|slot| &*slot.pod)
        });
        self.interner.sweep();
        World {
            generation,
            mesh: self.mesh.clone(),
            pods: self.pods.clone(),
            by_node: self.by_node.clone(),
            addresses: self.addresses.owners().clone(),
            on_host: self.on_host.clone(),
            nodes: self.nodes.clone(),
            host_ports: self.host_ports.owners().clone(),
            node_ports: self.node_ports.owners().clone(),
            vips: self.vips.owners().clone(),
            services: self.services.clone(),
            capabilities: self.capabilities.clone(),
            captured: self.captured.clone(),
            policy: Arc::new(self.policies.index()),
            namespaces: self.said.clone(),
            status: OnceLock::new(),
            last_good: Arc::default(),
            objects: Arc::default(),
        }
    }

    /// Addresses that several claim, in words: who has each, and who else wants it.
    pub(super) fn contested(&self) -> Vec<String> {
        let name = |uid: &PodUid| {
            self.pods.get(uid).map_or_else(|| uid.to_string(), |pod| format!("Pod {}/{}", pod.namespace, pod.name))
        };
        let pods = self.addresses.contested().iter().map(|(ip, all)| {
            let names: Vec<String> = all.iter().map(|(_, uid)| name(uid)).collect();
            format!("{ip} is claimed by {}: the first has it", names.join(", "))
        });
        let vips = self.vips.contested().iter().map(|(ip, all)| {
            let names: Vec<String> = all.iter().map(|(_, key)| format!("Service {key}")).collect();
            format!("{ip} is claimed by {}: the first has it", names.join(", "))
        });
        let taken = self.vips.owners().iter().filter_map(|(ip, (_, key))| {
            let (_, uid) = self.addresses.owners().get(ip)?;
            Some(format!("{ip} is claimed by Service {key}, but belongs to {}", name(uid)))
        });
        pods.chain(vips).chain(taken).collect()
    }

    fn remove_policy(&mut self, key: &ObjectKey) {
        let kind = match key.kind {
            Kind::PeerAuthentication => PolicyKind::PeerAuthentication,
            _ => PolicyKind::AuthorizationPolicy,
        };
        self.policies.remove(kind, &key.namespace, &key.name);
    }

    fn put_node(&mut self, name: &str, addresses: Vec<IpAddr>) {
        let name = self.interner.text(name);
        let before = self.node_objects.remove(&name).unwrap_or_default();
        for ip in &addresses {
            self.add_node_address(*ip);
        }
        for ip in before {
            self.drop_node_address(ip);
        }
        if !addresses.is_empty() {
            self.node_objects.insert(name, addresses);
        }
    }

    fn put_service_cidr(&mut self, name: &str, cidrs: Vec<IpNet>) {
        let name = self.interner.text(name);
        match cidrs.is_empty() {
            true => self.service_cidrs.remove(&name),
            false => self.service_cidrs.insert(name, cidrs),
        };
        let ranges: BTreeSet<IpNet> =
            self.mesh.capture_ranges.iter().chain(self.service_cidrs.values().flatten()).copied().collect();
        if *self.captured.ranges != ranges {
            self.captured.ranges = Arc::new(ranges);
        }
    }

    fn add_node_address(&mut self, ip: IpAddr) {
        if count_up(&mut self.nodes, &ip) {
            self.exact_changed = true;
            // A Service on a node's own address gets its ports only: the rest of the node stays reachable.
            if self.vips.owners().contains_key(&ip) {
                count_down(&mut self.captured.addresses, &ip);
            }
        }
    }

    fn drop_node_address(&mut self, ip: IpAddr) {
        if count_down(&mut self.nodes, &ip) {
            self.exact_changed = true;
            if self.vips.owners().contains_key(&ip) {
                count_up(&mut self.captured.addresses, &ip);
            }
        }
    }

    /// Single ports of nodes that lead into the mesh.
    fn exact(&self) -> BTreeSet<(IpAddr, u16)> {
        let mut exact: BTreeSet<(IpAddr, u16)> = self.host_ports.owners().keys().copied().collect();
        for ip in self.nodes.keys() {
            exact.extend(self.node_ports.owners().keys().map(|port| (*ip, *port)));
        }
        let on_nodes = self.vips.owners().iter().filter(|(ip, _)| self.nodes.contains_key(*ip));
        for (ip, (_, key)) in on_nodes {
            let service = self.objects.get(key);
            exact.extend(service.into_iter().flat_map(|s| &s.object.ports).map(|port| (*ip, port.port)));
        }
        exact
    }
}
