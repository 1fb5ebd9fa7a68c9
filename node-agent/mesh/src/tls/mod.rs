//! TLS as HBONE has it: 1.3 only, AES-GCM only, ALPN `h2`, both ends
//! authenticated, nothing resumed (hbone.md §4-5).
//!
//! Resumption, tickets and 0-RTT are off on both sides: a resumed session
//! would skip the verification of the peer.

mod config;
mod failure;
mod handshake;
mod leaf;
mod verify;

#[cfg(test)]
mod tests;

pub use failure::{HandshakeFailure, PeerAlert};
pub use handshake::{PeerFacts, TlsStream, accept, connect, peer_still_trusted};
pub use leaf::{LeafError, LeafFacts};

pub(crate) use failure::classify_io;
pub(crate) use handshake::SharedPeer;
