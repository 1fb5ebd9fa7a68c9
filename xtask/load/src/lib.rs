//! A load generator for TCP: one server and several kinds of clients, each a
//! few lines of epoll in one thread, that check every byte they receive.
//!
//! Server and client run in processes of their own, so that each can be in the
//! network namespace of its pod; [`report::Report`] is what a client prints.
#![forbid(unsafe_code)]

pub mod client;
pub mod cpu;
pub mod delay;
mod flow;
pub mod latency;
mod net;
pub mod pattern;
pub mod report;
pub mod server;
pub mod wire;

pub use net::raise_open_files;

use std::io;
use std::net::SocketAddr;

use crate::pattern::Mismatch;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A byte was not the one that was sent.
    #[error("wrong byte: {0}")]
    Mismatch(#[from] Mismatch),
    /// The peer did not keep to the load's own protocol.
    #[error("protocol: {0}")]
    Protocol(&'static str),
    /// A stream's end says that bytes were lost or invented.
    #[error("{sent} bytes were sent and {received} received")]
    Lost {
        /// What the sender counted.
        sent: u64,
        /// What the receiver counted.
        received: u64,
    },
    /// A connection ended while bytes were owed.
    #[error("the connection ended early")]
    Ended,
    /// Nothing happened for too long.
    #[error("nothing happened for {0} s")]
    Stalled(u64),
    /// A connection could not be made.
    #[error("connect to {to}: {cause}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// Any other system call.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Fault {
    /// Whether it is a connection that failed, as happens to applications
    /// whose peer goes away; wrong and lost bytes are never that.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Ended | Self::Connect { .. } => true,
            Self::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::TimedOut
            ),
            _ => false,
        }
    }
}
