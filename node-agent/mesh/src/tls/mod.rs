//! TLS as HBONE has it: 1.3 only, AES-GCM only, ALPN `h2`, both ends
//! authenticated, nothing resumed (hbone.md §4-5).
//!
//! Resumption, tickets and 0-RTT are off on both sides: a resumed session
//! would skip the verification of the peer.
//!
//! rustls shakes hands and verifies; the records after that are [`record`]'s, in
//! place and without copies.

mod config;
mod drive;
mod failure;
mod handshake;
mod leaf;
pub(crate) mod record;
mod secrets;
mod service;
mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use failure::{HandshakeFailure, PeerAlert};
pub use handshake::{PeerFacts, Secured, accept, chain_is_trusted, connect, peer_still_trusted};
pub use leaf::{LeafError, LeafFacts};
pub use service::{ServiceSvid, service_client, service_server};

pub(crate) use handshake::SharedPeer;
