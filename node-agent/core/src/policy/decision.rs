//! What the policy engine answers: a permit, a denial, or a plan for the kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::world::Pod;

/// One inbound connection, as the destination's node knows it.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Identity proven by the peer's SVID; `None` for plaintext.
    pub source: Option<&'a SpiffeId>,
    /// Address of the TCP peer.
    pub source_ip: IpAddr,
    /// The pod connected to.
    pub destination: &'a Pod,
    /// Address of that pod that was used.
    pub destination_ip: IpAddr,
    /// The pod's port, after any service mapping.
    pub destination_port: u16,
}

/// Leave to connect to an application.
///
/// Only [`PolicyIndex::decide`](super::PolicyIndex::decide) makes one; it is
/// not `Clone`, so that one permit opens one connection.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that nobody consumes means a check whose answer is ignored"]
pub struct Permit {
    policy: PolicyRef,
}

impl Permit {
    pub(super) fn new(policy: PolicyRef) -> Self {
        Self { policy }
    }

    /// The policy that allowed the connection, or `default-allow`.
    pub fn policy(&self) -> &PolicyRef {
        &self.policy
    }
}

/// A refusal. Displays as the human reason of the audit event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Denial {
    /// The kind of refusal.
    pub reason: DenyReason,
    /// The policy that refused. For [`DenyReason::NoAllowMatched`] the first
    /// of the ALLOW policies that were considered.
    pub policy: Option<PolicyRef>,
    /// What to tell a human, e.g. "source principal not allowed".
    pub detail: Detail,
}

impl Denial {
    pub(super) fn new(reason: DenyReason, policy: Option<PolicyRef>, detail: impl Into<Detail>) -> Self {
        Self { reason, policy, detail: detail.into() }
    }
}

/// The words of a refusal. They were there before the connection came: refusing allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// Words that are always the same.
    Fixed(&'static str),
    /// Words about an object.
    OfObject(Arc<str>),
}

impl From<&'static str> for Detail {
    fn from(words: &'static str) -> Self {
        Self::Fixed(words)
    }
}

impl From<&Arc<str>> for Detail {
    fn from(words: &Arc<str>) -> Self {
        Self::OfObject(words.clone())
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed(words) => words,
            Self::OfObject(words) => words,
        })
    }
}

/// Kinds of refusal, as labels of metrics and audit events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DenyReason {
    /// ALLOW policies apply and none has a rule for this connection.
    NoAllowMatched,
    /// A rule of a DENY policy matched.
    DenyMatched,
    /// A rule of a CUSTOM policy matched, whose authorizer L4 cannot ask.
    CustomMatched,
    /// Plaintext towards a port whose mode is STRICT.
    PlaintextIntoStrict,
    /// The peer is of a foreign trust domain and no ALLOW names it in full.
    ForeignTrustDomain,
    /// A policy of this workload was refused by the parser.
    PolicyNotUnderstood,
    /// The index was not built for this pod, so nothing is known to allow it.
    DestinationUnknown,
}

impl DenyReason {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoAllowMatched => "no_allow_matched",
            Self::DenyMatched => "deny_matched",
            Self::CustomMatched => "custom_matched",
            Self::PlaintextIntoStrict => "plaintext_into_strict",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::PolicyNotUnderstood => "policy_not_understood",
            Self::DestinationUnknown => "destination_unknown",
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names a policy: `ns/name` of an AuthorizationPolicy, `peer-authentication
/// ns/name`, or `default-allow`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRef(Arc<str>);

impl PolicyRef {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn authorization(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    pub(super) fn peer_authentication(namespace: &str, name: &str) -> Self {
        Self(format!("peer-authentication {namespace}/{name}").into())
    }

    pub(super) fn default_allow() -> Self {
        Self("default-allow".into())
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a port demands of its peers (policy.md §7). DISABLE is PERMISSIVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// An authenticated peer only.
    Strict,
    /// Plaintext too.
    Permissive,
}

impl MtlsMode {
    /// As PeerAuthentication spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
        }
    }
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the kernel does with a plaintext SYN to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlainVerdict {
    /// Let it through to the application.
    Pass,
    /// Hand it to the agent, which asks [`PolicyIndex::decide`](super::PolicyIndex::decide).
    Agent,
    /// Refuse and report it.
    Refuse,
}

/// The kernel's verdicts for plaintext to one pod, and what passes in spite of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPlan {
    /// For every port not in `ports`.
    pub default: PlainVerdict,
    /// Ports whose verdict differs from `default`.
    pub ports: BTreeMap<u16, PlainVerdict>,
    /// Ports at which kubelet may ask in clear.
    pub probed: Arc<[u16]>,
}
