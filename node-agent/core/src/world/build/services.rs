//! Services of the world: addresses, and endpoints from slices or selectors.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Loader, Objects};
use crate::identity::PodUid;
use crate::world::manifest::{Kind, ObjectKey};
use crate::world::model::{Endpoint, Pod, Protocol, Service, ServicePort};
use crate::world::object::{EndpointSliceObject, FieldProblem, Object, ServiceObject, ServicePortObject, TargetPort};

/// The services in force, by namespace and name.
pub(super) fn build(loader: &mut Loader, pods: &BTreeMap<PodUid, Arc<Pod>>) -> Vec<Arc<Service>> {
    let mut addresses = Addresses::new(pods);
    let by_namespace = pods_by_namespace(pods);
    let slices = slices_by_service(&loader.objects);
    let mut services = BTreeMap::new();
    let order = loader.order.clone();
    for key in order.iter().filter(|key| key.kind == Kind::Service) {
        let Some(in_force) = loader.objects.get(key).cloned() else { continue };
        let Object::Service(object) = &in_force.object else { continue };
        let vips = addresses.take_vips(loader, key, object);
        let endpoints = match slices.get(&(key.namespace.clone(), key.name.clone())) {
            Some(slices) => from_slices(object, slices, &addresses.pods),
            None => {
                let pods = by_namespace.get(key.namespace.as_str());
                from_selector(object, pods.map_or(&[], Vec::as_slice))
            }
        };
        let service = Service {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            hostname: format!("{}.{}.svc.cluster.local", key.name, key.namespace),
            vips,
            ports: object.ports.iter().map(service_port).collect(),
            endpoints,
        };
        services.insert(key.clone(), Arc::new(service));
    }
    services.into_values().collect()
}

fn service_port(port: &ServicePortObject) -> ServicePort {
    ServicePort { port: port.port, name: port.name.clone(), node_port: port.node_port }
}

/// Who has which address.
struct Addresses<'a> {
    pods: HashMap<IpAddr, &'a Arc<Pod>>,
    vips: HashMap<IpAddr, String>,
}

impl<'a> Addresses<'a> {
    fn new(pods: &'a BTreeMap<PodUid, Arc<Pod>>) -> Self {
        let own = pods.values().filter(|pod| !pod.host_network);
        let pods = own.flat_map(|pod| pod.ips.iter().map(move |ip| (*ip, pod))).collect();
        Self { pods, vips: HashMap::new() }
    }

    /// The service's addresses. One that a pod or an earlier service has is
    /// left out: a Service must not be able to take over somebody's traffic.
    fn take_vips(&mut self, loader: &mut Loader, key: &ObjectKey, object: &ServiceObject) -> Vec<IpAddr> {
        let mut vips = Vec::new();
        for (ip, field) in &object.vips {
            let owner = match (self.pods.get(ip), self.vips.get(ip)) {
                (Some(pod), _) => Some(format!("Pod {}/{}", pod.namespace, pod.name)),
                (None, owner) => owner.cloned(),
            };
            match owner {
                None => {
                    self.vips.insert(*ip, key.to_string());
                    vips.push(*ip);
                }
                Some(owner) => {
                    let reason = format!(
                        "{ip} belongs to {owner} already; the first one counts, the rest of this \
                         Service is in force"
                    );
                    loader.reject_in_force(key, FieldProblem::new(field, reason));
                }
            }
        }
        vips
    }
}

fn pods_by_namespace(pods: &BTreeMap<PodUid, Arc<Pod>>) -> BTreeMap<&str, Vec<&Arc<Pod>>> {
    let mut by_namespace: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods.values() {
        by_namespace.entry(&pod.namespace).or_default().push(pod);
    }
    by_namespace
}

fn slices_by_service(objects: &Objects) -> BTreeMap<(String, String), Vec<EndpointSliceObject>> {
    let mut by_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, in_force) in objects {
        let Object::EndpointSlice(slice) = &in_force.object else { continue };
        if let Some(service) = &slice.service {
            let service = (key.namespace.clone(), service.clone());
            by_service.entry(service).or_default().push(slice.clone());
        }
    }
    by_service
}

/// One endpoint per address; slices that repeat it add their ports.
fn from_slices(
    service: &ServiceObject,
    slices: &[EndpointSliceObject],
    pods: &HashMap<IpAddr, &Arc<Pod>>,
) -> Vec<Endpoint> {
    let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
    for slice in slices {
        let target = |port: &ServicePortObject| {
            let same = slice.ports.iter().find(|(name, _)| *name == port.name);
            same.map(|(_, target)| (port.port, *target))
        };
        let ports: BTreeMap<u16, u16> = service.ports.iter().filter_map(target).collect();
        for found in &slice.endpoints {
            let ready = found.ready || service.publish_not_ready;
            let endpoint = endpoints.entry(found.ip).or_insert_with(|| Endpoint {
                pod: pods.get(&found.ip).map(|pod| pod.uid.clone()),
                ip: found.ip,
                ports: BTreeMap::new(),
                ready,
            });
            endpoint.ready |= ready;
            endpoint.ports.extend(&ports);
        }
    }
    endpoints.into_values().collect()
}

fn from_selector(service: &ServiceObject, pods: &[&Arc<Pod>]) -> Vec<Endpoint> {
    let Some(selector) = &service.selector else { return Vec::new() };
    let selected = pods.iter().filter(|pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
    let mut seen = BTreeSet::new();
    let mut endpoints = Vec::new();
    for pod in selected {
        let target = |port: &ServicePortObject| Some((port.port, target_port(pod, &port.target)?));
        let ports: BTreeMap<u16, u16> = service.ports.iter().filter_map(target).collect();
        let ready = pod.ready || service.publish_not_ready;
        for ip in pod.ips.iter().filter(|ip| seen.insert(**ip)) {
            let (pod, ports) = (Some(pod.uid.clone()), ports.clone());
            endpoints.push(Endpoint { pod, ip: *ip, ports, ready });
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.ip);
    endpoints
}

fn target_port(pod: &Pod, target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => {
            let named =
                |p: &&crate::world::ContainerPort| p.protocol == Protocol::Tcp && p.name.as_deref() == Some(name);
            pod.ports.iter().find(named).map(|p| p.port)
        }
    }
}
