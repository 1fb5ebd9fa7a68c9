//! What `GET /v1/status` says: written by the agent, read by `warren status` of this version and the one before.

use serde::{Deserialize, Serialize};

/// Path of the status on the agent's socket; the number is the version of [`Status`].
pub(crate) const STATUS_PATH: &str = "/v1/status";
/// `POST` of this with `NAMESPACE/POD` behind it makes that pod's SVID anew.
pub(crate) const RENEW_PATH: &str = "/v1/certs/renew/";
/// Path to which a POST ends connections that are older than their pod's enrolment.
pub(crate) const CUT_PATH: &str = "/v1/connections/cut";
/// Version of [`Status`]: raised when a field changes its meaning; new fields do not raise it.
pub(crate) const STATUS_VERSION: u32 = 1;

/// Everything an operator asks first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// [`STATUS_VERSION`] of the agent.
    pub(crate) version: u32,
    /// The agent's release.
    pub(crate) release: String,
    /// Node name.
    pub(crate) node: String,
    /// SPIFFE trust domain.
    pub(crate) trust_domain: String,
    /// World loaded and every local pod enrolled or reported.
    pub(crate) ready: bool,
    /// The world that is enforced.
    pub(crate) world: WorldStatus,
    /// Local pods of the mesh.
    pub(crate) pods: Vec<PodStatus>,
    /// Live connections, by open time.
    pub(crate) connections: Vec<ConnectionStatus>,
    /// Certificates that sign.
    pub(crate) issuers: Vec<IssuerStatus>,
    /// Descriptors for connections.
    pub(crate) descriptors: DescriptorStatus,
    /// What the auditor found since start, newest last.
    pub(crate) findings: Vec<FindingStatus>,
}

/// The world that is enforced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorldStatus {
    /// Counts loads since the agent started.
    pub(crate) generation: u64,
    /// Seconds since this generation was loaded.
    pub(crate) age_seconds: u64,
    /// The manifests cannot be read at present; the last good world serves.
    pub(crate) source_error: Option<String>,
    /// Documents that were refused or ignored.
    pub(crate) rejections: Vec<String>,
    /// Policies and what became of them.
    pub(crate) objects: Vec<ObjectStatus>,
    /// The watches of a cluster's API server; none if the world is read from files.
    #[serde(default)]
    pub(crate) watches: Vec<WatchStatus>,
}

/// The watch of one kind of object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WatchStatus {
    /// The kind.
    pub(crate) kind: String,
    /// `connecting`, `listing`, `watching`, or `missing` if the cluster has no such kind.
    pub(crate) standing: String,
    /// Every object has been told of once.
    pub(crate) synced: bool,
    /// Seconds since the API server last said anything of the kind.
    pub(crate) age_seconds: u64,
    /// Why it does not watch at present.
    pub(crate) error: Option<String>,
}

/// What became of one policy object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ObjectStatus {
    /// `Kind namespace/name`.
    pub(crate) object: String,
    /// Whether it is enforced.
    pub(crate) accepted: bool,
    /// How many pods it binds.
    pub(crate) pods: usize,
    /// Refusal or warnings, in words.
    pub(crate) messages: Vec<String>,
}

/// One local pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodStatus {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// UID.
    pub(crate) uid: String,
    /// Its SPIFFE ID.
    pub(crate) identity: String,
    /// Its addresses.
    pub(crate) ips: Vec<String>,
    /// `enrolled`, `failed`, `leaving`, `observed` or `refused`.
    pub(crate) state: String,
    /// Why it is not enrolled.
    pub(crate) error: Option<PodError>,
    /// `STRICT` or `PERMISSIVE`, of ports without a mode of their own.
    pub(crate) mode: String,
    /// Its certificate.
    pub(crate) svid: Option<SvidStatus>,
    /// Why it has no valid certificate, or why the last renewal failed.
    pub(crate) svid_error: Option<String>,
    /// Path of its network namespace.
    pub(crate) netns: String,
    /// Cookie of its network namespace, once enrolled.
    pub(crate) cookie: Option<u64>,
    /// Live connections.
    pub(crate) connections: usize,
    /// Ports at which kubelet may ask it in clear.
    #[serde(default)]
    pub(crate) probe_ports: Vec<u16>,
    /// Why kubelet's probes are refused nevertheless.
    #[serde(default)]
    pub(crate) probe_error: Option<String>,
}

/// Why a pod is not enrolled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodError {
    /// The enrolment step that failed.
    pub(crate) step: String,
    /// What went wrong.
    pub(crate) reason: String,
}

/// One X.509-SVID.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SvidStatus {
    /// Serial number, hexadecimal.
    pub(crate) serial: String,
    /// End of validity, RFC 3339.
    pub(crate) not_after: String,
    /// Seconds until then; negative once expired.
    pub(crate) remaining_seconds: i64,
}

/// One live connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionStatus {
    /// Number, unique while the agent lives.
    pub(crate) id: u64,
    /// `outbound` or `inbound`.
    pub(crate) direction: String,
    /// How it is carried: `mtls`, `plaintext`, `kernel` (plaintext that passes in the kernel), `probe` or
    /// `pre-enrolment`.
    pub(crate) transport: String,
    /// Caller's address.
    pub(crate) source: String,
    /// Address the caller dialled (outbound) or the application's (inbound).
    pub(crate) destination: String,
    /// Caller's SPIFFE ID, if proven.
    pub(crate) source_identity: Option<String>,
    /// Server's SPIFFE ID, if proven.
    pub(crate) destination_identity: Option<String>,
    /// The policy that allowed it.
    pub(crate) policy: Option<String>,
    /// Seconds since it was opened.
    pub(crate) age_seconds: u64,
}

/// One signing certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct IssuerStatus {
    /// `root` or `intermediate`.
    pub(crate) kind: String,
    /// Subject.
    pub(crate) subject: String,
    /// Serial number, hexadecimal.
    pub(crate) serial: String,
    /// End of validity, RFC 3339.
    pub(crate) not_after: String,
}

/// Descriptors for connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DescriptorStatus {
    /// In use.
    pub(crate) used: usize,
    /// The budget.
    pub(crate) total: usize,
}

/// One difference between the kernel and the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FindingStatus {
    /// When, RFC 3339.
    pub(crate) time: String,
    /// Where and what.
    pub(crate) what: String,
    /// Whether it was repaired.
    pub(crate) repaired: bool,
}
