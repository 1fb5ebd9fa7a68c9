//! Which objects apply to which pods (policy.md §1.1).

use std::collections::HashMap;

use super::object::{AuthorizationPolicy, PeerAuthentication, WorkloadSelector};
use crate::world::Labels;

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

/// Objects of one kind that may apply to the pods of one namespace, by what they apply to. Positions are those of the
/// order of insertion.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    pub(super) mesh: Vec<usize>,
    pub(super) namespace: Vec<usize>,
    selected: Selected,
}

/// Objects with a selector, by their first label and its value, so that binding pods does not try every object on
/// every pod.
#[derive(Debug, Default)]
struct Selected {
    by_label: HashMap<String, HashMap<String, Vec<(usize, WorkloadSelector)>>>,
}

impl Scopes {
    /// Adds the object at `position`: of the root namespace, or of the pods' own.
    pub(super) fn add(&mut self, position: usize, is_root: bool, selector: Option<&WorkloadSelector>) {
        let first = selector.and_then(|s| Some((s, s.match_labels.first_key_value()?)));
        match first {
            Some((selector, (key, value))) => {
                let values = self.selected.by_label.entry(key.clone()).or_default();
                values.entry(value.clone()).or_default().push((position, selector.clone()));
            }
            None if is_root => self.mesh.push(position),
            None => self.namespace.push(position),
        }
    }

    /// Objects whose selector selects the labels, ascending.
    pub(super) fn selecting(&self, labels: &Labels) -> Vec<usize> {
        let mut positions: Vec<_> = labels
            .iter()
            .filter_map(|(key, value)| self.selected.by_label.get(key)?.get(value))
            .flatten()
            .filter(|(_, selector)| selector.selects(labels))
            .map(|(position, _)| *position)
            .collect();
        positions.sort_unstable();
        positions
    }
}
