//! Rules, routes, addresses and classifiers of a network namespace, over one rtnetlink socket.

mod address;
mod classifier;
mod link;
mod route;
mod rule;
mod transport;

use std::io;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

pub(crate) use address::Address;
pub(crate) use classifier::{Direction, Place};
pub(crate) use link::Link;
pub(crate) use rule::{Action, Rule};
pub(super) use transport::Transport;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn code(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// An rtnetlink socket. It stays with the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct RouteSocket(Transport<RouteNetlinkMessage>);

impl RouteSocket {
    /// Opens a socket in the namespace this thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        Transport::open(netlink_sys::protocols::NETLINK_ROUTE).map(Self)
    }
}

/// Success also if what is to be removed is not there.
fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
        other => other,
    }
}

/// Success also if what is to be added is there.
fn present_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
