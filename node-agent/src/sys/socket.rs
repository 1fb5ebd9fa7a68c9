//! TCP sockets with the options that connections through the agent need.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::netns::NetNs;
use crate::capture::{Exemption, Mark};

/// Silence after which a leg is probed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Time between probes.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// Probes without an answer after which a leg is dead.
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Cookie of the network namespace a socket belongs to.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    read_option(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE)
}

/// The number the kernel gives this socket and no other.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    read_option(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// Index of the interface a socket is bound to; 0 is none.
pub(crate) fn bound_interface(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let index = read_option(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX)?;
    u32::try_from(index).map_err(io::Error::other)
}

/// Whether a socket belongs to a namespace: `sk_lookup` accepts sockets of others, so everything accepted is checked.
pub(crate) fn belongs_to(socket: BorrowedFd<'_>, namespace: &NetNs) -> io::Result<bool> {
    Ok(netns_cookie(socket)? == namespace.cookie())
}

/// A socket in the pod's namespace that connects to the pod's application in the name of `client`.
///
/// It is bound to the client's address, which is not the pod's own; port 0 leaves the port to `connect`. The mark brings
/// the application's answers back over `lo`.
pub(crate) fn app_socket(
    namespace: &NetNs,
    client: SocketAddr,
    mark: Mark,
    exemption: &Exemption,
) -> io::Result<TcpSocket> {
    let socket = exempt_socket(namespace, Domain::for_address(client), exemption)?;
    prepare_near_leg(socket.as_fd())?;
    set_transparent(&socket, client.is_ipv6())?;
    socket.set_mark(mark.value)?;
    match client.port() {
        0 => bind_address(&socket, client.ip())?,
        _ => {
            // Others have the same port, towards other applications.
            socket.set_reuse_address(true)?;
            socket.bind(&client.into())?;
        }
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// A socket in the pod's namespace that connects to a peer, a plaintext destination or the pod itself without being
/// captured, from the address that the application's connection has.
pub(crate) fn pod_socket(namespace: &NetNs, source: IpAddr, exemption: &Exemption) -> io::Result<TcpSocket> {
    let socket = exempt_socket(namespace, Domain::for_address((source, 0).into()), exemption)?;
    prepare_far_leg(socket.as_fd())?;
    bind_address(&socket, source)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Connects, or fails with `TimedOut` after `limit`.
pub(crate) async fn connect_within(limit: Duration, socket: TcpSocket, to: SocketAddr) -> io::Result<TcpStream> {
    tokio::time::timeout(limit, socket.connect(to)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Binds to an address and leaves the port to `connect`: bound here, ports would run out across all destinations.
fn bind_address(socket: &Socket, address: IpAddr) -> io::Result<()> {
    write_option(socket.as_fd(), libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::from((address, 0)).into())
}

fn exempt_socket(namespace: &NetNs, domain: Domain, exemption: &Exemption) -> io::Result<Socket> {
    let socket = namespace.enter(|| tcp_socket(domain))??;
    if !belongs_to(socket.as_fd(), namespace)? {
        return Err(io::Error::other("the socket was made in another network namespace"));
    }
    exemption.exempt(socket.as_fd())?;
    Ok(socket)
}

/// A nonblocking TCP socket in the namespace this thread is in.
pub(crate) fn tcp_socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

/// Options of a leg whose other end is in another kernel: it may vanish without a word, and the application's own
/// keepalive and time-outs see only the agent. On a listener, what is accepted inherits them.
pub(crate) fn prepare_far_leg(socket: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES),
    )
}

/// Gives a socket, or what a listener accepts, another congestion control; it must not be connected yet.
pub(crate) fn set_congestion_control(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_congestion(name.as_bytes())
}

/// Whether the kernel has a congestion control of that name, and lets it be used.
pub(crate) fn has_congestion_control(name: &str) -> io::Result<()> {
    set_congestion_control(tcp_socket(Domain::IPV4)?.as_fd(), name)
}

/// Options of a leg to an application, which is in this very kernel: it cannot vanish, and how long it takes to read is
/// its own affair. A close is a RST until the connection has ended cleanly: what was refused or broken, or left behind
/// by an agent that is killed, must never look like a clean end. On a listener, what is accepted inherits it all.
pub(crate) fn prepare_near_leg(socket: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))
}

/// Lets a socket bind, and accept connections for, addresses that are not local.
pub(crate) fn set_transparent(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// Sets an interface up, in the namespace that `socket` belongs to.
pub(crate) fn set_up(socket: BorrowedFd<'_>, interface: &CStr) -> io::Result<()> {
    // SAFETY: the structure holds integers and a union of such; zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.to_bytes_with_nul();
    if name.len() > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is what the command takes, and it outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_option(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, and both outlive the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn write_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes from `value` as it is long, and it outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
