//! Why a tunnelled connection could not be opened.

use std::io;

use http::StatusCode;
use warren_core::http2::{ErrorCode, HeadError, Http2Error};

use crate::telemetry::ResponseFlag;
use crate::tls::HandshakeFailure;
use crate::tls::record::RecordError;

/// Why a tunnel or a stream in it failed. Cheap to clone: several connections
/// may wait for one tunnel.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TunnelError {
    /// TCP to the peer's HBONE port failed.
    #[error("cannot reach the peer: {text}")]
    Dial {
        /// The kind of I/O error.
        kind: io::ErrorKind,
        /// Its text.
        text: String,
    },
    /// TCP to the peer's HBONE port got no answer: often a NetworkPolicy or
    /// firewall that does not let the tunnel port in.
    #[error("no answer from the peer's tunnel port; is it let through by network policies?")]
    DialTimeout,
    /// TLS failed.
    #[error("TLS: {0}")]
    Handshake(#[from] HandshakeFailure),
    /// A stream or its connection was ended in HTTP/2's own words.
    #[error("HTTP/2: {text}")]
    Http2 {
        /// What was said.
        text: String,
        /// The peer did not process the stream: it may be tried once more.
        unprocessed: bool,
    },
    /// The peer broke HTTP/2's rules.
    #[error("HTTP/2: {0}")]
    PeerFault(Http2Error),
    /// The connection under the tunnel broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The CONNECT request could not be made.
    #[error("the CONNECT request is not valid: {0}")]
    Request(String),
    /// The peer answered something other than 200.
    #[error("the peer answered {0}")]
    Refused(StatusCode),
    /// No answer to CONNECT in time.
    #[error("no answer to CONNECT in time")]
    ResponseTimeout,
    /// The application reset the connection before the tunnel was open.
    #[error("the application reset the connection")]
    AppReset,
    /// The peer stopped answering PINGs.
    #[error("the peer does not answer any more")]
    PeerDead,
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::broken(&error)
    }
}

impl TunnelError {
    pub(crate) fn dial(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::DialTimeout,
            kind => Self::Dial { kind, text: error.to_string() },
        }
    }

    pub(super) fn broken(error: &io::Error) -> Self {
        Self::Broken(error.to_string())
    }

    pub(super) fn closed_by_peer() -> Self {
        Self::Broken("closed by the peer".into())
    }

    /// A record that cannot be read or written. Soon after the handshake an alert is the peer's word about it.
    pub(super) fn record(error: &RecordError) -> Self {
        match error.late_failure() {
            Some(failure) => Self::Handshake(failure),
            None => Self::Broken(error.to_string()),
        }
    }

    /// The stream could not be opened: nothing has been sent.
    pub(super) fn not_opened(text: &str) -> Self {
        Self::Http2 { text: text.to_owned(), unprocessed: true }
    }

    /// The connection was over before the stream was opened; what the peer said about our certificate stays.
    pub(super) fn before_stream(self) -> Self {
        match self {
            Self::Handshake(failure) => Self::Handshake(failure),
            other => Self::Http2 { text: other.to_string(), unprocessed: true },
        }
    }

    /// A stream was reset. Only a refused one is certain not to have been processed.
    pub(super) fn reset(code: ErrorCode, by_peer: bool) -> Self {
        let unprocessed = by_peer && code == ErrorCode::REFUSED_STREAM;
        let by = if by_peer { "by the peer" } else { "for a fault of the peer's" };
        Self::Http2 { text: format!("the stream was reset {by} with {code}"), unprocessed }
    }

    /// A stream above the last one of a graceful GOAWAY.
    pub(super) fn unprocessed(code: ErrorCode) -> Self {
        let text = format!("the peer went away with {code} before it took the stream");
        Self::Http2 { text, unprocessed: code == ErrorCode::NO_ERROR }
    }

    pub(super) fn malformed(error: &HeadError) -> Self {
        Self::Http2 { text: format!("the answer is malformed: {error}"), unprocessed: false }
    }

    /// Whether the request may be sent once more: no byte was delivered.
    pub fn may_retry(&self) -> bool {
        matches!(self, Self::Http2 { unprocessed: true, .. })
    }

    /// Istio's `response_flags` value.
    pub fn response_flag(&self) -> ResponseFlag {
        match self {
            Self::DialTimeout => ResponseFlag::NetworkPolicy,
            Self::Handshake(HandshakeFailure::Revoked) => ResponseFlag::CertRevoked,
            Self::Handshake(_) => ResponseFlag::TlsFailure,
            Self::Http2 { .. } | Self::PeerFault(_) | Self::Broken(_) | Self::PeerDead => {
                ResponseFlag::H2HandshakeFailure
            }
            Self::Refused(StatusCode::UNAUTHORIZED) => ResponseFlag::Deny,
            _ => ResponseFlag::Connect,
        }
    }
}
