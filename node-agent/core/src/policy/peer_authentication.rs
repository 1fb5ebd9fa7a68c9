//! The effective mTLS mode of every port of a pod (policy.md §7).
//!
//! First that is not UNSET: port, workload, namespace, mesh, PERMISSIVE. Of
//! several objects in one scope the oldest counts and the others are ignored.
//! The mode is computed per port from the objects; Istio's encoding as DENY
//! policies is not imitated, with its corner cases.

use std::collections::BTreeMap;

use super::decision::{MtlsMode, PolicyRef};
use super::object::{Mode, PeerAuthentication};
use super::scope::Scopes;
use crate::world::Pod;

/// A mode, and the object that set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) mode: MtlsMode,
    pub(super) by: Option<PolicyRef>,
}

/// The modes of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortModes {
    pub(super) default: Setting,
    pub(super) ports: BTreeMap<u16, Setting>,
}

impl PortModes {
    pub(super) fn at(&self, port: u16) -> &Setting {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

/// Every PeerAuthentication of the world, oldest first.
#[derive(Debug)]
pub(super) struct PeerAuthentications<'a> {
    objects: Vec<&'a PeerAuthentication>,
    references: Vec<PolicyRef>,
    scopes: Scopes<'a>,
    root_namespace: &'a str,
}

impl<'a> PeerAuthentications<'a> {
    pub(super) fn new(objects: &[&'a PeerAuthentication], root_namespace: &'a str) -> Self {
        let mut sorted = objects.to_vec();
        sorted.sort_by(|a, b| a.age_order(b));
        let reference = |o: &&PeerAuthentication| PolicyRef::peer_authentication(&o.namespace, &o.name);
        let mut this = Self {
            references: sorted.iter().map(reference).collect(),
            objects: sorted,
            scopes: Scopes::default(),
            root_namespace,
        };
        for (position, object) in this.objects.iter().enumerate() {
            if !is_ignored(object, root_namespace) {
                let selector = object.spec.narrowing_selector();
                this.scopes.add(position, &object.namespace, selector, root_namespace);
            }
        }
        this
    }

    /// The modes of a pod, and the positions of the objects that count for it.
    pub(super) fn of(&self, pod: &Pod) -> (PortModes, Vec<usize>) {
        let workload = self.scopes.selecting(pod).first().copied();
        let namespace = self.scopes.of_namespace(pod).first().copied();
        let mesh = self.scopes.mesh.first().copied();
        let counting: Vec<usize> = [workload, namespace, mesh].into_iter().flatten().collect();
        let default = counting
            .iter()
            .find_map(|position| self.setting(*position, self.objects.get(*position)?.spec.mode()))
            .unwrap_or(Setting { mode: MtlsMode::Permissive, by: None });
        let own_ports = workload.and_then(|w| Some((w, self.objects.get(w)?.spec.port_level_mtls.as_ref()?)));
        let ports = own_ports
            .into_iter()
            .flat_map(|(position, ports)| ports.iter().map(move |(port, mtls)| (position, port, mtls)))
            .filter_map(|(position, port, mtls)| Some((*port, self.setting(position, mtls.mode)?)))
            .collect();
        (PortModes { default, ports }, counting)
    }

    fn setting(&self, position: usize, mode: Mode) -> Option<Setting> {
        let mode = match mode {
            Mode::Unset => return None,
            Mode::Disable | Mode::Permissive => MtlsMode::Permissive,
            Mode::Strict => MtlsMode::Strict,
        };
        let by = self.references.get(position).cloned();
        Some(Setting { mode, by })
    }

    /// The objects, with what there is to say about each for its status.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&'a PeerAuthentication, Vec<String>)> {
        self.objects.iter().enumerate().map(|(position, object)| {
            let warnings = object.spec.validate().unwrap_or_default();
            let mut messages: Vec<_> = warnings.iter().map(ToString::to_string).collect();
            if is_ignored(object, self.root_namespace) {
                messages.push(
                    "ignored: a PeerAuthentication with a selector has no effect in the root \
                     namespace"
                        .to_owned(),
                );
            }
            if let Some(older) = self.older_in_scope(position, object) {
                messages.push(format!("ignored: {}/{} is older and of the same scope", older.namespace, older.name));
            }
            (*object, messages)
        })
    }

    fn older_in_scope(&self, position: usize, object: &PeerAuthentication) -> Option<&'a PeerAuthentication> {
        if object.spec.narrowing_selector().is_some() {
            return None;
        }
        let scope = if object.namespace == self.root_namespace {
            &self.scopes.mesh
        } else {
            self.scopes.namespaces.get(object.namespace.as_str())?
        };
        let oldest = *scope.first()?;
        (oldest != position).then(|| self.objects.get(oldest).copied()).flatten()
    }
}

fn is_ignored(object: &PeerAuthentication, root_namespace: &str) -> bool {
    object.namespace == root_namespace && object.spec.narrowing_selector().is_some()
}
