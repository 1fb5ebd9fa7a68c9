//! Socket addresses by role, so that they cannot be swapped, in one canonical
//! form: a v4-mapped v6 address is the v4 address (hbone.md §3).

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// `ip` with v4-mapped v6 turned into v4.
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// `addr` with v4-mapped v6 turned into v4 and the flow label dropped, which
/// is no part of where a connection goes.
pub fn canonical_addr(addr: SocketAddr) -> SocketAddr {
    match (canonical(addr.ip()), addr) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) => SocketAddr::V6(SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id())),
        (ip, addr) => SocketAddr::new(ip, addr.port()),
    }
}

/// Where the application wanted to connect before capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginalDst(pub SocketAddr);

/// The other end of an accepted TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddr(pub SocketAddr);

impl OriginalDst {
    /// From an accepted socket's local address, canonicalised.
    pub fn new(addr: SocketAddr) -> Self {
        Self(canonical_addr(addr))
    }
}

impl PeerAddr {
    /// From an accepted socket's peer address, canonicalised.
    pub fn new(addr: SocketAddr) -> Self {
        Self(canonical_addr(addr))
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_mapped_is_v4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        let plain: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert_eq!(OriginalDst::new(mapped).0, plain);
        assert_eq!(canonical(mapped.ip()), plain.ip());
    }

    #[test]
    fn v6_keeps_its_scope_and_loses_its_flow_label() {
        let addr = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 7, 3));
        let want = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 3));
        assert_eq!(PeerAddr::new(addr).0, want);
    }
}
