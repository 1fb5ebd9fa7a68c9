//! Applications that run in pods: threads with sockets of the pod's namespace.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::client::IO_LIMIT;
use crate::netns::NetNs;

/// A TCP server; stops listening when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepted: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each connection on a thread of its own.
    #[track_caller]
    pub fn start(ns: &NetNs, address: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = ns.run(|| listen(address)).unwrap_or_else(|e| panic!("listen on {address}: {e}"));
        let address = listener.local_addr().expect("bound");
        let (accepted, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (peers, until, serve) = (accepted.clone(), stop.clone(), Arc::new(serve));
        let acceptor = std::thread::spawn(move || {
            while !until.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        // It was inherited from the listener.
                        let _ = stream.set_read_timeout(Some(IO_LIMIT * 3));
                        peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
                        let serve = serve.clone();
                        std::thread::spawn(move || serve(stream));
                    }
                    // The socket's receive time-out bounds how long a stop takes.
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(e) => panic!("accept: {e}"),
                }
            }
        });
        Self { address, accepted, stop, acceptor: Some(acceptor) }
    }

    /// A server that gives back what it gets, and ends when its client ends.
    #[track_caller]
    pub fn echo(ns: &NetNs, address: SocketAddr) -> Self {
        Self::start(ns, address, |stream| {
            let _ = echo(stream);
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who connected so far, as `getpeername` tells.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The addresses of those, v4-mapped ones as IPv4.
    pub fn peer_ips(&self) -> Vec<IpAddr> {
        self.peers().iter().map(|peer| peer.ip().to_canonical()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Echoes until the client's end of stream, then ends as well.
pub fn echo(mut stream: TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => {
                stream.write_all(&buffer[..n])?;
                total += n as u64;
            }
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(total)
}

/// A listener as an ordinary application makes it: SO_REUSEADDR, IPv4 clients on an IPv6 wildcard.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket.into())
}
