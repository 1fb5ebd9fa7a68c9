//! Which pooled tunnel a connection may use, and when one is dialled ahead of
//! need. The key and the rules only; connections themselves live in the mesh
//! crate.

mod ahead;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::identity::SpiffeId;
use crate::route::TunnelRoute;

pub use ahead::{Ahead, Demand, PAUSE_LONGEST, PAUSE_SHORTEST, ahead, expiry_lead, is_ready, pause};

/// Everything that must be equal before two connections may share a tunnel
/// (hbone.md §14).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Identity presented by the source.
    pub source: SpiffeId,
    /// Identities accepted from the peer.
    pub expected: Vec<SpiffeId>,
    /// `IP:15008` of the peer.
    pub destination: SocketAddr,
    /// The source pod's address; the peer's policy may look at it.
    pub source_ip: IpAddr,
}

impl PoolKey {
    /// The key of a tunnel along `route`, dialled by `source` from
    /// `source_ip`.
    pub fn new(source: SpiffeId, source_ip: IpAddr, route: &TunnelRoute) -> Self {
        Self { source, expected: route.expected.clone(), destination: route.hbone, source_ip }
    }
}

/// What is known of a pooled tunnel when a stream is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelState {
    /// Streams opened on it and not yet closed.
    pub streams: u32,
    /// The peer's MAX_CONCURRENT_STREAMS.
    pub peer_limit: u32,
    /// Our own limit per tunnel.
    pub own_limit: u32,
    /// A stream on it moves as much as it can.
    pub heavy: bool,
    /// The peer sent GOAWAY, or the connection failed.
    pub closing: bool,
    /// Time since the last stream ended; zero while one is open.
    pub unused: Duration,
    /// How long an unused tunnel is kept.
    pub unused_limit: Duration,
    /// Time left until the SVID it was made with expires.
    pub svid_remaining: Duration,
    /// How long before that expiry its successor is wanted.
    pub svid_lead: Duration,
}

/// What to do with a pooled tunnel when a stream is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkout {
    /// Open the stream here; the tunnel stays in the pool.
    Use,
    /// Open the stream here; it is the last one, the tunnel leaves the pool
    /// and its streams finish on it.
    UseLast,
    /// Usable, but another one is better: what is sent here waits behind a
    /// heavy stream.
    Avoid,
    /// Not usable for new streams; the tunnel leaves the pool, its streams go
    /// on.
    Retire,
}

/// Decides about one pooled tunnel. A tunnel whose SVID has expired is never
/// used again: it would outlive the identity that it proves.
pub fn checkout(tunnel: &TunnelState) -> Checkout {
    let limit = tunnel.own_limit.min(tunnel.peer_limit);
    let idle = tunnel.streams == 0 && tunnel.unused >= tunnel.unused_limit;
    if tunnel.closing || idle || tunnel.svid_remaining.is_zero() || tunnel.streams >= limit {
        Checkout::Retire
    } else if tunnel.heavy && tunnel.streams > 0 {
        Checkout::Avoid
    } else if tunnel.streams + 1 == limit {
        Checkout::UseLast
    } else {
        Checkout::Use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const FRESH: TunnelState = TunnelState {
        streams: 0,
        peer_limit: 200,
        own_limit: 100,
        heavy: false,
        closing: false,
        unused: Duration::ZERO,
        unused_limit: Duration::from_secs(300),
        svid_remaining: Duration::from_secs(3600),
        svid_lead: Duration::from_secs(30),
    };

    #[test]
    fn a_fresh_tunnel_is_used() {
        assert_eq!(checkout(&FRESH), Checkout::Use);
    }

    #[test]
    fn the_lower_limit_counts_and_the_last_stream_retires_the_tunnel() {
        assert_eq!(checkout(&TunnelState { streams: 98, ..FRESH }), Checkout::Use);
        assert_eq!(checkout(&TunnelState { streams: 99, ..FRESH }), Checkout::UseLast);
        assert_eq!(checkout(&TunnelState { streams: 100, ..FRESH }), Checkout::Retire);
        let peer = TunnelState { peer_limit: 1, ..FRESH };
        assert_eq!(checkout(&peer), Checkout::UseLast);
        assert_eq!(checkout(&TunnelState { peer_limit: 0, ..FRESH }), Checkout::Retire);
    }

    #[test]
    fn a_heavy_stream_is_left_alone() {
        let heavy = TunnelState { heavy: true, streams: 1, ..FRESH };
        assert_eq!(checkout(&heavy), Checkout::Avoid);
        assert_eq!(checkout(&TunnelState { streams: 0, ..heavy }), Checkout::Use, "it has ended");
        assert_eq!(checkout(&TunnelState { closing: true, ..heavy }), Checkout::Retire);
    }

    #[test]
    fn closing_unused_or_expired_tunnels_retire() {
        assert_eq!(checkout(&TunnelState { closing: true, ..FRESH }), Checkout::Retire);
        let unused = TunnelState { unused: FRESH.unused_limit, ..FRESH };
        assert_eq!(checkout(&unused), Checkout::Retire);
        assert_eq!(checkout(&TunnelState { streams: 1, ..unused }), Checkout::Use);
        let expired = TunnelState { svid_remaining: Duration::ZERO, ..FRESH };
        assert_eq!(checkout(&expired), Checkout::Retire);
    }
}
