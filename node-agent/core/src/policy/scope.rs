//! Which objects apply to which pods (policy.md §1.1).

use std::collections::HashMap;

use super::object::{AuthorizationPolicy, PeerAuthentication, WorkloadSelector};
use crate::world::Pod;

/// Every policy object of a world, in any order.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    /// Validated AuthorizationPolicies.
    pub authorization: Vec<AuthorizationPolicy>,
    /// Validated PeerAuthentications.
    pub peer_authentication: Vec<PeerAuthentication>,
    /// Objects of either kind that were refused and have no earlier version.
    pub not_understood: Vec<NotUnderstood>,
}

/// Kinds of policy objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// An AuthorizationPolicy.
    AuthorizationPolicy,
    /// A PeerAuthentication.
    PeerAuthentication,
}

impl PolicyKind {
    /// The kind as Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

/// A policy that was refused: nobody knows what it forbids, so everything in
/// its scope denies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUnderstood {
    /// Which kind of object it is.
    pub kind: PolicyKind,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The pods it selects, as far as that could be read; `None` for all of
    /// its namespace, or of the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// Why it was refused.
    pub reason: String,
}

/// Objects of one kind, by what they apply to. Positions are those of the
/// order of insertion.
#[derive(Debug, Default)]
pub(super) struct Scopes<'a> {
    pub(super) mesh: Vec<usize>,
    pub(super) namespaces: HashMap<&'a str, Vec<usize>>,
    selected: Selected<'a>,
}

/// Objects with a selector, by their first label, so that binding pods does
/// not try every object on every pod.
#[derive(Debug, Default)]
struct Selected<'a> {
    by_label: HashMap<LabelKey<'a>, Vec<(usize, &'a WorkloadSelector)>>,
}

/// Namespace (`None` for an object of the root namespace), label, value.
type LabelKey<'a> = (Option<&'a str>, &'a str, &'a str);

impl<'a> Scopes<'a> {
    /// Adds the object at `position`.
    pub(super) fn add(
        &mut self,
        position: usize,
        namespace: &'a str,
        selector: Option<&'a WorkloadSelector>,
        root_namespace: &str,
    ) {
        let is_root = namespace == root_namespace;
        let first = selector.and_then(|s| Some((s, s.match_labels.first_key_value()?)));
        match first {
            Some((selector, (key, value))) => {
                let key = ((!is_root).then_some(namespace), key.as_str(), value.as_str());
                let list = self.selected.by_label.entry(key).or_default();
                list.push((position, selector));
            }
            None if is_root => self.mesh.push(position),
            None => self.namespaces.entry(namespace).or_default().push(position),
        }
    }

    /// Objects without selector of the pod's namespace.
    pub(super) fn of_namespace(&self, pod: &Pod) -> &[usize] {
        self.namespaces.get(pod.namespace.as_str()).map_or(&[], Vec::as_slice)
    }

    /// Objects whose selector selects the pod, ascending.
    pub(super) fn selecting(&self, pod: &Pod) -> Vec<usize> {
        let mut positions: Vec<_> = pod
            .labels
            .iter()
            .flat_map(|(key, value)| {
                [None, Some(pod.namespace.as_str())].map(|namespace| (namespace, key.as_str(), value.as_str()))
            })
            .filter_map(|key| self.selected.by_label.get(&key))
            .flatten()
            .filter(|(_, selector)| selector.selects(&pod.labels))
            .map(|(position, _)| *position)
            .collect();
        positions.sort_unstable();
        positions
    }
}
