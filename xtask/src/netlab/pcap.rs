//! What tcpdump recorded: frames, and the TCP segments in them.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};

/// Classic pcap with microseconds, little-endian, as tcpdump writes it here.
const MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const LINK_TYPE_ETHERNET: u32 = 1;
const ETHERNET_HEADER: usize = 14;
const TCP: u8 = 6;

/// One TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) sequence: u32,
    pub(crate) syn: bool,
    pub(crate) payload: &'a [u8],
}

/// The frames of a capture file; a cut last frame is left out.
pub(crate) fn frames(file: &[u8]) -> Result<Vec<&[u8]>> {
    if file.get(..4) != Some(&MAGIC) || number(file, 20) != Some(LINK_TYPE_ETHERNET) {
        bail!("not an Ethernet capture in the format expected");
    }
    let mut rest = &file[FILE_HEADER..];
    let mut frames = Vec::new();
    while let Some(length) = number(rest, 8).and_then(|length| usize::try_from(length).ok()) {
        let Some(frame) = rest.get(RECORD_HEADER..RECORD_HEADER + length) else { break };
        frames.push(frame);
        rest = &rest[RECORD_HEADER + length..];
    }
    Ok(frames)
}

/// Reads the header of a capture that is still being written.
pub(crate) fn read_header(from: &mut impl Read) -> io::Result<()> {
    let mut header = [0; FILE_HEADER];
    from.read_exact(&mut header)?;
    if header[..4] != MAGIC || number(&header, 20) != Some(LINK_TYPE_ETHERNET) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an Ethernet capture in the format expected"));
    }
    Ok(())
}

/// Reads the next frame of such a capture; `false` at its end, even if that cuts a frame.
pub(crate) fn read_frame(from: &mut impl Read, frame: &mut Vec<u8>) -> io::Result<bool> {
    let mut header = [0; RECORD_HEADER];
    let whole = from.read_exact(&mut header).and_then(|()| {
        frame.resize(number(&header, 8).and_then(|length| usize::try_from(length).ok()).unwrap_or_default(), 0);
        from.read_exact(frame)
    });
    match whole {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The TCP segment of a frame, if it holds one.
pub(crate) fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(ETHERNET_HEADER..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => ipv4(packet),
        [0x86, 0xdd] => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Segment<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let ip = |at: usize| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
    if *packet.get(9)? != TCP {
        return None;
    }
    tcp(ip(12)?, ip(16)?, packet.get(header..total.min(packet.len()))?)
}

fn ipv6(packet: &[u8]) -> Option<Segment<'_>> {
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let ip = |at: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
    if *packet.get(6)? != TCP {
        return None;
    }
    tcp(ip(8)?, ip(24)?, packet.get(40..(40 + length).min(packet.len()))?)
}

fn tcp(from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<Segment<'_>> {
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
        syn: segment.get(13)? & 0x02 != 0,
        payload: segment.get(header..)?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An IPv4 frame with a TCP segment.
    pub(crate) fn frame(from: (u8, u16), to: (u8, u16), sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 77, 0, from.0, 10, 77, 0, to.0]);
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, if syn { 2 } else { 16 }, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    /// A capture file of frames.
    pub(crate) fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        file
    }

    #[test]
    fn frames_and_segments_are_read() {
        let bytes = file(&[frame((1, 40000), (2, 15008), 7, false, b"hello")]);
        let frames = frames(&bytes).unwrap();
        let segment = segment(frames[0]).unwrap();
        assert_eq!(segment.from.to_string(), "10.77.0.1:40000");
        assert_eq!(
            (segment.to.port(), segment.sequence, segment.syn, segment.payload),
            (15008, 7, false, &b"hello"[..])
        );
    }

    #[test]
    fn ethernet_padding_is_not_payload() {
        let mut padded = frame((1, 1), (2, 2), 0, true, b"");
        padded.extend([0; 6]);
        assert!(segment(&padded).unwrap().payload.is_empty());
    }

    #[test]
    fn a_capture_is_read_while_it_is_written() {
        let written = [frame((1, 1), (2, 2), 0, false, b"first"), frame((1, 1), (2, 2), 5, false, b"second")];
        let bytes = file(&written);
        let (mut input, mut next) = (&bytes[..bytes.len() - 1], Vec::new());
        read_header(&mut input).unwrap();
        assert!(read_frame(&mut input, &mut next).unwrap());
        assert_eq!(next, written[0]);
        assert!(!read_frame(&mut input, &mut next).unwrap(), "the second one is cut");
        assert!(read_header(&mut &b"something else, long enough"[..]).is_err());
    }

    #[test]
    fn a_cut_file_and_a_foreign_one() {
        let bytes = file(&[frame((1, 1), (2, 2), 0, false, b"x")]);
        assert!(frames(&bytes[..bytes.len() - 1]).unwrap().is_empty());
        assert!(frames(b"something else").is_err());
    }
}
