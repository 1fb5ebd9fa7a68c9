//! Sockets as the event loops want them.

use std::io::{self, Read};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Fault;

const BACKLOG: i32 = 4096;

/// Raises the soft limit of open files to the hard one and gives it.
///
/// # Errors
/// The system call's.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// A listener with a backlog for a crowd.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Begins a connection; it is there once [`connected`] says so.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream, Fault> {
    let stream = TcpStream::connect(to).map_err(|cause| Fault::Connect { to, cause })?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a connection that was begun is there.
pub(crate) fn connected(stream: &TcpStream, to: SocketAddr) -> Result<bool, Fault> {
    let failed = |cause| Fault::Connect { to, cause };
    if let Some(cause) = stream.take_error()? {
        return Err(failed(cause));
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// What one read gave.
pub(crate) enum Got {
    /// So many bytes.
    Bytes(usize),
    /// The peer has ended its direction.
    End,
    /// Nothing now.
    Nothing,
}

/// Reads once.
pub(crate) fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Got> {
    loop {
        return match stream.read(buffer) {
            Ok(0) => Ok(Got::End),
            Ok(length) => Ok(Got::Bytes(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Got::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
    }
}

/// The result of a write, with "not now" as 0 bytes.
pub(crate) fn written(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
