//! TCP connections of a network namespace: which there are, and ending one.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::message::SockDiagDestroy;
use warren_core::addr::canonical_addr;

use super::netlink::Transport;

/// A TCP connection of the namespace it was listed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TcpConnection {
    /// The end in this namespace.
    pub(crate) local: SocketAddr,
    /// The other end.
    pub(crate) remote: SocketAddr,
    /// The kernel's number of its state, as in `TCP_ESTABLISHED` (1).
    pub(crate) state: u8,
    /// The socket's cookie.
    pub(crate) cookie: u64,
    /// The socket's mark; the kernel tells it to privileged callers only.
    pub(crate) mark: u32,
    /// The socket's inode; 0 once no file holds it.
    pub(crate) inode: u32,
    /// The user who owns it.
    pub(crate) uid: u32,
    family: u8,
    id: SocketId,
}

/// The connections of the namespace this thread is in that can still carry bytes.
pub(crate) fn tcp_connections() -> io::Result<Vec<TcpConnection>> {
    let transport = open()?;
    let mut found = Vec::new();
    for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let answers = transport.dump(SockDiagMessage::InetRequest(request(family, id)))?;
        found.extend(answers.into_iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(response) => Some(connection(*response)),
            _ => None,
        }));
    }
    Ok(found)
}

/// The ports on which somebody listens in the namespace this thread is in.
pub(crate) fn listening_ports() -> io::Result<BTreeSet<u16>> {
    let transport = open()?;
    let mut ports = BTreeSet::new();
    for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest { states: StateFlags::LISTEN, ..request(family, id) };
        ports.extend(transport.dump(SockDiagMessage::InetRequest(request))?.into_iter().filter_map(
            |answer| match answer {
                SockDiagMessage::InetResponse(response) => Some(response.header.socket_id.source_port),
                _ => None,
            },
        ));
    }
    Ok(ports)
}

/// Ends a connection at once, with a RST to both ends; one that is gone already is fine.
pub(crate) fn destroy(connection: &TcpConnection) -> io::Result<()> {
    let request = request(connection.family, connection.id.clone());
    let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    match open()?.change(message, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn open() -> io::Result<Transport<SockDiagMessage>> {
    Transport::open(netlink_sys::protocols::NETLINK_SOCK_DIAG)
}

fn request(family: u8, socket_id: SocketId) -> InetRequest {
    let states = StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT - StateFlags::CLOSE;
    InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id }
}

fn connection(response: InetResponse) -> TcpConnection {
    let InetResponse { header, nlas } = response;
    let id = header.socket_id;
    TcpConnection {
        local: canonical_addr(SocketAddr::from((id.source_address, id.source_port))),
        remote: canonical_addr(SocketAddr::from((id.destination_address, id.destination_port))),
        state: header.state,
        cookie: u64::from_ne_bytes(id.cookie),
        mark: nlas.iter().find_map(|nla| if let Nla::Mark(mark) = nla { Some(*mark) } else { None }).unwrap_or(0),
        inode: header.inode,
        uid: header.uid,
        family: header.family,
        id,
    }
}
