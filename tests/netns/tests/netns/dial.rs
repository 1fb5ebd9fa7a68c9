//! Ways to connect that are not the usual one.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpFastOpenConnect;
use socket2::{Domain, Protocol, Socket, Type};

fn socket(to: SocketAddr, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))
}

pub(crate) fn nonblocking(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(to, Protocol::TCP)?;
    socket.set_nonblocking(true)?;
    let started = socket.connect(&to.into()).expect_err("a nonblocking connect is under way when it returns");
    assert_eq!(started.raw_os_error(), Some(nix::libc::EINPROGRESS), "{started}");
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(5000u16))?;
    assert!(socket.take_error()?.is_none());
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

pub(crate) fn bound(own: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(to, Protocol::TCP)?;
    socket.bind(&own.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// MSG_FASTOPEN: `sendto` connects, and no `connect` is ever called.
pub(crate) fn fast_open(to: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let socket = socket(to, Protocol::TCP)?;
    let sent = socket.send_to_with_flags(first, &to.into(), nix::libc::MSG_FASTOPEN)?;
    assert_eq!(sent, first.len());
    Ok(socket.into())
}

pub(crate) fn multipath(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(to, Protocol::MPTCP)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// TCP_FASTOPEN_CONNECT: `connect` only takes note, and the first write connects.
pub(crate) fn deferred(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(to, Protocol::TCP)?;
    setsockopt(&socket, TcpFastOpenConnect, &true)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}
