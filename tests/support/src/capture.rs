//! Everything that crosses a node's interfaces, read from a packet socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use crate::netns::NetNs;
use crate::packet::{Packet, TCP};

/// The port that tunnels use.
pub const HBONE_PORT: u16 = 15008;

/// A capture that is running.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Packets>,
}

/// What a capture saw.
#[derive(Debug, Default)]
pub struct Packets(pub Vec<Packet>);

impl Capture {
    /// Starts to capture on all interfaces of a namespace but `lo`: pod links and the link between nodes alike.
    #[track_caller]
    pub fn start(ns: &NetNs) -> Self {
        let (fd, loopback) = ns.run(|| (packet_socket(), nix::net::if_::if_nametoindex("lo").expect("lo")));
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let reader = std::thread::spawn(move || read_until(&fd, loopback as usize, &until));
        Self { stop, reader }
    }

    /// Stops after what has already arrived, and gives all of it.
    pub fn stop(self) -> Packets {
        self.stop.store(true, Ordering::Release);
        self.reader.join().expect("capture thread")
    }
}

impl Packets {
    /// Asserts that `canary` crossed nowhere, in any protocol.
    #[track_caller]
    pub fn assert_absent(&self, canary: &[u8]) {
        let leak = self.0.iter().find(|packet| contains(&packet.payload, canary));
        if let Some(packet) = leak {
            panic!("in clear on the wire: {} -> {} carried the canary", packet.source, packet.destination);
        }
    }

    /// Asserts the opposite: a capture that sees nothing proves nothing.
    #[track_caller]
    pub fn assert_present(&self, canary: &[u8]) {
        assert!(self.0.iter().any(|packet| contains(&packet.payload, canary)), "the canary was not seen on the wire");
    }

    /// Asserts that all TCP was between a pod and a tunnel port, and that both directions of every such
    /// connection are nothing but TLS records. Gives the number of payload bytes seen.
    #[track_caller]
    pub fn assert_only_tls(&self) -> usize {
        for packet in self.0.iter().filter(|packet| packet.protocol == TCP && !is_self_test(packet)) {
            let (from, to) = (packet.source, packet.destination);
            assert!(packet.has_port(HBONE_PORT), "TCP outside a tunnel: {from} -> {to}, flags {:#x}", packet.flags);
        }
        let mut bytes = 0;
        for ((_, from, to), stream) in self.streams() {
            assert_tls_records(from, to, &stream);
            bytes += stream.len();
        }
        bytes
    }

    /// Frames that ask for a connection to this port.
    pub fn syns_to(&self, port: u16) -> Vec<&Packet> {
        self.0.iter().filter(|packet| packet.is_syn() && packet.destination.port() == port).collect()
    }

    /// Payload of each direction of each TCP connection, from its first seen byte up to the first gap.
    fn streams(&self) -> BTreeMap<(usize, SocketAddr, SocketAddr), Vec<u8>> {
        let mut segments: BTreeMap<_, Vec<&Packet>> = BTreeMap::new();
        for packet in
            self.0.iter().filter(|packet| packet.protocol == TCP && !packet.payload.is_empty() && !is_self_test(packet))
        {
            segments.entry((packet.interface, packet.source, packet.destination)).or_default().push(packet);
        }
        segments.into_iter().map(|(key, packets)| (key, reassemble(&packets))).collect()
    }
}

/// Joins segments in order of sequence number; retransmissions count once.
fn reassemble(packets: &[&Packet]) -> Vec<u8> {
    let first = packets[0].sequence;
    let mut ordered: Vec<(u32, &[u8])> =
        packets.iter().map(|packet| (packet.sequence.wrapping_sub(first), &packet.payload[..])).collect();
    ordered.sort_by_key(|(offset, payload)| (*offset, payload.len()));
    let mut stream = Vec::new();
    for (offset, payload) in ordered {
        let have = stream.len();
        let offset = offset as usize;
        if offset > have {
            break;
        }
        if offset + payload.len() > have {
            stream.extend_from_slice(&payload[have - offset..]);
        }
    }
    stream
}

/// Whether an agent made it to test a pod's link: both ends are the dummy address of RFC 7600.
fn is_self_test(packet: &Packet) -> bool {
    let dummy = IpAddr::from([192, 0, 0, 8]);
    packet.source.ip() == dummy && packet.destination.ip() == dummy
}

/// Walks the record headers; the last record may be incomplete.
#[track_caller]
fn assert_tls_records(from: SocketAddr, to: SocketAddr, stream: &[u8]) {
    let mut at = 0;
    while let Some(header) = stream.get(at..at + 5) {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let is_record = (20..=23).contains(&header[0]) && header[1] == 3 && header[2] <= 3 && length <= 16_640;
        assert!(is_record, "{from} -> {to}: no TLS record at byte {at}: {header:02x?}");
        at += 5 + length;
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.len() >= needle.len() && haystack.windows(needle.len()).any(|window| window == needle)
}

fn packet_socket() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("packet socket");
    setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).expect("buffer for the capture");
    fd
}

fn read_until(fd: &OwnedFd, loopback: usize, stop: &AtomicBool) -> Packets {
    let mut packets = Packets::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        // Read before the socket is drained: what was there when we were told to stop still counts.
        let last = stop.load(Ordering::Acquire);
        drain(fd, loopback, &mut buffer, &mut packets);
        if last {
            return packets;
        }
        let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ready, PollTimeout::from(20u8));
    }
}

fn drain(fd: &OwnedFd, loopback: usize, buffer: &mut [u8], packets: &mut Packets) {
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), buffer) {
            Ok((length, Some(from))) if from.ifindex() != loopback => {
                packets.0.extend(Packet::parse(from.ifindex(), &buffer[..length]));
            }
            Ok(_) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(Errno::EAGAIN) => return,
            Err(e) => panic!("capture: {e}"),
        }
    }
}
