//! The agent's listeners inside a pod. They are reached only through `sk_lookup`, whatever they are bound to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use socket2::{Domain, Socket};
use warren_ebpf_abi::{Family, HBONE_PORT, ListenerKind, listener_slot};

use super::handles::Exemption;
use crate::sys::netlink::IpFamily;
use crate::sys::socket::{
    cookie, prepare_far_leg, prepare_near_leg, set_congestion_control, set_transparent, tcp_socket,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// The listeners of one worker in one pod: one of each family the pod has. Dropping them makes the kernel let new
/// captured connections wait, and refuse new ones from outside.
#[derive(Debug, Default)]
pub(crate) struct WorkerListeners {
    /// Captured connections of the pod; the accepted socket's local address is the original destination.
    pub(crate) outbound: Vec<TcpListener>,
    /// Tunnels of peers.
    pub(crate) hbone: Vec<TcpListener>,
    /// Plaintext from outside that needs a decision.
    pub(crate) plaintext: Vec<TcpListener>,
}

/// A listener and its place in the sockmap.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) slot: u32,
    pub(super) port: u16,
    pub(super) cookie: u64,
}

/// Makes the listeners of all workers, in the namespace this thread is in.
pub(super) fn open(
    workers: u32,
    families: &[IpFamily],
    exemption: &Exemption,
    tunnel_congestion: Option<&str>,
) -> io::Result<(Vec<WorkerListeners>, Vec<Placed>)> {
    let mut all = Vec::new();
    let mut placed = Vec::new();
    for worker in 0..workers {
        let mut listeners = WorkerListeners::default();
        for kind in ListenerKind::ALL {
            for family in families {
                let listener = open_one(kind, *family, worker, exemption)?;
                if let (ListenerKind::Hbone, Some(name)) = (kind, tunnel_congestion) {
                    set_congestion_control(listener.as_fd(), name)?;
                }
                placed.push(Placed::of(&listener, kind, *family, worker)?);
                listeners.of_kind(kind).push(listener);
            }
        }
        all.push(listeners);
    }
    Ok((all, placed))
}

/// Makes one listener, in the namespace this thread is in.
pub(super) fn open_one(
    kind: ListenerKind,
    family: IpFamily,
    worker: u32,
    exemption: &Exemption,
) -> io::Result<TcpListener> {
    // All share the one port that is HBONE's anyway, on addresses that no application uses, so that no other port of
    // the pod is taken. Where something in the pod holds it already, any port does.
    let address = address(kind, family, worker);
    let socket = match bound(family, SocketAddr::new(address, HBONE_PORT)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => bound(family, SocketAddr::new(address, 0))?,
        other => other?,
    };
    exemption.exempt(socket.as_fd())?;
    // What is accepted inherits the options: not a call per connection.
    match kind {
        ListenerKind::Hbone => prepare_far_leg(socket.as_fd())?,
        ListenerKind::Outbound | ListenerKind::SelfTest => prepare_near_leg(socket.as_fd())?,
        ListenerKind::Plaintext => {
            prepare_far_leg(socket.as_fd())?;
            prepare_near_leg(socket.as_fd())?;
        }
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bound(family: IpFamily, address: SocketAddr) -> io::Result<Socket> {
    let socket = tcp_socket(Domain::for_address(address))?;
    // Accepted sockets have foreign local addresses; without this their answers would find no route.
    set_transparent(&socket, family == IpFamily::V6)?;
    if family == IpFamily::V6 {
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it: an application's own `bind` to their local port must not fail.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A loopback address for IPv4. IPv6 has only one, so the others are of the discard-only prefix of RFC 6666.
fn address(kind: ListenerKind, family: IpFamily, worker: u32) -> IpAddr {
    let (kind, worker) = (kind as u16 + 1, (worker % 255) as u16 + 1);
    match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::new(127, 87, kind as u8, worker as u8)),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0x57, kind, worker)),
    }
}

impl WorkerListeners {
    fn of_kind(&mut self, kind: ListenerKind) -> &mut Vec<TcpListener> {
        match kind {
            ListenerKind::Outbound | ListenerKind::SelfTest => &mut self.outbound,
            ListenerKind::Hbone => &mut self.hbone,
            ListenerKind::Plaintext => &mut self.plaintext,
        }
    }

    /// All listeners with their places.
    pub(super) fn iter(&self, worker: u32) -> impl Iterator<Item = (u32, &TcpListener)> {
        let kinds = [
            (ListenerKind::Outbound, &self.outbound),
            (ListenerKind::Hbone, &self.hbone),
            (ListenerKind::Plaintext, &self.plaintext),
        ];
        kinds.into_iter().flat_map(move |(kind, listeners)| {
            listeners.iter().filter_map(move |listener| {
                let family = if listener.local_addr().ok()?.is_ipv4() { Family::V4 } else { Family::V6 };
                Some((listener_slot(kind, family, worker), listener))
            })
        })
    }
}

impl Placed {
    fn of(listener: &TcpListener, kind: ListenerKind, family: IpFamily, worker: u32) -> io::Result<Self> {
        let family = match family {
            IpFamily::V4 => Family::V4,
            IpFamily::V6 => Family::V6,
        };
        Ok(Self {
            slot: listener_slot(kind, family, worker),
            port: listener.local_addr()?.port(),
            cookie: cookie(listener.as_fd())?,
        })
    }
}
