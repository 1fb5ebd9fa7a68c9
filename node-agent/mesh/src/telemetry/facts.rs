//! What is known of a connection's ends, independent of where it came from.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use time::OffsetDateTime;
use warren_core::audit::{Direction, Party};
use warren_core::identity::SpiffeId;
use warren_core::tunnel::Baggage;
use warren_core::world::{MeshConfig, Pod};

/// Pods whose facts a worker keeps at hand.
const MOST_KNOWN: usize = 16_384;

/// The pod that facts are of, and the facts.
type Known = (Weak<Pod>, Arc<WorkloadFacts>);

/// One end of a connection, for logs, audit and metric labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// Pod name; empty when unknown.
    pub pod: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Name of the owning workload.
    pub workload: String,
    /// Istio's canonical service.
    pub canonical_service: String,
    /// Istio's canonical revision.
    pub canonical_revision: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// Cluster.
    pub cluster: String,
    /// Identity by the world; proven only if the connection has mTLS.
    pub identity: Option<SpiffeId>,
}

impl WorkloadFacts {
    /// Of a pod of the world. Connections of one pod share them: a worker makes them once for each version of the pod.
    pub fn of(pod: &Arc<Pod>, mesh: &MeshConfig) -> Arc<Self> {
        thread_local! {
            static KNOWN: RefCell<HashMap<*const Pod, Known>> = RefCell::default();
        }
        KNOWN.with_borrow_mut(|known| {
            if let Some((of, facts)) = known.get(&Arc::as_ptr(pod))
                && of.strong_count() > 0
                && facts.cluster == mesh.cluster
            {
                return Arc::clone(facts);
            }
            if known.len() >= MOST_KNOWN {
                known.retain(|_, (of, _)| of.strong_count() > 0);
            }
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
            let facts = Arc::new(Self::read(pod, mesh));
            known.insert(Arc::as_ptr(pod), (Arc::downgrade(pod), Arc::clone(&facts)));
            facts
        })
    }

    fn read(pod: &Pod, mesh: &MeshConfig) -> Self {
        let label = |key: &str| pod.labels.get(key).unwrap_or_default().to_owned();
        Self {
            pod: pod.name.to_string(),
            namespace: pod.namespace.to_string(),
            service_account: pod.service_account.to_string(),
            workload: pod.workload.name.to_string(),
            canonical_service: pod.canonical_name.to_string(),
            canonical_revision: pod.canonical_revision.to_string(),
            app: label("app"),
            version: label("version"),
            cluster: mesh.cluster.clone(),
            identity: Some(pod.identity.clone()),
        }
    }

    /// Of a peer outside the world, as it describes itself, with the identity
    /// it proved.
    pub fn of_peer(baggage: &Baggage, identity: &SpiffeId) -> Arc<Self> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Arc::new(Self {
            namespace: identity.namespace().into(),
            service_account: identity.service_account().into(),
            workload: baggage.workload.as_ref().map(|w| w.name.to_string()).unwrap_or_default(),
            canonical_service: text(&baggage.service_name),
            canonical_revision: text(&baggage.service_version),
            cluster: text(&baggage.cluster),
            identity: Some(identity.clone()),
            ..Self::default()
        })
    }

    pub(super) fn party(facts: Option<&Self>, address: SocketAddr) -> Party {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Party {
            address: Some(address.to_string()),
            namespace: facts.and_then(|f| some(&f.namespace)),
            workload: facts.and_then(|f| some(&f.workload)),
            pod: facts.and_then(|f| some(&f.pod)),
            service_account: facts.and_then(|f| some(&f.service_account)),
        }
    }
}

/// The service that a connection was addressed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Full host name.
    pub hostname: String,
}

/// Names a connection; shown as `NODE-NUMBER`.
#[derive(Debug, Clone)]
pub struct ConnectionName {
    pub(super) node: Arc<str>,
    pub(super) number: u64,
}

impl fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.node, self.number)
    }
}

/// What is known when a connection is accepted.
#[derive(Debug, Clone)]
pub struct ConnectionFacts {
    /// From [`Telemetry::connection_id`](super::Telemetry::connection_id).
    pub connection_id: ConnectionName,
    /// Which end this agent is.
    pub direction: Direction,
    /// The source, if known.
    pub source: Option<Arc<WorkloadFacts>>,
    /// The destination, if known.
    pub destination: Option<Arc<WorkloadFacts>>,
    /// Address of the source.
    pub src_addr: SocketAddr,
    /// Address the source asked for; inbound over HBONE: the dialled pod
    /// address with the tunnel port.
    pub dst_addr: SocketAddr,
    /// Service that was addressed, if any.
    pub service: Option<ServiceFacts>,
}

/// Istio's `response_flags` of TCP (hbone.md §22), and `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Nothing went wrong.
    None,
    /// Denied by policy.
    Deny,
    /// The next hop or the application could not be reached.
    Connect,
    /// TLS handshake failed.
    TlsFailure,
    /// HTTP/2 failed.
    H2HandshakeFailure,
    /// No answer from the tunnel port.
    NetworkPolicy,
    /// No SVID.
    IdentityError,
    /// A certificate was revoked.
    CertRevoked,
    /// Warren's own: the world knows no way.
    NoRoute,
    /// Warren's own: reset, cancelled or broken after it was open.
    Aborted,
}

impl ResponseFlag {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
            Self::NoRoute => "NO_ROUTE",
            Self::Aborted => "ABORTED",
        }
    }
}

/// RFC 3339, UTC, with milliseconds.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let t = OffsetDateTime::from(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let at = UNIX_EPOCH + Duration::from_millis(1_782_900_781_042);
        assert_eq!(rfc3339(at), "2026-07-01T10:13:01.042Z");
    }
}
