//! The shapes of Warren's evidence: one audit event per connection, one
//! record per TLS handshake (seeds.md §2). Plain data; the mesh crate fills
//! and writes it. Field order is the order in the output.

use serde::{Deserialize, Serialize};

use crate::identity::SpiffeId;

/// Which end of the connection wrote the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Written at the destination pod.
    Inbound,
    /// Written at the source pod.
    Outbound,
}

/// The outcome of the policy decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Decision {
    /// The connection was permitted.
    Allow,
    /// The connection was refused.
    Deny,
}

/// One end of a connection, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// `ip:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Workload name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Pod name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Kubernetes service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// One connection, permitted or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// Always `connection`.
    pub event: ConnectionEvent,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// Joins the event with the handshake record and the access log.
    pub connection_id: String,
    /// Which end wrote it.
    pub direction: Direction,
    /// The identity the source proved; absent in plaintext.
    pub source_identity: Option<SpiffeId>,
    /// The identity of the destination; absent when unknown.
    pub destination_identity: Option<SpiffeId>,
    /// The source end.
    pub source: Party,
    /// The destination end.
    pub destination: Party,
    /// `namespace/name` of the service that was addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_service: Option<String>,
    /// HTTP method, known to a waypoint only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path, known to a waypoint only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether both ends proved their identity by TLS.
    pub mtls: bool,
    /// What vouches for the identities: `tls`, or `kernel` where both ends are
    /// pods of one node, known by their network namespaces, and the bytes ran
    /// between them without TLS. Absent in plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated_by: Option<String>,
    /// Issuer of the peer's SVID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Trust domain of the peer's SVID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// The policy that decided, `namespace/name` or a built-in name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What was decided.
    pub decision: Decision,
    /// Why it was refused, why a permitted connection failed, or why it went in clear although its destination is meant
    /// to be in the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How it was carried: `tunnel`, `plain`, `own`, `kernel`, `probe`, `none`.
    pub route: String,
    /// Status of the CONNECT response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_code: Option<u16>,
    /// Istio's `response_flags`; `-` when nothing went wrong.
    pub response_flags: String,
    /// Milliseconds from accept to the first moment bytes could flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Milliseconds from accept to the end, in the closing event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Bytes from source to destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes from destination to source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Node of the agent that wrote the event.
    pub node: String,
    /// Cluster of that agent.
    pub cluster: String,
    /// Region of that agent.
    pub region: String,
    /// W3C trace id, 32 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// The constant `connection`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionEvent {
    /// `connection`.
    #[default]
    #[serde(rename = "connection")]
    Connection,
}

/// The constant `mtls_handshake`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandshakeEvent {
    /// `mtls_handshake`.
    #[default]
    #[serde(rename = "mtls_handshake")]
    MtlsHandshake,
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandshakeResult {
    /// Both ends accepted each other.
    Success,
    /// One of them did not; `failure_reason` says why.
    Failure,
}

/// One TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRecord {
    /// Always `mtls_handshake`.
    pub event: HandshakeEvent,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// Joins the record with the audit event; empty if no connection caused
    /// the handshake.
    pub connection_id: String,
    /// Which end wrote it.
    pub direction: Direction,
    /// Dialled ahead of need: no connection wanted it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ahead: bool,
    /// Source workload, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_workload: Option<String>,
    /// Destination workload, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_workload: Option<String>,
    /// Identity of the source, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<SpiffeId>,
    /// Identity of the destination, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_identity: Option<SpiffeId>,
    /// How it ended.
    pub result: HandshakeResult,
    /// One of the words of seeds.md §2, e.g. `certificate_expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// What the reason does not say: the two names of a mismatch, the
    /// library's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `1.3`; absent when the handshake did not get that far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_version: Option<String>,
    /// Negotiated cipher suite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher_suite: Option<String>,
    /// Milliseconds.
    pub duration_ms: u64,
}

/// The constant `enrolment`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnrolmentKind {
    /// `enrolment`.
    #[default]
    Enrolment,
}

/// What happened to a pod's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnrolmentAction {
    /// It runs on and is no longer captured: from now on it talks in clear.
    Left,
}

/// A running pod's membership changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentEvent {
    /// Always `enrolment`.
    pub event: EnrolmentKind,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// What happened.
    pub action: EnrolmentAction,
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// The identity it had in the mesh.
    pub identity: SpiffeId,
    /// Who wants it so.
    pub reason: String,
    /// The node.
    pub node: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_event_has_the_words_of_the_seed() {
        let event = AuditEvent {
            event: ConnectionEvent::Connection,
            timestamp: "2026-07-01T10:13:01Z".into(),
            connection_id: "1".into(),
            direction: Direction::Inbound,
            source_identity: Some("spiffe://prod.example.com/ns/frontend/sa/web".parse().unwrap()),
            destination_identity: None,
            source: Party::default(),
            destination: Party { namespace: Some("ledger".into()), ..Party::default() },
            destination_service: None,
            method: None,
            path: None,
            mtls: true,
            authenticated_by: Some("tls".into()),
            issuer: None,
            trust_domain: None,
            policy: Some("ledger/default-deny-ledger".into()),
            decision: Decision::Deny,
            reason: Some("source principal not allowed".into()),
            route: "none".into(),
            response_code: Some(401),
            response_flags: "DENY".into(),
            latency_ms: None,
            duration_ms: None,
            bytes_sent: None,
            bytes_received: None,
            node: "a".into(),
            cluster: "prod-idn-a".into(),
            region: "ap-southeast-3".into(),
            trace_id: None,
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["source_identity"], "spiffe://prod.example.com/ns/frontend/sa/web");
        assert_eq!(json["decision"], "DENY");
        assert_eq!(json["mtls"], true);
        assert_eq!(json["event"], "connection");
        assert_eq!(json["destination"]["namespace"], "ledger");
        assert!(json.get("method").is_none());
        assert_eq!(serde_json::from_value::<AuditEvent>(json).unwrap(), event);
    }

    #[test]
    fn a_handshake_record_has_the_words_of_the_seed() {
        let record = HandshakeRecord {
            event: HandshakeEvent::MtlsHandshake,
            timestamp: "2026-07-01T10:13:01Z".into(),
            connection_id: "abc123".into(),
            direction: Direction::Outbound,
            ahead: false,
            source_workload: Some("payment-service".into()),
            destination_workload: Some("invoice-service".into()),
            source_identity: None,
            destination_identity: None,
            result: HandshakeResult::Failure,
            failure_reason: Some("certificate_expired".into()),
            detail: None,
            tls_version: None,
            cipher_suite: None,
            duration_ms: 12,
        };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["event"], "mtls_handshake");
        assert_eq!(json["result"], "failure");
        assert_eq!(json["failure_reason"], "certificate_expired");
        assert_eq!(json["duration_ms"], 12);
    }
}
