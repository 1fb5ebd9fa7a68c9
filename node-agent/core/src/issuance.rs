//! The shape of a controller's evidence: one event for each SVID that it issued or refused.

use serde::{Deserialize, Serialize};

use crate::identity::SpiffeId;

/// The constant `svid`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssuanceKind {
    /// `svid`.
    #[default]
    Svid,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssuanceResult {
    /// The pod has an SVID.
    Issued,
    /// It got none.
    Refused,
}

/// One request for an SVID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuanceEvent {
    /// Always `svid`.
    pub event: IssuanceKind,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// What became of it.
    pub result: IssuanceResult,
    /// A short, stable word: why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The node whose agent asked, if it proved itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The pod's namespace, as asked for.
    pub namespace: String,
    /// Its name, as asked for.
    pub pod: String,
    /// Its UID, as asked for.
    pub pod_uid: String,
    /// The identity in the SVID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// The SVID's serial number, lower-case hex: peers' handshakes show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The intermediate that signed it, as RFC 4514 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// End of its validity, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}
