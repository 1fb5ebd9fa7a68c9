//! Splice: the bytes of connections within the node go from socket to socket, past TCP.
//!
//! A connection that the node's programs admitted has both its sockets here. What one sends is put into the queue of the
//! other while there is room, and is given to TCP while there is not; what TCP delivers joins the same queue. So there is
//! one order, and TCP's flow control bounds the memory.

mod btf;
mod layout;
mod object;
mod self_test;
mod ways;

pub(super) use self::object::SpliceObject;
pub(crate) use self::object::Which;
pub(super) use self::self_test::{TestFailure, run as self_test};
#[cfg(test)]
pub(super) use self::ways::{Ends, Ways};

use self::btf::BtfError;
use super::bpf::BpfError;
use super::error::CaptureError;

/// Why this kernel does not splice.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpliceError {
    /// It keeps things elsewhere than is known, or does not say where.
    #[error(transparent)]
    Layout(#[from] BtfError),
    /// It refused the programs.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// It does it wrong.
    #[error("self-test: {0}")]
    SelfTest(#[from] TestFailure),
}

impl From<BpfError> for SpliceError {
    fn from(error: BpfError) -> Self {
        Self::Capture(error.into())
    }
}
