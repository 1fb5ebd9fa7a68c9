//! Who may connect to whom: AuthorizationPolicy and PeerAuthentication,
//! compiled by destination and judged per connection.
//!
//! The semantics are those of Istio's L4 path (policy.md), with the safe
//! reading wherever that path fails open:
//!
//! * An attribute that L4 cannot see makes an ALLOW rule not match, and is
//!   taken as satisfied in a DENY rule.
//! * CUSTOM denies what its rules match, since nobody can ask its authorizer.
//! * Every identity pattern has two readings ([`matcher::Reading`]): the narrow
//!   one where a match grants (values of ALLOW, exceptions of DENY), the wide
//!   one where a match refuses (values of DENY, exceptions of ALLOW). Only the
//!   wide one lets wildcards, namespaces and service accounts reach identities
//!   of foreign trust domains.
//! * A foreign trust domain is denied unless an ALLOW names its principal in
//!   full, also where no policy applies.
//! * A policy that was not understood denies everything in its scope.

mod compile;
mod decision;
mod index;
pub mod matcher;
pub mod object;
mod peer_authentication;
mod prefix_table;
#[cfg(test)]
mod property;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
mod rule_index;
mod scope;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod validate;

pub use decision::{Connection, Denial, DenyReason, Detail, InboundPlan, MtlsMode, Permit, PlainVerdict, PolicyRef};
pub use index::{PolicyBinding, PolicyBuilder, PolicyIndex};
pub use object::{
    AuthorizationPolicy, AuthorizationPolicySpec, CreationTime, PeerAuthentication, PeerAuthenticationSpec,
    WorkloadSelector,
};
pub use scope::{NotUnderstood, PolicyKind, PolicySet};
pub use validate::{FieldError, FieldWarning};
