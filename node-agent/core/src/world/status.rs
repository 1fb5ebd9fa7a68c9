//! What became of a policy object: in force, in force with a warning, or not
//! understood.

use std::fmt;

use serde::Serialize;

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
