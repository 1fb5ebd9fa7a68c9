//! Ethernet frames, read as far as the ends of a TCP connection.
//!
//! Everything a receiver would skip on its way to the TCP header is skipped here: a frame that is read differently here
//! than there would pass as something it is not.

use aya_ebpf::programs::TcContext;
use warren_ebpf_abi::WayKey;

use crate::address::{from_v4, from_v6};

/// Where the type stands in an untagged frame.
const ETHERTYPE: usize = 12;
const TAG: usize = 4;
/// Tags that are skipped; a receiver takes two of priority alone.
const MOST_TAGS: usize = 3;
const IPV6_HEADER: usize = 40;
/// Extension headers that are skipped.
const MOST_EXTENSIONS: usize = 8;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What a frame is.
pub(crate) enum Frame {
    /// A segment, and whether it is a bare SYN.
    Tcp(WayKey, bool),
    /// Not TCP.
    Other,
    /// Nothing that an honest sender makes.
    Odd,
}

/// A TCP header, found.
struct Segment {
    from: [u8; 16],
    to: [u8; 16],
    tcp: usize,
}

/// Reads a frame.
#[inline(always)]
pub(crate) fn read(context: &TcContext) -> Frame {
    let mut at = ETHERTYPE;
    for _ in 0..=MOST_TAGS {
        let Ok(ethertype) = context.load::<[u8; 2]>(at) else { return Frame::Other };
        match ethertype {
            [0x08, 0x00] => return finish(context, ipv4(context, at + 2)),
            [0x86, 0xdd] => return finish(context, ipv6(context, at + 2)),
            [0x81, 0x00] | [0x88, 0xa8] => at += TAG,
            _ => return Frame::Other,
        }
    }
    Frame::Odd
}

#[inline(always)]
fn finish(context: &TcContext, found: Result<Segment, Frame>) -> Frame {
    let segment = match found {
        Ok(segment) => segment,
        Err(frame) => return frame,
    };
    let Ok(ports) = context.load::<[u8; 4]>(segment.tcp) else { return Frame::Other };
    // A first fragment may end before the flags; it is not a SYN that a pod's kernel makes.
    let flags = context.load::<u8>(segment.tcp + 13).unwrap_or(0);
    let [from, to] = [[ports[0], ports[1]], [ports[2], ports[3]]].map(u16::from_be_bytes);
    Frame::Tcp(WayKey::new(segment.from, from, segment.to, to), flags & (SYN | ACK) == SYN)
}

#[inline(always)]
fn ipv4(context: &TcContext, at: usize) -> Result<Segment, Frame> {
    let Ok(header) = context.load::<[u32; 5]>(at) else { return Err(Frame::Other) };
    let [length, _, _, _] = header[0].to_ne_bytes();
    let [_, _, offset_high, offset_low] = header[1].to_ne_bytes();
    let [_, protocol, _, _] = header[2].to_ne_bytes();
    // Ports are in the first fragment; without it the others come to nothing.
    if protocol != TCP || offset_high & 0x1f != 0 || offset_low != 0 {
        return Err(Frame::Other);
    }
    let tcp = at + usize::from(length & 0x0f) * 4;
    Ok(Segment { from: from_v4(header[3]), to: from_v4(header[4]), tcp })
}

#[inline(always)]
fn ipv6(context: &TcContext, at: usize) -> Result<Segment, Frame> {
    let Ok(header) = context.load::<[u32; 10]>(at) else { return Err(Frame::Other) };
    let [_, _, mut next, _] = header[1].to_ne_bytes();
    let mut tcp = at + IPV6_HEADER;
    for _ in 0..MOST_EXTENSIONS {
        if next == TCP {
            let from = from_v6([header[2], header[3], header[4], header[5]]);
            let to = from_v6([header[6], header[7], header[8], header[9]]);
            return Ok(Segment { from, to, tcp });
        }
        let Ok([following, length, third, fourth]) = context.load::<[u8; 4]>(tcp) else { return Err(Frame::Other) };
        tcp += match next {
            // Hop-by-hop, routing, destination options, mobility, host identity, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(length) + 1) * 8,
            // A fragment; as above.
            44 if third == 0 && fourth & 0xf8 == 0 => 8,
            // Authentication.
            51 => (usize::from(length) + 2) * 4,
            _ => return Err(Frame::Other),
        };
        next = following;
    }
    Err(Frame::Odd)
}
