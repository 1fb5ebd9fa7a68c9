//! Look-ups by address and by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{Pod, Protocol, Service};
use crate::identity::PodUid;

/// Every look-up of a world. The hash maps are asked by key only, so their
/// order never reaches an output.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    pods: HashMap<IpAddr, PodUid>,
    services: HashMap<IpAddr, usize>,
    hosts: HashMap<String, usize>,
    exact: BTreeMap<(IpAddr, u16), ExactEntry>,
    nodes: BTreeSet<IpAddr>,
}

/// What a port of a node leads to.
#[derive(Debug)]
pub(super) enum ExactEntry {
    Service { index: usize, port: u16 },
    Pod { uid: PodUid, port: u16 },
}

impl Indexes {
    pub(super) fn build(pods: &BTreeMap<PodUid, Arc<Pod>>, services: &[Arc<Service>]) -> Self {
        let mut indexes = Self::default();
        for pod in pods.values() {
            indexes.add_pod(pod);
        }
        indexes.add_host_network_pods(pods);
        for (index, service) in services.iter().enumerate() {
            indexes.add_service(index, service);
        }
        indexes
    }

    /// All addresses are canonical.
    pub(super) fn pod(&self, ip: IpAddr) -> Option<&PodUid> {
        self.pods.get(&ip)
    }

    pub(super) fn service(&self, ip: IpAddr) -> Option<usize> {
        self.services.get(&ip).copied()
    }

    pub(super) fn service_of_host(&self, host: &str) -> Option<usize> {
        self.hosts.get(&host.to_ascii_lowercase()).copied()
    }

    pub(super) fn exact(&self, ip: IpAddr, port: u16) -> Option<&ExactEntry> {
        self.exact.get(&(ip, port))
    }

    pub(super) fn exact_keys(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.exact.keys().copied()
    }

    pub(super) fn is_node(&self, ip: IpAddr) -> bool {
        self.nodes.contains(&ip)
    }

    fn add_pod(&mut self, pod: &Pod) {
        self.nodes.extend(&pod.host_ips);
        if pod.host_network {
            self.nodes.extend(&pod.ips);
            return;
        }
        for ip in &pod.ips {
            self.pods.entry(*ip).or_insert_with(|| pod.uid.clone());
        }
        for declared in pod.ports.iter().filter(|p| p.protocol == Protocol::Tcp) {
            let Some(host_port) = declared.host_port else { continue };
            for ip in &pod.host_ips {
                let entry = ExactEntry::Pod { uid: pod.uid.clone(), port: declared.port };
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
                self.pods.entry(ip).or_insert_with(|| only.clone());
            }
        }
    }

    fn add_service(&mut self, index: usize, service: &Service) {
        self.hosts.entry(service.hostname.to_ascii_lowercase()).or_insert(index);
        let (on_nodes, own): (Vec<IpAddr>, _) = service.vips.iter().partition(|vip| self.nodes.contains(vip));
        let own: Vec<IpAddr> = own;
        for vip in own {
            self.services.entry(vip).or_insert(index);
        }
        for declared in &service.ports {
            let entry = || ExactEntry::Service { index, port: declared.port };
            // A service on a node's own address gets its ports only: the rest
            // of the node stays reachable.
            for vip in &on_nodes {
                self.exact.entry((*vip, declared.port)).or_insert_with(entry);
            }
            let Some(node_port) = declared.node_port else { continue };
            for ip in &self.nodes {
                self.exact.entry((*ip, node_port)).or_insert_with(entry);
            }
        }
    }
}
