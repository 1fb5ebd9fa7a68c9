//! The copy seam: bytes between an application's TCP connection and its tunnel,
//! or another TCP connection, until both directions have ended.
//!
//! The callers see [`copy`], [`copy_plain`] and [`CopyOutcome`] only; how bytes
//! move behind them may change.

mod buffer;
mod plain;
mod tunnel;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

pub use plain::copy_plain;
pub use tunnel::copy;

use crate::live::CancelReason;

/// Bytes moved so far; written by the copy loop, read by status and metrics
/// while the connection lives.
#[derive(Debug, Default)]
pub struct ByteCounts {
    to_app: AtomicU64,
    to_tunnel: AtomicU64,
}

impl ByteCounts {
    /// Bytes written towards the application (or to the first socket of
    /// [`copy_plain`]).
    pub fn to_app(&self) -> u64 {
        self.to_app.load(Ordering::Relaxed)
    }

    /// Bytes written towards the tunnel (or to the second socket).
    pub fn to_tunnel(&self) -> u64 {
        self.to_tunnel.load(Ordering::Relaxed)
    }

    /// Sets both counts, where somebody else moved the bytes.
    pub fn set(&self, to_app: u64, to_tunnel: u64) {
        self.to_app.store(to_app, Ordering::Relaxed);
        self.to_tunnel.store(to_tunnel, Ordering::Relaxed);
    }

    pub(crate) fn add_to_app(&self, bytes: usize) {
        self.to_app.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_to_tunnel(&self, bytes: usize) {
        self.to_tunnel.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How a copied connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// Both directions were ended by their senders.
    Clean,
    /// The application reset its connection; the tunnel was reset in turn.
    AppReset,
    /// The other side (the peer's stream, or the second socket) was reset; the
    /// application was reset in turn.
    TunnelReset,
    /// Ended from outside; both were reset.
    Cancelled(CancelReason),
    /// A side broke in another way; both were reset.
    Error(String),
}

impl fmt::Display for CopyEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("closed by both ends"),
            Self::AppReset => f.write_str("reset by the application"),
            Self::TunnelReset => f.write_str("reset by the peer"),
            Self::Cancelled(reason) => reason.fmt(f),
            Self::Error(text) => f.write_str(text),
        }
    }
}

/// What a copied connection carried and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOutcome {
    /// Bytes written to the application (or to the first socket).
    pub to_app: u64,
    /// Bytes written to the tunnel (or to the second socket), early ones
    /// included.
    pub to_tunnel: u64,
    /// How it ended.
    pub end: CopyEnd,
}

/// Whether an error of a socket means that its peer is gone, as opposed to a
/// fault of ours.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted | K::NotConnected | K::TimedOut)
}

/// Closes `socket` with a RST: for a connection that was accepted and then
/// turned out to be impossible or forbidden, where a FIN would look like an
/// empty answer.
pub fn reset(socket: tokio::net::TcpStream) {
    reset_on_close(&socket);
}

/// Makes the close of `socket` a RST: what the other side did is passed on.
///
/// Sockets are so from the start, until their connection has ended cleanly: an
/// agent that is killed must not let half an answer pass for a whole one.
pub fn reset_on_close(socket: &tokio::net::TcpStream) {
    // Fails only for a socket that is closed already.
    let _ = socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

/// Takes [`reset_on_close`] back: both directions have ended.
fn clean_on_close(socket: &tokio::net::TcpStream) {
    // Fails only for a socket that is closed already.
    let _ = socket2::SockRef::from(socket).set_linger(None);
}

/// Ends the direction towards `socket`'s peer.
fn end_writing(socket: &tokio::net::TcpStream) -> io::Result<()> {
    socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write)
}
