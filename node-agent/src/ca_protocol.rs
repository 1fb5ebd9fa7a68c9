//! What agents and controllers say to each other: HTTP/2 over TLS, one request for each SVID, JSON.
//!
//! The path has the version. Later versions add fields, which older ones do not read; a change of meaning gets a new
//! path, and controllers serve the old one for one more release.

use serde::{Deserialize, Serialize};

/// `POST` of a [`SvidRequest`], answered by [`SvidAnswer`] or [`Refused`].
pub(crate) const SVID_PATH: &str = "/v1/svid";
/// The audience of the token that proves an agent.
pub(crate) const AUDIENCE: &str = "warren-ca";
/// Port of the controllers' service.
pub(crate) const PORT: u16 = 15012;
/// Name of the controllers' Service, Deployment, ServiceAccount and Lease.
pub(crate) const CONTROLLER: &str = "warren-controller";
/// The agents' ServiceAccount.
pub(crate) const AGENT: &str = "warren-agent";
/// Name of the ConfigMap with the trusted roots.
pub(crate) const BUNDLE: &str = "warren-trust-bundle";
/// Key of the roots in it, PEM.
pub(crate) const BUNDLE_PEM: &str = "trust-bundle.pem";
/// Key of what is said about them: [`BundleNotes`].
pub(crate) const BUNDLE_NOTES: &str = "state.json";
/// Version of [`BundleNotes`].
pub(crate) const BUNDLE_FORMAT: u32 = 1;
/// Longest body of a request or of an answer.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// The identity that every controller has.
pub(crate) fn controller_id(trust_domain: &str, namespace: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{CONTROLLER}")
}

/// A pod that wants an SVID.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SvidRequest {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) pod: String,
    /// Its UID.
    pub(crate) uid: String,
    /// PKCS#10 in PEM; only its public key counts.
    pub(crate) request: String,
}

/// An SVID.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SvidAnswer {
    /// Leaf, then intermediates, PEM.
    pub(crate) chain: String,
}

/// Why there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// A short, stable word.
    pub(crate) reason: String,
    /// The same for people.
    pub(crate) message: String,
}

/// What the ConfigMap says beside the roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BundleNotes {
    /// [`BUNDLE_FORMAT`].
    pub(crate) format: u32,
    /// Grows with every change of roots or issuer; an agent takes no older one.
    pub(crate) sequence: u64,
    /// Whose roots these are.
    pub(crate) trust_domain: String,
    /// The intermediate that signs now; SVIDs of others are renewed.
    pub(crate) issuer: String,
    /// The rotation under way, for `warren ca status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rotation: Option<RotationNotes>,
}

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RotationNotes {
    /// `root` or `intermediate`.
    pub(crate) what: String,
    /// `distribute` or `renew`.
    pub(crate) step: String,
    /// When this step began, RFC 3339.
    pub(crate) since: String,
    /// The nodes that it waits for, each with the reason.
    pub(crate) waiting: Vec<WaitingNode>,
}

/// A node that has not followed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitingNode {
    /// Its name.
    pub(crate) node: String,
    /// What it lacks.
    pub(crate) reason: String,
}
