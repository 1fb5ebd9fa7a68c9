//! A hostile neighbour: a pod that reads and writes raw frames on its interface, as CAP_NET_RAW allows.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, socket,
};

use crate::netns::NetNs;
use crate::packet::{Packet, TCP};

/// A hardware address.
pub type Mac = [u8; 6];

/// IP protocol number of ICMPv6.
const ICMPV6: u8 = 58;

/// A packet socket on a pod's `eth0`.
#[derive(Debug)]
pub struct Spy {
    fd: OwnedFd,
    mac: Mac,
}

/// A TCP segment to be forged.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Who it claims to be from.
    pub from: SocketAddr,
    /// Whom it is for.
    pub to: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// Flags byte.
    pub flags: u8,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Spy {
    /// Opens the socket in a pod.
    #[track_caller]
    pub fn new(ns: &NetNs) -> Self {
        let (fd, address) = ns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("packet socket");
            let address = link_address();
            bind(fd.as_raw_fd(), &address).expect("bind to eth0");
            (fd, address)
        });
        Self { fd, mac: address.addr().expect("a hardware address") }
    }

    /// Its own hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        send(self.fd.as_raw_fd(), frame, MsgFlags::empty()).expect("the frame can be sent");
    }

    /// Tells `victim`, at hardware address `mac`, that `claimed` is here: by ARP or by NDP.
    #[track_caller]
    pub fn claim(&self, (victim, mac): (IpAddr, Mac), claimed: IpAddr) {
        let frame = match (victim, claimed) {
            (IpAddr::V4(victim), IpAddr::V4(claimed)) => {
                let mut frame = self.ethernet(mac, 0x0806);
                frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
                frame.extend(self.mac);
                frame.extend(claimed.octets());
                frame.extend(mac);
                frame.extend(victim.octets());
                frame
            }
            (IpAddr::V6(victim), IpAddr::V6(claimed)) => {
                // A neighbour advertisement: solicited, override, with the link-layer address as its option.
                let mut body = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
                body.extend(claimed.octets());
                body.extend([2, 1]);
                body.extend(self.mac);
                self.datagram(mac, IpAddr::V6(claimed), IpAddr::V6(victim), ICMPV6, 2, body)
            }
            _ => panic!("addresses of different families"),
        };
        self.send(&frame);
    }

    /// Forges a segment and sends it to a hardware address.
    #[track_caller]
    pub fn forge(&self, mac: Mac, segment: &Segment<'_>) {
        self.send(&self.segment(mac, segment));
    }

    /// The frame of a forged segment.
    pub fn segment(&self, mac: Mac, segment: &Segment<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(segment.from.port().to_be_bytes());
        body.extend(segment.to.port().to_be_bytes());
        body.extend(segment.sequence.to_be_bytes());
        body.extend(segment.acknowledged.to_be_bytes());
        body.extend([0x50, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend(segment.payload);
        self.datagram(mac, segment.from.ip(), segment.to.ip(), TCP, 16, body)
    }

    /// Whether anything that came here during `period` carried these bytes.
    #[track_caller]
    pub fn reads(&self, canary: &[u8], period: Duration) -> bool {
        let until = Instant::now() + period;
        let mut buffer = vec![0; 128 * 1024];
        while Instant::now() < until {
            match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                Ok((length, _)) => {
                    if buffer[..length].windows(canary.len()).any(|window| window == canary) {
                        return true;
                    }
                }
                Err(Errno::EAGAIN) => {
                    let mut ready = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut ready, PollTimeout::from(20u8));
                }
                Err(error) => panic!("spy: {error}"),
            }
        }
        false
    }

    /// Everything that has come here by now, as far as it is IP.
    #[track_caller]
    pub fn packets(&self) -> Vec<Packet> {
        let mut buffer = vec![0; 128 * 1024];
        let mut packets = Vec::new();
        while let Ok((length, _)) = recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
            packets.extend(Packet::parse(0, &buffer[..length]));
        }
        packets
    }

    fn ethernet(&self, to: Mac, ethertype: u16) -> Vec<u8> {
        [&to[..], &self.mac, &ethertype.to_be_bytes()].concat()
    }

    fn datagram(&self, mac: Mac, from: IpAddr, to: IpAddr, protocol: u8, checksum: usize, body: Vec<u8>) -> Vec<u8> {
        let body = with_checksum(from, to, protocol, checksum, body);
        let length = u16::try_from(body.len()).expect("short");
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, 0];
                header.extend((length + 20).to_be_bytes());
                header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = checksum_of(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [self.ethernet(mac, 0x0800), header, body].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([protocol, 255]);
                header.extend(from.octets());
                header.extend(to.octets());
                [self.ethernet(mac, 0x86dd), header, body].concat()
            }
            _ => panic!("addresses of different families"),
        }
    }
}

/// The hardware address of a pod's `eth0`.
#[track_caller]
pub fn mac_of(ns: &NetNs) -> Mac {
    ns.run(|| link_address().addr().expect("a hardware address"))
}

fn link_address() -> LinkAddr {
    let mut addresses = getifaddrs().expect("getifaddrs").filter(|address| address.interface_name == "eth0");
    addresses.find_map(|address| address.address?.as_link_addr().copied()).expect("eth0")
}

fn with_checksum(from: IpAddr, to: IpAddr, protocol: u8, at: usize, mut body: Vec<u8>) -> Vec<u8> {
    let mut summed = Vec::new();
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => summed.extend(ip.octets()),
            IpAddr::V6(ip) => summed.extend(ip.octets()),
        }
    }
    summed.extend([0, protocol]);
    summed.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    summed.extend(&body);
    let sum = checksum_of(&summed);
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

fn checksum_of(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
