//! Why a handshake failed, in the words of the handshake record (seeds.md §2).

use rustls::AlertDescription;
use warren_core::identity::{SpiffeId, TrustDomain};

/// A TLS alert by which the peer ended the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAlert(pub AlertDescription);

impl PeerAlert {
    /// What the peer most likely found wrong with *our* certificate.
    fn reason(self) -> &'static str {
        match self.0 {
            AlertDescription::CertificateExpired => "certificate_expired",
            AlertDescription::CertificateRevoked => "revoked",
            AlertDescription::UnknownCA => "chain_validation_failed",
            AlertDescription::AccessDenied | AlertDescription::CertificateUnknown => "identity_mismatch",
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError => "chain_validation_failed",
            _ => "protocol",
        }
    }
}

/// Why two ends did not agree on a tunnel. Cheap to clone: several connections
/// may wait for one handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeFailure {
    /// A certificate of the peer's chain has expired.
    #[error("the peer's certificate has expired: {0}")]
    CertificateExpired(String),
    /// A certificate of the peer's chain is not valid yet.
    #[error("the peer's certificate is not valid yet: {0}")]
    NotYetValid(String),
    /// The chain does not lead to a trusted root, or the leaf is not an SVID.
    #[error("the peer's certificate chain is not valid: {0}")]
    ChainValidationFailed(String),
    /// The leaf's issuer is neither sent nor trusted.
    #[error("the issuer of the peer's certificate is missing: {0}")]
    MissingIssuer(String),
    /// The peer is of another trust domain.
    #[error("the peer {presented} is not of trust domain {own}")]
    TrustDomain {
        /// Our own trust domain.
        own: TrustDomain,
        /// Who the peer says it is; not verified.
        presented: SpiffeId,
    },
    /// The peer is genuine, but not who was expected.
    #[error("the peer is {presented}, expected {}", list(.expected))]
    IdentityMismatch {
        /// Who was acceptable; an empty list accepts nobody.
        expected: Vec<SpiffeId>,
        /// Who the peer is.
        presented: SpiffeId,
    },
    /// The peer's certificate was revoked.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// The peer does not speak TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The peer speaks TLS, but not this one (version, cipher, ALPN).
    #[error("no common protocol: {0}")]
    Protocol(String),
    /// The peer refused our certificate or our parameters.
    #[error("refused by the peer with alert {0:?}")]
    RefusedByPeer(PeerAlert),
    /// It took too long.
    #[error("the handshake timed out")]
    Timeout,
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(String),
}

impl HandshakeFailure {
    /// The word for `failure_reason` and the metric label `reason`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::CertificateExpired(_) => "certificate_expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::ChainValidationFailed(_) => "chain_validation_failed",
            Self::MissingIssuer(_) => "missing_issuer",
            Self::TrustDomain { .. } => "trust_domain",
            Self::IdentityMismatch { .. } => "identity_mismatch",
            Self::Revoked => "revoked",
            Self::NotTls => "not_tls",
            Self::Protocol(_) => "protocol",
            Self::RefusedByPeer(alert) => alert.reason(),
            Self::Timeout => "timeout",
            Self::Io(_) => "io",
        }
    }

    /// The identity the peer presented, where it got that far.
    pub fn presented(&self) -> Option<&SpiffeId> {
        match self {
            Self::TrustDomain { presented, .. } | Self::IdentityMismatch { presented, .. } => Some(presented),
            _ => None,
        }
    }
}

fn list(ids: &[SpiffeId]) -> String {
    if ids.is_empty() {
        return "nobody".into();
    }
    ids.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(" or ")
}

/// Reads the cause out of an error of rustls. Failures of our own verifier are not seen here: it keeps them, with their
/// detail, itself.
pub(super) fn classify_tls(error: &rustls::Error) -> HandshakeFailure {
    use rustls::{Error, InvalidMessage};
    match error {
        Error::AlertReceived(alert) => HandshakeFailure::RefusedByPeer(PeerAlert(*alert)),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => HandshakeFailure::NotTls,
        Error::NoCertificatesPresented => {
            HandshakeFailure::ChainValidationFailed("the peer sent no certificate".into())
        }
        Error::InvalidCertificate(error) => HandshakeFailure::ChainValidationFailed(error.to_string()),
        other => HandshakeFailure::Protocol(other.to_string()),
    }
}
