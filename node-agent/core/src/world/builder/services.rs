//! Services of the world being built: addresses, and endpoints from slices or selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Rank, ServiceSlot, WorldBuilder, count_down, count_up};
use crate::world::manifest::ObjectKey;
use crate::world::model::{ContainerPort, Endpoint, Pod, Protocol, Service, ServicePort};
use crate::world::object::{EndpointSliceObject, ServiceObject, ServicePortObject, TargetPort};
use crate::world::text::Text;
use crate::world::{NodePort, ServiceKey};

impl WorldBuilder {
    pub(super) fn put_service(&mut self, key: &ObjectKey, rank: Rank, object: ServiceObject) {
        let key = self.service_key(&key.namespace, &key.name);
        let unchanged = self.objects.get(&key).is_some_and(|old| old.rank == rank && old.object == object);
        if unchanged {
            return;
        }
        self.drop_claims(&key);
        for (ip, _) in &object.vips {
            self.claim_vip(*ip, rank, &key);
        }
        for port in &object.ports {
            if let Some(node_port) = port.node_port {
                self.node_ports.claim(node_port, NodePort { rank, service: key.clone(), port: port.port });
                self.exact_changed = true;
            }
        }
        if object.selector.is_some() {
            self.namespaces.entry(key.namespace.clone()).or_default().selecting.insert(key.name.clone());
        }
        self.objects.insert(key.clone(), ServiceSlot { object, rank });
        self.changed_services.insert(key);
    }

    pub(super) fn remove_service(&mut self, key: &ObjectKey) {
        let key = self.service_key(&key.namespace, &key.name);
        self.drop_claims(&key);
        self.objects.remove(&key);
        self.changed_services.insert(key);
    }

    pub(super) fn put_slice(&mut self, key: &ObjectKey, slice: EndpointSliceObject) {
        let own = self.service_key(&key.namespace, &key.name);
        let Some(service) = slice.service.as_deref() else { return self.drop_slice(&own) };
        let service = self.service_key(&key.namespace, service);
        if self.service_of_slice.get(&own).is_some_and(|before| *before != service) {
            self.drop_slice(&own);
        }
        self.slices.entry(service.clone()).or_default().insert(own.name.clone(), slice);
        self.service_of_slice.insert(own, service.clone());
        self.changed_services.insert(service);
    }

    pub(super) fn remove_slice(&mut self, key: &ObjectKey) {
        let own = self.service_key(&key.namespace, &key.name);
        self.drop_slice(&own);
    }

    /// A pod of the namespace changed: those of its Services change that have no slices.
    pub(super) fn touch_selecting(&mut self, namespace: &Text) {
        let Some(state) = self.namespaces.get(namespace) else { return };
        for name in &state.selecting {
            let key = ServiceKey { namespace: namespace.clone(), name: name.clone() };
            if !self.slices.contains_key(&key) {
                self.changed_services.insert(key);
            }
        }
    }

    pub(super) fn rebuild_services(&mut self) {
        for key in std::mem::take(&mut self.changed_services) {
            let Some(slot) = self.objects.get(&key) else {
                self.services.remove(&key);
                continue;
            };
            let endpoints = match self.slices.get(&key) {
                Some(slices) => from_slices(&slot.object, slices),
                None => {
                    let state = self.namespaces.get(&key.namespace);
                    from_selector(&slot.object, state.into_iter().flat_map(|s| s.pods.values()).map(|slot| &*slot.pod))
                }
            };
            let service = Service {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                hostname: format!("{}.{}.svc.cluster.local", key.name, key.namespace),
                vips: slot.object.vips.iter().map(|(ip, _)| *ip).collect(),
                ports: slot.object.ports.iter().map(service_port).collect(),
                endpoints,
            };
            if self.services.get(&key).is_none_or(|old| **old != service) {
                self.services.insert(key, Arc::new(service));
            }
        }
    }

    fn service_key(&mut self, namespace: &str, name: &str) -> ServiceKey {
        ServiceKey { namespace: self.interner.text(namespace), name: self.interner.text(name) }
    }

    fn claim_vip(&mut self, ip: IpAddr, rank: Rank, key: &ServiceKey) {
        let is_new = !self.vips.owners().contains_key(&ip);
        self.vips.claim(ip, (rank, key.clone()));
        self.vip_changed(ip, is_new);
    }

    /// What follows when an address becomes a Service's, or ceases to be any Service's.
    fn vip_changed(&mut self, ip: IpAddr, toggled: bool) {
        if self.nodes.contains_key(&ip) {
            self.exact_changed = true;
        } else if toggled && self.vips.owners().contains_key(&ip) {
            count_up(&mut self.captured.addresses, &ip);
        } else if toggled {
            count_down(&mut self.captured.addresses, &ip);
        }
    }

    fn drop_claims(&mut self, key: &ServiceKey) {
        let Some(slot) = self.objects.get(key) else { return };
        let (rank, vips) = (slot.rank, slot.object.vips.clone());
        let node_ports: Vec<_> = slot.object.ports.iter().filter_map(|p| Some((p.node_port?, p.port))).collect();
        for (ip, _) in vips {
            self.vips.release(&ip, &(rank, key.clone()));
            let is_gone = !self.vips.owners().contains_key(&ip);
            self.vip_changed(ip, is_gone);
        }
        for (node_port, port) in node_ports {
            self.node_ports.release(&node_port, &NodePort { rank, service: key.clone(), port });
            self.exact_changed = true;
        }
        if let Some(state) = self.namespaces.get_mut(&key.namespace) {
            state.selecting.remove(&key.name);
            if state.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
    }

    fn drop_slice(&mut self, own: &ServiceKey) {
        let Some(service) = self.service_of_slice.remove(own) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&own.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.changed_services.insert(service);
    }
}

fn service_port(port: &ServicePortObject) -> ServicePort {
    ServicePort { port: port.port, name: port.name.clone(), node_port: port.node_port }
}

/// One endpoint per address; slices that repeat it add their ports.
fn from_slices(service: &ServiceObject, slices: &BTreeMap<Text, EndpointSliceObject>) -> Vec<Endpoint> {
    let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
    for slice in slices.values() {
        let target = |port: &ServicePortObject| {
            let same = slice.ports.iter().find(|(name, _)| *name == port.name);
            same.map(|(_, target)| (port.port, *target))
        };
        let ports: BTreeMap<u16, u16> = service.ports.iter().filter_map(target).collect();
        for found in &slice.endpoints {
            let ready = found.ready || service.publish_not_ready;
            let endpoint =
                endpoints.entry(found.ip).or_insert_with(|| Endpoint { ip: found.ip, ports: BTreeMap::new(), ready });
            endpoint.ready |= ready;
            endpoint.ports.extend(&ports);
        }
    }
    endpoints.into_values().collect()
}

fn from_selector<'a>(service: &ServiceObject, pods: impl Iterator<Item = &'a Pod>) -> Vec<Endpoint> {
    let Some(selector) = &service.selector else { return Vec::new() };
    let wanted = |pod: &&Pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value.as_str()));
    let mut selected: Vec<&Pod> = pods.filter(wanted).collect();
    selected.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut seen = BTreeSet::new();
    let mut endpoints = Vec::new();
    for pod in selected {
        let target = |port: &ServicePortObject| Some((port.port, target_port(pod, &port.target)?));
        let ports: BTreeMap<u16, u16> = service.ports.iter().filter_map(target).collect();
        let ready = pod.ready || service.publish_not_ready;
        for ip in pod.ips.iter().filter(|ip| seen.insert(**ip)) {
            endpoints.push(Endpoint { ip: *ip, ports: ports.clone(), ready });
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.ip);
    endpoints
}

fn target_port(pod: &Pod, target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => {
            let named = |p: &&ContainerPort| p.protocol == Protocol::Tcp && p.name.as_deref() == Some(name);
            pod.ports.iter().find(named).map(|p| p.port)
        }
    }
}
