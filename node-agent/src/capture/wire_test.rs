//! The self-test of a pod's link: frames that claim to be of an admitted connection.
//!
//! One that the pod sends has to come back to it, led by the programs; one that comes from outside must not arrive, though
//! one that claims nothing does. Both bear an address of the self-test, so that no application ever sees them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use warren_ebpf_abi::{SELF_TEST_V4, Way, WayKey, WayState, Wire, map, mapped};

use super::bpf::{BpfError, Raw};
use super::error::CaptureError;
use super::wire::WireError;
use crate::sys::netns::NetNs;
use crate::sys::packet::PacketSocket;

/// How long a frame may take.
const LIMIT: Duration = Duration::from_millis(500);
/// Port of the admitted connection; that of the frame that claims nothing is the next.
const PORT: u16 = 7;
/// Bytes of a frame before its payload.
const HEADERS: usize = 14 + 20 + 20;

/// Tests a link whose programs are attached.
pub(super) fn test(netns: &NetNs, wire: Wire, ways: &OwnedFd) -> Result<(), WireError> {
    let inside = netns.enter(|| PacketSocket::open(wire.inner(), SELF_TEST_V4))??;
    let outside = PacketSocket::open(wire.outer(), SELF_TEST_V4)?;
    let mut ways = open(ways)?;
    let ip = mapped(SELF_TEST_V4);
    let key = Raw(WayKey::new(ip, PORT, ip, PORT));
    let way = Way {
        owner: 0,
        from: netns.cookie(),
        to: netns.cookie(),
        ended: 0,
        from_wire: wire,
        to_wire: wire,
        state: WayState::Answer as u32,
        received: 0,
    };
    ways.insert(key, Raw(way), 0).map_err(BpfError::map(map::WAYS)).map_err(CaptureError::from)?;
    let result = exchange(&inside, &outside);
    ways.remove(&key).map_err(BpfError::map(map::WAYS)).map_err(CaptureError::from)?;
    result
}

fn exchange(inside: &PacketSocket, outside: &PacketSocket) -> Result<(), WireError> {
    let nonce: [u8; 16] = rand::random();
    let port_of = |frame: &[u8]| {
        let payload = frame.get(HEADERS..HEADERS + nonce.len())?;
        let port = frame.get(HEADERS - 18..HEADERS - 16)?;
        (payload == nonce).then(|| u16::from_be_bytes([port[0], port[1]]))
    };
    inside.send(&frame(PORT, nonce))?;
    if inside.find(LIMIT, port_of)? != Some(PORT) {
        return Err(WireError::SelfTest("does not lead an admitted frame to its destination"));
    }
    // They cannot overtake one another: once the second is there, the first has been dropped.
    match outside.send(&frame(PORT, nonce)) {
        // What a program drops on the way out is an error to its sender.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
        other => other?,
    }
    outside.send(&frame(PORT + 1, nonce))?;
    match inside.find(LIMIT, port_of)? {
        Some(port) if port == PORT + 1 => Ok(()),
        Some(_) => Err(WireError::SelfTest("lets a forged frame through")),
        None => Err(WireError::SelfTest("does not let an ordinary frame through")),
    }
}

/// A TCP segment from and to the same port; nobody is to answer, so it has no checksums and no flags.
fn frame(port: u16, nonce: [u8; 16]) -> Vec<u8> {
    const LENGTH: u8 = 20 + 20 + 16;
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0, 0, LENGTH, 0, 0, 0, 0, 1, 6, 0, 0]);
    frame.extend(SELF_TEST_V4);
    frame.extend(SELF_TEST_V4);
    frame.extend(port.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend([0x50, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(nonce);
    frame
}

fn open(ways: &OwnedFd) -> Result<HashMap<MapData, Raw<WayKey>, Raw<Way>>, WireError> {
    let wrap = |error| WireError::Capture(CaptureError::Bpf(BpfError::map(map::WAYS)(error)));
    let data = MapData::from_fd(ways.try_clone()?).map_err(wrap)?;
    HashMap::try_from(Map::HashMap(data)).map_err(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_as_long_as_it_says() {
        let frame = frame(PORT, [9; 16]);
        assert_eq!(frame.len(), HEADERS + 16);
        assert_eq!(usize::from(frame[17]), frame.len() - 14);
        assert_eq!(frame[HEADERS - 18..HEADERS - 16], PORT.to_be_bytes());
    }
}
