//! The self-test: a socket of the pod, not exempted, goes to a reserved address that is captured for this alone.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef};
use warren_ebpf_abi::{Family, LOOPBACK_IFINDEX, ListenerKind, SELF_TEST_V4, SELF_TEST_V6};

use super::config::Mark;
use super::error::EnrolFailure;
use super::handles::Exemption;
use super::listeners;
use super::pod::PodObject;
use crate::sys::netlink::IpFamily;
use crate::sys::netns::NetNs;
use crate::sys::socket::{self, prepare_near_leg, tcp_socket};

/// Any port will do.
const PORT: u16 = 7;

/// What a self-test needs to know.
pub(super) struct SelfTest<'a> {
    pub(super) netns: &'a NetNs,
    pub(super) object: &'a PodObject,
    pub(super) exemption: &'a Exemption,
    pub(super) mark: Mark,
    pub(super) ips: &'a [IpAddr],
    pub(super) timeout: Duration,
}

impl SelfTest<'_> {
    /// Tests each family in which the pod has an address.
    pub(super) fn run(&self, families: &[IpFamily]) -> Result<(), EnrolFailure> {
        for family in families {
            let is_v4 = *family == IpFamily::V4;
            if self.ips.iter().any(|ip| ip.is_ipv4() == is_v4) {
                self.netns.enter(|| self.run_one(*family))??;
            }
        }
        Ok(())
    }

    fn run_one(&self, family: IpFamily) -> Result<(), EnrolFailure> {
        let deadline = Instant::now() + self.timeout;
        let listener = listeners::open_one(ListenerKind::SelfTest, family, 0, self.exemption)?;
        let slot = if family == IpFamily::V4 { Family::V4 } else { Family::V6 };
        self.object.place_self_test(slot, &listener)?;
        let target = target(family);
        let client = self.connect(target)?;
        let server = self.accept(&listener, target, deadline)?;
        exchange(client, server, deadline)
    }

    fn connect(&self, target: SocketAddr) -> Result<TcpStream, EnrolFailure> {
        let socket = tcp_socket(Domain::for_address(target))?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(failure(format!("could not be started: {error}")));
            }
            _ => {}
        }
        if socket.mark()? & self.mark.mask != self.mark.value {
            return Err(failure("did not get the mark: the connect hook does not see this namespace"));
        }
        if socket::bound_interface(socket.as_fd())? != LOOPBACK_IFINDEX {
            return Err(failure("was not bound to lo"));
        }
        Ok(socket.into())
    }

    fn accept(&self, listener: &TcpListener, target: SocketAddr, deadline: Instant) -> Result<TcpStream, EnrolFailure> {
        wait(listener, PollFlags::POLLIN, deadline, "did not reach the listener: rule, route or look-up is missing")?;
        let (stream, peer) = listener.accept()?;
        if stream.local_addr()? != target {
            return Err(failure(format!("arrived as one to {}, not {target}", stream.local_addr()?)));
        }
        if !self.ips.contains(&peer.ip()) {
            return Err(failure(format!("came from {}, which is not the pod's address", peer.ip())));
        }
        if !socket::belongs_to(stream.as_fd(), self.netns)? {
            return Err(failure("was accepted in another network namespace"));
        }
        if SockRef::from(&stream).mark()? & self.mark.mask != self.mark.value {
            return Err(failure("was accepted without the mark: its answers would leave by another way"));
        }
        Ok(stream)
    }
}

fn target(family: IpFamily) -> SocketAddr {
    let ip = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(SELF_TEST_V4)),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(SELF_TEST_V6)),
    };
    SocketAddr::new(ip, PORT)
}

/// Sends a few bytes both ways, and leaves no trace of the connection.
fn exchange(mut client: TcpStream, mut server: TcpStream, deadline: Instant) -> Result<(), EnrolFailure> {
    wait(&client, PollFlags::POLLOUT, deadline, "was not answered")?;
    client.set_nonblocking(false)?;
    server.set_nonblocking(false)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    client.set_read_timeout(Some(left))?;
    server.set_read_timeout(Some(left))?;
    let nonce: [u8; 16] = rand::random();
    pass(&nonce, &mut client, &mut server)?;
    pass(&nonce, &mut server, &mut client)?;
    prepare_near_leg(client.as_fd())?;
    prepare_near_leg(server.as_fd())?;
    Ok(())
}

fn pass(nonce: &[u8; 16], from: &mut TcpStream, to: &mut TcpStream) -> Result<(), EnrolFailure> {
    let mut received = [0; 16];
    from.write_all(nonce)?;
    to.read_exact(&mut received).map_err(|error| failure(format!("carried no bytes: {error}")))?;
    if received == *nonce { Ok(()) } else { Err(failure("carried other bytes than were sent")) }
}

fn wait(socket: &impl AsFd, what: PollFlags, deadline: Instant, failed: &str) -> Result<(), EnrolFailure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), what)], timeout) {
        Ok(0) => Err(failure(failed)),
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

fn failure(reason: impl Into<String>) -> EnrolFailure {
    EnrolFailure::SelfTest(reason.into())
}
