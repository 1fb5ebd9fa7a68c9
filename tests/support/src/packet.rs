//! Ethernet frames taken apart as far as the assertions need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One captured frame that carried IP.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Index of the interface it was seen on.
    pub interface: usize,
    /// Sender; port 0 where the protocol has none.
    pub source: SocketAddr,
    /// Receiver; port 0 where the protocol has none.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP flags byte.
    pub flags: u8,
    /// What the transport carries.
    pub payload: Vec<u8>,
}

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// The SYN bit of `Packet::flags`.
pub const SYN: u8 = 0x02;

impl Packet {
    /// Parses an Ethernet frame; `None` for what is not IP or is cut short.
    pub fn parse(interface: usize, frame: &[u8]) -> Option<Self> {
        let ip = frame.get(14..)?;
        match u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]) {
            0x0800 => Self::parse_v4(interface, ip),
            0x86dd => Self::parse_v6(interface, ip),
            _ => None,
        }
    }

    /// Whether one end of it is this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.source.port() == port || self.destination.port() == port
    }

    /// Whether it asks for a TCP connection.
    pub fn is_syn(&self) -> bool {
        self.protocol == TCP && self.flags & 0x12 == SYN
    }

    fn parse_v4(interface: usize, ip: &[u8]) -> Option<Self> {
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
        let source = Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?);
        let destination = Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?);
        // Zero: a segment too large for the field, as offloading makes them.
        let end = if total == 0 { ip.len() } else { total.min(ip.len()) };
        Self::transport(interface, source.into(), destination.into(), *ip.get(9)?, ip.get(header..end)?)
    }

    fn parse_v6(interface: usize, ip: &[u8]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
        let source = Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?);
        let destination = Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?);
        let end = if length == 0 { ip.len() } else { (40 + length).min(ip.len()) };
        Self::transport(interface, source.into(), destination.into(), *ip.get(6)?, ip.get(40..end)?)
    }

    fn transport(interface: usize, source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Option<Self> {
        let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
        let with_ports = protocol == TCP || protocol == UDP;
        let (from, to) = if with_ports { (port(0)?, port(2)?) } else { (0, 0) };
        let (sequence, flags, start) = match protocol {
            TCP => (
                u32::from_be_bytes(body.get(4..8)?.try_into().ok()?),
                *body.get(13)?,
                usize::from(body.get(12)? >> 4) * 4,
            ),
            UDP => (0, 0, 8),
            _ => (0, 0, 0),
        };
        Some(Self {
            interface,
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
            protocol,
            sequence,
            flags,
            payload: body.get(start..)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_syn_is_recognised() {
        let mut frame = vec![0; 14 + 40];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let ip = &mut frame[14..];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&40u16.to_be_bytes());
        ip[9] = TCP;
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        ip[20..24].copy_from_slice(&[0x1f, 0x90, 0x3a, 0xa0]);
        ip[32] = 0x50;
        ip[33] = SYN;
        let packet = Packet::parse(3, &frame).unwrap();
        assert!(packet.is_syn() && packet.has_port(15008) && packet.payload.is_empty());
        assert_eq!(packet.source, "10.0.0.1:8080".parse().unwrap());
    }

    #[test]
    fn a_cut_frame_is_no_packet() {
        assert!(Packet::parse(0, &[0; 13]).is_none());
        assert!(Packet::parse(0, &[8, 0, 0x45]).is_none());
    }
}
