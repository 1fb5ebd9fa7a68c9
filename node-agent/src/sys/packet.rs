//! Raw frames of one interface.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};

/// Longest frame that is of interest.
const FRAME: usize = 2048;

/// A packet socket, bound to an interface.
#[derive(Debug)]
pub(crate) struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens one on an interface of the namespace this thread is in, for IPv4 packets to one address: a busy interface
    /// would otherwise fill the socket before what is waited for comes.
    pub(crate) fn open(interface: u32, to: [u8; 4]) -> io::Result<Self> {
        // Without a protocol nothing arrives before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&only_to(to))?;
        socket.bind(&address(interface, (libc::ETH_P_ALL as u16).to_be())?)?;
        Ok(Self(socket))
    }

    /// Sends a frame by the interface.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }

    /// Waits for the first frame in which `wanted` finds something.
    pub(crate) fn find<T>(&self, limit: Duration, wanted: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        let deadline = Instant::now() + limit;
        let mut buffer = [MaybeUninit::uninit(); FRAME];
        loop {
            match self.0.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(found) = wanted(initialised(&buffer, length)) {
                        return Ok(Some(found));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
                    poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A classic BPF filter: Ethernet type IPv4, and the destination.
fn only_to(address: [u8; 4]) -> [SockFilter; 6] {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const ETHERNET_TYPE: u32 = 12;
    const DESTINATION: u32 = 14 + 16;
    [
        SockFilter::new(LOAD_HALF, 0, 0, ETHERNET_TYPE),
        SockFilter::new(EQUAL, 0, 3, libc::ETH_P_IP as u32),
        SockFilter::new(LOAD_WORD, 0, 0, DESTINATION),
        SockFilter::new(EQUAL, 0, 1, u32::from_be_bytes(address)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn initialised(buffer: &[MaybeUninit<u8>; FRAME], length: usize) -> &[u8] {
    // SAFETY: the kernel has written `length` bytes, which are not more than there are.
    unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), length.min(FRAME)) }
}

fn address(interface: u32, protocol: u16) -> io::Result<SockAddr> {
    let link = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the storage is large enough for every address, and both fields are set as the function demands.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(link);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
