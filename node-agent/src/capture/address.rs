use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use warren_core::addr::canonical;
use warren_ebpf_abi::{Endpoint, mapped};

/// The form in which keys and events hold an address.
pub(super) fn key(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address in a key or event.
pub(super) fn of_key(key: [u8; 16]) -> IpAddr {
    canonical(IpAddr::V6(Ipv6Addr::from(key)))
}

/// The end of a connection in an event.
pub(super) fn of_endpoint(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(of_key(endpoint.ip()), endpoint.port())
}
