//! What became of a policy object: in force, in force with a warning, or not
//! understood.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::manifest::{Kind, ObjectKey};
use crate::policy::{PolicyBinding, PolicyKind};

/// Whether an object is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectState {
    /// In force exactly as written.
    Accepted,
    /// In force, but not everything it says can be enforced where it stands;
    /// the warnings say what.
    AcceptedWithWarnings,
    /// The newest text was refused; the version accepted before it is in
    /// force.
    LastGood,
    /// Refused and never accepted before: the workloads it selects deny.
    NotUnderstood,
}

/// The state of one policy object of the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectStatus {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Whether it is in force.
    pub state: ObjectState,
    /// What the user should know, one sentence each.
    pub messages: Vec<String>,
    /// Number of pods of the world that it applies to.
    pub pods: usize,
}

impl fmt::Display for ObjectStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What became of the policies, of which some are not in the version that was written last.
pub(super) fn of(bindings: &[PolicyBinding], last_good: &BTreeSet<ObjectKey>) -> Vec<ObjectStatus> {
    bindings.iter().map(|binding| status(binding, last_good)).collect()
}

fn status(binding: &PolicyBinding, last_good: &BTreeSet<ObjectKey>) -> ObjectStatus {
    let kind = match binding.kind {
        PolicyKind::AuthorizationPolicy => Kind::AuthorizationPolicy,
        PolicyKind::PeerAuthentication => Kind::PeerAuthentication,
    };
    let (namespace, name) = (binding.namespace.clone(), binding.name.clone());
    let key = ObjectKey { kind, namespace, name };
    let state = match (binding.understood, last_good.contains(&key), binding.messages.is_empty()) {
        (false, ..) => ObjectState::NotUnderstood,
        (true, true, _) => ObjectState::LastGood,
        (true, false, false) => ObjectState::AcceptedWithWarnings,
        (true, false, true) => ObjectState::Accepted,
    };
    ObjectStatus {
        kind: kind.as_str().to_owned(),
        namespace: key.namespace,
        name: key.name,
        state,
        messages: binding.messages.clone(),
        pods: binding.pods,
    }
}
