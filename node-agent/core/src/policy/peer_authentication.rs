//! The effective mTLS mode of every port of a pod (policy.md §7).
//!
//! First that is not UNSET: port, workload, namespace, mesh, PERMISSIVE. Of
//! several objects in one scope the oldest counts and the others are ignored.
//! The mode is computed per port from the objects; Istio's encoding as DENY
//! policies is not imitated, with its corner cases.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decision::{MtlsMode, PolicyRef};
use super::object::{Mode, PeerAuthentication};
use super::scope::Scopes;
use crate::world::Labels;

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

/// The PeerAuthentications that may apply to the pods of one namespace, oldest first.
#[derive(Debug, Default)]
pub(super) struct PeerAuthentications {
    objects: Vec<Arc<PeerAuthentication>>,
    references: Vec<PolicyRef>,
    scopes: Scopes,
}

/// Which of the objects count for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Counting {
    workload: Option<usize>,
    namespace: Option<usize>,
    mesh: Option<usize>,
}

impl Counting {
    fn positions(self) -> impl Iterator<Item = usize> {
        [self.workload, self.namespace, self.mesh].into_iter().flatten()
    }
}

impl PeerAuthentications {
    /// Of the objects of the root namespace and of the pods' own.
    pub(super) fn new(objects: impl IntoIterator<Item = Arc<PeerAuthentication>>, root_namespace: &str) -> Self {
        let mut sorted: Vec<_> = objects.into_iter().collect();
        sorted.sort_by(|a, b| a.age_order(b));
        let reference = |o: &Arc<PeerAuthentication>| PolicyRef::peer_authentication(&o.namespace, &o.name);
        let references = sorted.iter().map(reference).collect();
        let mut scopes = Scopes::default();
        for (position, object) in sorted.iter().enumerate() {
            let is_root = object.namespace == root_namespace;
            let selector = object.spec.narrowing_selector();
            if !(is_root && selector.is_some()) {
                scopes.add(position, is_root, selector);
            }
        }
        Self { objects: sorted, references, scopes }
    }

    /// The objects that count for pods with these labels.
    pub(super) fn counting(&self, labels: &Labels) -> Counting {
        Counting {
            workload: self.scopes.selecting(labels).first().copied(),
            namespace: self.scopes.namespace.first().copied(),
            mesh: self.scopes.mesh.first().copied(),
        }
    }

    /// The modes that they make.
    pub(super) fn modes(&self, counting: Counting) -> PortModes {
        let default = counting
            .positions()
            .find_map(|position| self.setting(position, self.objects.get(position)?.spec.mode()))
            .unwrap_or(Setting { mode: MtlsMode::Permissive, by: None });
        let own_ports = counting.workload.and_then(|w| Some((w, self.objects.get(w)?.spec.port_level_mtls.as_ref()?)));
        let ports = own_ports
            .into_iter()
            .flat_map(|(position, ports)| ports.iter().map(move |(port, mtls)| (position, port, mtls)))
            .filter_map(|(position, port, mtls)| Some((*port, self.setting(position, mtls.mode)?)))
            .collect();
        PortModes { default, ports }
    }

    /// The objects themselves.
    pub(super) fn of(&self, counting: Counting) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        counting.positions().filter_map(|position| self.objects.get(position))
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

    /// What there is to say about an object of the namespace for its status.
    pub(super) fn messages(&self, object: &PeerAuthentication, root_namespace: &str) -> Vec<String> {
        let warnings = object.spec.validate().unwrap_or_default();
        let mut messages: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        let is_root = object.namespace == root_namespace;
        if object.spec.narrowing_selector().is_some() {
            if is_root {
                messages.push(
                    "ignored: a PeerAuthentication with a selector has no effect in the root \
                     namespace"
                        .to_owned(),
                );
            }
            return messages;
        }
        let scope = if is_root { &self.scopes.mesh } else { &self.scopes.namespace };
        let oldest = scope.first().and_then(|position| self.objects.get(*position));
        if let Some(older) = oldest.filter(|oldest| ***oldest != *object) {
            messages.push(format!("ignored: {}/{} is older and of the same scope", older.namespace, older.name));
        }
        messages
    }
}
