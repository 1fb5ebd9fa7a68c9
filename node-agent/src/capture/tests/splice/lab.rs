//! Two namespaces joined by a pair of veths, and the programs that splice.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};
use warren_ebpf_abi::SpliceEnd;

use nix::poll::PollFlags;

use super::super::bed::ip;
use super::scene::wait;
use crate::capture::cgroup;
use crate::capture::pins::Pins;
use crate::capture::splice::{Ends, SpliceObject, Ways, Which};
use crate::sys::netns::NetNs;
use crate::sys::socket;

static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The client's address, and the server's.
pub(super) const A: &str = "10.86.0.1";
pub(super) const B: &str = "10.86.0.2";

/// Two namespaces, and the programs.
pub(super) struct Lab {
    name: String,
    pub(super) a: NetNs,
    pub(super) b: NetNs,
    splice: SpliceObject,
    pins: Pins,
}

impl Lab {
    pub(super) fn new() -> Self {
        let name = format!("wspl{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        for end in ["a", "b"] {
            ip(&format!("netns add {name}-{end}"));
            ip(&format!("-n {name}-{end} link set lo up"));
        }
        ip(&format!("-n {name}-a link add eth0 type veth peer name eth0 netns {name}-b"));
        for (end, address) in [("a", A), ("b", B)] {
            ip(&format!("-n {name}-{end} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name}-{end} link set eth0 up"));
        }
        let open = |end: &str| NetNs::open(&PathBuf::from(format!("/run/netns/{name}-{end}"))).unwrap();
        let bpffs = Path::new("/sys/fs/bpf");
        let pins = Pins::new(bpffs, &name);
        pins.prepare(bpffs).unwrap();
        let splice =
            SpliceObject::open(&pins, &cgroup::open(&cgroup::root().unwrap()).unwrap(), Which::NonBlocking).unwrap();
        Self { a: open("a"), b: open("b"), splice, pins, name }
    }

    /// A server's socket.
    pub(super) fn listen(&self, port: u16) -> TcpListener {
        let listener = self.b.enter(|| TcpListener::bind((B, port))).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// Somebody who opens connections to a server.
    pub(super) fn dialler(&self, listener: &TcpListener) -> Dialler<'_> {
        let (ways, ends) = self.splice.handles().unwrap();
        Dialler { lab: self, target: listener.local_addr().unwrap(), port: 20_000, ways, ends }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.pins.remove_all();
        for end in ["a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{end}", self.name)]).status();
        }
    }
}

/// Opens connections, each from another port.
pub(super) struct Dialler<'a> {
    lab: &'a Lab,
    target: SocketAddr,
    port: u16,
    ways: Ways,
    pub(super) ends: Ends,
}

/// Both ends of a connection, and how it is named.
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) cookies: [u64; 2],
}

impl Connection {
    /// Its ends, which wait in calls from now on.
    pub(super) fn blocking(self) -> (TcpStream, TcpStream) {
        for socket in [&self.client, &self.server] {
            socket.set_nonblocking(false).unwrap();
        }
        (self.client, self.server)
    }
}

impl Dialler<'_> {
    /// A connection that was admitted, or not.
    pub(super) fn dial(&mut self, listener: &TcpListener, admitted: bool) -> Connection {
        let lab = self.lab;
        let client = lab.a.enter(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap().unwrap();
        let from = self.bind(&client);
        let (source, destination) = ((from, &lab.a), (self.target, &lab.b));
        if admitted {
            self.ways.admit(client.as_fd(), source, destination).unwrap();
        }
        client.set_nonblocking(true).unwrap();
        match client.connect(&self.target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => panic!("{error}"),
            _ => wait(&client, PollFlags::POLLOUT).unwrap(),
        }
        wait(listener, PollFlags::POLLIN).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        if admitted {
            self.ways.accepted(server.as_fd(), source, destination).unwrap();
        }
        let cookies = [socket::cookie(client.as_fd()).unwrap(), socket::cookie(server.as_fd()).unwrap()];
        Connection { client: client.into(), server, from, cookies }
    }

    /// What was counted of an end; it is forgotten then.
    pub(super) fn take_end(&mut self, cookie: u64) -> SpliceEnd {
        self.ends.take(cookie)
    }

    fn bind(&mut self, client: &Socket) -> SocketAddr {
        client.set_reuse_address(true).unwrap();
        loop {
            self.port = if self.port >= 59_999 { 20_000 } else { self.port + 1 };
            let from = SocketAddr::new(A.parse().unwrap(), self.port);
            if client.bind(&from.into()).is_ok() {
                return from;
            }
        }
    }

    /// Takes what is known of a connection away.
    pub(super) fn forget(&mut self, from: SocketAddr) {
        self.ways.forget(from, self.target);
    }
}
