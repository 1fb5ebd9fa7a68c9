//! Why a tunnelled connection could not be opened.

use std::io;

use http::StatusCode;

use crate::telemetry::ResponseFlag;
use crate::tls::HandshakeFailure;

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
    /// HTTP/2 failed.
    #[error("HTTP/2: {text}")]
    Http2 {
        /// The library's words.
        text: String,
        /// The peer did not process the stream: it may be tried once more.
        unprocessed: bool,
    },
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

impl TunnelError {
    pub(crate) fn dial(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::DialTimeout,
            kind => Self::Dial { kind, text: error.to_string() },
        }
    }

    /// From h2. Only a refused stream, or one above the last-stream-id of a
    /// graceful GOAWAY, is certain not to have been processed.
    pub(crate) fn http2(error: &h2::Error) -> Self {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let gone = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let unprocessed = error.is_remote() && (refused || gone);
        Self::Http2 { text: error.to_string(), unprocessed }
    }

    /// From h2, before the stream was opened: nothing has been sent.
    pub(crate) fn before_stream(error: &h2::Error) -> Self {
        Self::Http2 { text: error.to_string(), unprocessed: true }
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
            Self::Http2 { .. } | Self::PeerDead => ResponseFlag::H2HandshakeFailure,
            Self::Refused(StatusCode::UNAUTHORIZED) => ResponseFlag::Deny,
            _ => ResponseFlag::Connect,
        }
    }
}
