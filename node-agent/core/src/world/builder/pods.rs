//! Pods of the world being built: modes, identities, and who has which address.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Rank, WorldBuilder, count_down, count_up};
use crate::enrolment::mode::{PodFacts, Said, decide};
use crate::identity::{PodUid, SpiffeId};
use crate::world::HostPort;
use crate::world::manifest::ObjectKey;
use crate::world::model::{Pod, Protocol, Workload};
use crate::world::object::{FieldProblem, PodObject};
use crate::world::shared_map::SharedMap;
use crate::world::text::Text;

/// A pod in force, and what its namespace's word is weighed against.
#[derive(Debug)]
pub(super) struct PodSlot {
    pub(super) pod: Arc<Pod>,
    rank: Rank,
    facts: PodFacts,
}

impl WorldBuilder {
    /// Adds or replaces a pod. One that has ended has no part in the world.
    pub(super) fn put_pod(&mut self, key: &ObjectKey, rank: Rank, object: &PodObject) -> Result<(), FieldProblem> {
        if object.is_finished {
            self.remove_pod(key);
            return Ok(());
        }
        let namespace = self.interner.text(&key.namespace);
        let inherited = self.namespaces.get(&namespace).map(|state| state.said).unwrap_or_default();
        let pod = self.assemble(key, object, inherited)?;
        let old = self.namespaces.get(&namespace).and_then(|state| state.pods.get(key.name.as_str()));
        let is_known = old.is_some_and(|slot| slot.pod.uid == pod.uid);
        if !is_known && self.pods.contains_key(&pod.uid) {
            let reason = format!("{} belongs to another pod already", pod.uid);
            return Err(FieldProblem::new("metadata.uid", reason));
        }
        let same = old.is_some_and(|slot| *slot.pod == pod && slot.rank == rank);
        if same {
            // Most of what a kubelet reports is of no interest here. What the pod says of its mode counts with its
            // namespace's, though, and may show later.
            self.set_standing(&namespace, &key.name, object);
            return Ok(());
        }
        self.remove_pod(key);
        let pod = Arc::new(pod);
        self.link(&pod, rank);
        let slot = PodSlot { pod: pod.clone(), rank, facts: object.facts };
        self.namespaces.entry(namespace).or_default().pods.insert(pod.name.clone(), slot);
        Ok(())
    }

    pub(super) fn remove_pod(&mut self, key: &ObjectKey) {
        let Some(state) = self.namespaces.get_mut(key.namespace.as_str()) else { return };
        let Some(slot) = state.pods.remove(key.name.as_str()) else { return };
        self.unlink(&slot.pod, slot.rank);
        if self.namespaces.get(key.namespace.as_str()).is_some_and(super::NamespaceState::is_empty) {
            self.namespaces.remove(key.namespace.as_str());
        }
    }

    /// What a namespace says of its pods that say nothing themselves.
    pub(super) fn set_namespace(&mut self, namespace: &str, object: Option<Said>) {
        let name = self.interner.text(namespace);
        match object {
            Some(said) => self.said.insert(name.clone(), said),
            None => self.said.remove(&name),
        };
        let said = object.unwrap_or_default();
        let state = self.namespaces.entry(name.clone()).or_default();
        if std::mem::replace(&mut state.said, said) == said {
            if state.is_empty() {
                self.namespaces.remove(&name);
            }
            return;
        }
        let mut changed = Vec::new();
        for slot in state.pods.values_mut() {
            let now = decide(namespace, &self.mesh.never_enrolled, &slot.facts, said);
            if slot.pod.decision != now {
                let after = Arc::new(Pod { decision: now, mode: now.mode(), ..(*slot.pod).clone() });
                let before = std::mem::replace(&mut slot.pod, after);
                changed.push((before, slot.pod.clone(), slot.rank));
            }
        }
        for (before, after, rank) in changed {
            self.unlink(&before, rank);
            self.link(&after, rank);
        }
    }

    fn set_standing(&mut self, namespace: &Text, name: &str, object: &PodObject) {
        if let Some(slot) = self.namespaces.get_mut(namespace).and_then(|state| state.pods.get_mut(name)) {
            slot.facts = object.facts;
        }
    }

    fn assemble(&mut self, key: &ObjectKey, object: &PodObject, inherited: Said) -> Result<Pod, FieldProblem> {
        let account = object.service_account.as_str();
        let identity = SpiffeId::new(&self.mesh.trust_domain, &key.namespace, account)
            .map_err(|e| FieldProblem::new("spec.serviceAccountName", e.to_string()))?;
        let decision = decide(&key.namespace, &self.mesh.never_enrolled, &object.facts, inherited);
        let keep = &mut self.interner;
        let label = |names: [&str; 3]| names.into_iter().find_map(|n| object.labels.get(n));
        let canonical_name = label(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let canonical_revision = label(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        let name = Text::from(key.name.as_str());
        // Many pods are their own workload; their name needs not be kept twice.
        let mut shared = |text: &str| if name == text { name.clone() } else { keep.text(text) };
        let workload = Workload { kind: object.workload.kind, name: shared(&object.workload.name) };
        let canonical_name = canonical_name.map_or_else(|| workload.name.clone(), |name| shared(name));
        Ok(Pod {
            uid: object.uid.clone(),
            namespace: keep.text(&key.namespace),
            service_account: keep.text(account),
            node: keep.text(&object.node),
            ips: object.ips.as_slice().into(),
            ready: object.ready,
            identity: keep.identity(identity),
            decision,
            mode: decision.mode(),
            netns: object.netns.clone(),
            canonical_name,
            canonical_revision: keep.text(canonical_revision.map_or("latest", String::as_str)),
            workload,
            ports: keep.ports(&object.ports),
            probed: keep.probed(&object.probed),
            host_network: object.facts.host_network,
            host_ips: keep.addresses(&object.host_ips),
            labels: keep.labels(&object.labels),
            name,
        })
    }

    fn link(&mut self, pod: &Arc<Pod>, rank: Rank) {
        self.pods.insert(pod.uid.clone(), pod.clone());
        if !pod.node.is_empty() {
            add(&mut self.by_node, &pod.node, &pod.uid);
        }
        for ip in pod.host_ips.iter() {
            self.add_node_address(*ip);
        }
        for ip in pod.ips.iter() {
            if pod.host_network {
                self.add_node_address(*ip);
                add(&mut self.on_host, ip, &pod.uid);
            } else {
                self.addresses.claim(*ip, (rank, pod.uid.clone()));
                count_up(&mut self.captured.addresses, ip);
            }
        }
        for (at, entry) in host_ports(pod, rank) {
            self.host_ports.claim(at, entry);
            self.exact_changed = true;
        }
        self.policies.put_pod(pod);
        self.touch_selecting(&pod.namespace);
    }

    fn unlink(&mut self, pod: &Arc<Pod>, rank: Rank) {
        self.pods.remove(&pod.uid);
        take(&mut self.by_node, &pod.node, &pod.uid);
        for ip in pod.host_ips.iter() {
            self.drop_node_address(*ip);
        }
        for ip in pod.ips.iter() {
            if pod.host_network {
                self.drop_node_address(*ip);
                take(&mut self.on_host, ip, &pod.uid);
            } else {
                self.addresses.release(ip, &(rank, pod.uid.clone()));
                count_down(&mut self.captured.addresses, ip);
            }
        }
        for (at, entry) in host_ports(pod, rank) {
            self.host_ports.release(&at, &entry);
            self.exact_changed = true;
        }
        self.policies.remove_pod(pod);
        self.touch_selecting(&pod.namespace);
    }
}

/// Ports of the pod's node that lead to it.
fn host_ports(pod: &Pod, rank: Rank) -> Vec<((IpAddr, u16), HostPort)> {
    if pod.host_network {
        return Vec::new();
    }
    let declared = pod.ports.iter().filter(|p| p.protocol == Protocol::Tcp);
    let entries = declared.filter_map(|p| Some((p.host_port?, p.port)));
    entries
        .flat_map(|(host_port, port)| {
            let entry = HostPort { rank, pod: pod.uid.clone(), port };
            pod.host_ips.iter().map(move |ip| ((*ip, host_port), entry.clone()))
        })
        .collect()
}

fn add<K: Hash + Ord + Clone>(sets: &mut SharedMap<K, Arc<BTreeSet<PodUid>>>, key: &K, uid: &PodUid) {
    let mut set = sets.remove(key).unwrap_or_default();
    Arc::make_mut(&mut set).insert(uid.clone());
    sets.insert(key.clone(), set);
}

fn take<K: Hash + Ord + Clone>(sets: &mut SharedMap<K, Arc<BTreeSet<PodUid>>>, key: &K, uid: &PodUid) {
    let Some(mut set) = sets.remove(key) else { return };
    Arc::make_mut(&mut set).remove(uid);
    if !set.is_empty() {
        sets.insert(key.clone(), set);
    }
}
