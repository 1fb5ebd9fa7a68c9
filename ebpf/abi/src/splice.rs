//! Bytes of connections within the node that go from socket to socket.

use crate::Plain;

/// Most sockets whose bytes may go from socket to socket at once.
pub const MAX_SPLICED: usize = 131_072;

/// Part of a receiver's buffer that spliced bytes may fill, as a divisor: the rest is for what TCP has in flight. Bytes
/// that TCP delivers beyond the buffer are dropped and sent again much later.
pub const SPLICE_SHARE: u32 = 2;

/// Messages of less than this many bytes are counted: each takes memory of the kernel that is not charged to anybody.
pub const SPLICE_SMALL: u32 = 1024;

/// Most small messages that may wait for a receiver.
pub const SPLICE_MOST_SMALL: u32 = 256;

/// Size that a spliced socket's receive buffer is given, which is a fraction of what TCP lets it grow to. TCP would not
/// let it grow: it sees none of the bytes. Its share for spliced bytes is more than the kernel puts into one message.
pub const SPLICE_BUFFER: u32 = 2_097_152;

/// Indexes of the counters in the map of what was spliced.
pub mod splice_stat {
    /// Bytes that went from socket to socket.
    pub const BYTES: u32 = 0;
    /// Messages of spliced connections that were given to TCP, in whole or in part.
    pub const TO_TCP: u32 = 1;
    /// Number of counters.
    pub const COUNT: u32 = 2;
}

/// Where this kernel keeps what decides whether bytes may be spliced: offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SpliceLayout {
    /// State of a socket, one byte.
    pub state: u32,
    /// Which directions of a socket are shut, one byte.
    pub shutdown: u32,
    /// The file a socket belongs to, a pointer.
    pub socket: u32,
    /// The open file of a socket's file, a pointer.
    pub file: u32,
    /// Flags of an open file, four bytes.
    pub file_flags: u32,
    /// A socket's psock, a pointer with flags.
    pub user_data: u32,
    /// Length of a socket's receive queue, four bytes.
    pub receive_queue: u32,
    /// Bytes charged to a socket's receive buffer, four bytes.
    pub charged: u32,
    /// Size of a socket's receive buffer, four bytes.
    pub buffer: u32,
    /// What the application has fixed the sizes of, one byte.
    pub locks: u32,
    /// Upper layer protocol of a socket, a pointer.
    pub upper: u32,
    /// Sequence number behind the last byte given to TCP, four bytes.
    pub write_seq: u32,
    /// Sequence number expected next, four bytes.
    pub rcv_nxt: u32,
    /// Whether a socket belongs to Multipath TCP, one byte.
    pub multipath: u32,
    /// Length of a psock's queue of packets that wait for memory, four bytes.
    pub delayed: u32,
    /// Bytes in a psock's queue, four bytes.
    pub queued: u32,
}

/// A port that is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SplicePort {
    /// Cookie of the network namespace.
    netns: u64,
    port: u32,
    reserved: u32,
}

impl SplicePort {
    /// Cookie of the network namespace, and the port.
    #[must_use]
    #[inline(always)]
    pub const fn new(netns: u64, port: u16) -> Self {
        Self { netns, port: port as u32, reserved: 0 }
    }
}

/// An end of a connection that may be spliced. Keyed by the cookie of its socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SpliceEnd {
    /// Address of its socket, to be looked at and never to be believed.
    pub address: u64,
    /// Bytes it sent from socket to socket.
    pub sent: u64,
    /// Bytes it was sent from socket to socket.
    pub received: u64,
}

/// What a socket knows of the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SplicePair {
    /// Cookie of this socket.
    pub own: u64,
    /// Address of this socket.
    pub own_address: u64,
    /// Cookie of the other end's socket; 0 until it is known.
    pub peer: u64,
    /// Address of the other end's socket.
    pub peer_address: u64,
    /// Small messages since the other end was last seen to have nothing left to read.
    pub small: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: repr(C), integers only; the test below shows that there is no padding.
unsafe impl Plain for SpliceLayout {}
// SAFETY: as above.
unsafe impl Plain for SpliceEnd {}
// SAFETY: as above.
unsafe impl Plain for SplicePair {}
// SAFETY: as above.
unsafe impl Plain for SplicePort {}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<SpliceLayout>(), 64);
        assert_eq!(size_of::<SpliceEnd>(), 24);
        assert_eq!(size_of::<SplicePair>(), 40);
        assert_eq!(size_of::<SplicePort>(), 16);
    }
}
