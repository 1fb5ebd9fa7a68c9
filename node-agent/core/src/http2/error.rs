//! Error codes and the errors that end a connection (RFC 9113 §5.4, §7).

use std::fmt;

use super::hpack::HpackError;

/// An HTTP/2 error code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Graceful.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A fault of our own.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The peer sent more than its window allowed.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame for a stream that is half-closed already.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of the wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Not processed; it may be tried again elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// No longer wanted.
    pub const CANCEL: Self = Self(8);
    /// A header block could not be decoded.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The connection behind CONNECT broke.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer does too much of something.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(self.0 as usize).copied()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the connection must end: what the peer did, and the code that it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Http2Error {
    /// For GOAWAY.
    pub code: ErrorCode,
    /// In words.
    pub reason: &'static str,
}

impl Http2Error {
    pub(super) const fn new(code: ErrorCode, reason: &'static str) -> Self {
        Self { code, reason }
    }

    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self::new(ErrorCode::PROTOCOL_ERROR, reason)
    }
}

impl From<HpackError> for Http2Error {
    fn from(error: HpackError) -> Self {
        Self::new(ErrorCode::COMPRESSION_ERROR, error.0)
    }
}
