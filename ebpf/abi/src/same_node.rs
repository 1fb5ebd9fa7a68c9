//! Connections between pods of one node that run between the pods' own sockets.

use crate::Plain;

/// Most ways that exist at once: two for each admitted connection. A connection beyond goes through the agent.
pub const MAX_WAYS: usize = 131_072;

/// Most verdicts that exist at once.
pub const MAX_VERDICTS: usize = 65_536;

/// How long a way is kept after its sender's socket closed, in nanoseconds: what a socket in TIME_WAIT still answers
/// takes it.
pub const PAST_WAY_NS: u64 = 120_000_000_000;

/// The two ends of a pod's link: the interface in the agent's namespace, and the one in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Wire {
    outer: u32,
    inner: u32,
}

impl Wire {
    /// Index of the interface in the agent's namespace, and of that in the pod's.
    #[must_use]
    #[inline(always)]
    pub const fn new(outer: u32, inner: u32) -> Self {
        Self { outer, inner }
    }

    /// The interface in the agent's namespace.
    #[must_use]
    #[inline(always)]
    pub const fn outer(self) -> u32 {
        self.outer
    }

    /// The interface in the pod's namespace.
    #[must_use]
    #[inline(always)]
    pub const fn inner(self) -> u32 {
        self.inner
    }
}

/// A pod whose connections may take the kernel path, as their source. Keyed by cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NearSource {
    /// Its link.
    pub wire: Wire,
    /// Its one IPv4 address, or zeros.
    pub v4: [u8; 16],
    /// Its one IPv6 address, or zeros.
    pub v6: [u8; 16],
}

/// A pod whose connections may take the kernel path, as their destination. Keyed by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NearDestination {
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// Its link.
    pub wire: Wire,
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct VerdictKey {
    source: u64,
    destination: u64,
    source_ip: [u8; 16],
    destination_ip: [u8; 16],
    port: u16,
    reserved: [u8; 6],
}

impl VerdictKey {
    /// Cookie and address of the source, cookie, address and port of the destination.
    #[must_use]
    #[inline(always)]
    pub const fn new(source: (u64, [u8; 16]), destination: (u64, [u8; 16]), port: u16) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_ip: source.1,
            destination_ip: destination.1,
            port,
            reserved: [0; 6],
        }
    }

    /// Cookie of the source's network namespace.
    #[must_use]
    #[inline(always)]
    pub const fn source(&self) -> u64 {
        self.source
    }

    /// Cookie of the destination's network namespace.
    #[must_use]
    #[inline(always)]
    pub const fn destination(&self) -> u64 {
        self.destination
    }

    /// The way from the source's `port` to the destination.
    #[must_use]
    #[inline(always)]
    pub const fn way(&self, port: u16) -> WayKey {
        WayKey::new(self.source_ip, port, self.destination_ip, self.port)
    }
}

/// A permission, good as long as its generation is the configuration's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Verdict {
    /// Generation in which it was given.
    pub generation: u64,
}

/// What `connect` found out about a socket that takes the kernel path; the source port is not known then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Admission {
    /// The permission it is for.
    pub verdict: VerdictKey,
    /// Link of the source.
    pub source: Wire,
    /// Link of the destination.
    pub destination: Wire,
}

/// One direction of an admitted connection: what its packets bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct WayKey {
    from: [u8; 16],
    to: [u8; 16],
    from_port: u16,
    to_port: u16,
}

impl WayKey {
    /// Address and port of the sender, address and port of the receiver.
    #[must_use]
    #[inline(always)]
    pub const fn new(from: [u8; 16], from_port: u16, to: [u8; 16], to_port: u16) -> Self {
        Self { from, to, from_port, to_port }
    }

    /// The other direction.
    #[must_use]
    #[inline(always)]
    pub const fn back(&self) -> Self {
        Self::new(self.to, self.to_port, self.from, self.from_port)
    }

    /// Address of the sender.
    #[must_use]
    #[inline(always)]
    pub const fn from(&self) -> [u8; 16] {
        self.from
    }

    /// Address of the receiver.
    #[must_use]
    #[inline(always)]
    pub const fn to(&self) -> [u8; 16] {
        self.to
    }

    /// Port of the receiver.
    #[must_use]
    #[inline(always)]
    pub const fn to_port(&self) -> u16 {
        self.to_port
    }

    /// Whether a connection that is opened in this direction is one that the verdict is about.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(&self, verdict: &VerdictKey) -> bool {
        // As numbers: a comparison of arrays is a call that the kernel's programs cannot make.
        u128::from_ne_bytes(self.from) == u128::from_ne_bytes(verdict.source_ip)
            && u128::from_ne_bytes(self.to) == u128::from_ne_bytes(verdict.destination_ip)
            && self.to_port == verdict.port
    }

    /// What the verdict on a connection that is opened in this direction is about.
    #[must_use]
    #[inline(always)]
    pub const fn verdict(&self, source: u64, destination: u64) -> VerdictKey {
        VerdictKey::new((source, self.from), (destination, self.to), self.to_port)
    }
}

/// One direction of an admitted connection: where its packets come from and go. It is written when the connection is
/// opened, and taken away with the socket that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// Cookie of the socket that sends; 0 until the destination has accepted the connection.
    pub owner: u64,
    /// Cookie of the sender's network namespace.
    pub from: u64,
    /// Cookie of the receiver's network namespace.
    pub to: u64,
    /// When the sender's socket closed, in nanoseconds; 0 if it has not.
    pub ended: u64,
    /// Link of the sender.
    pub from_wire: Wire,
    /// Link of the receiver.
    pub to_wire: Wire,
    /// Number of a [`WayState`].
    pub state: u32,
    /// Low bits of the number of bytes that the sender had received when its own end was acknowledged.
    pub received: u32,
}

/// How far an admitted connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WayState {
    /// Of the source: nobody has accepted it yet. This alone lets a SYN in, and it is gone with the first accept.
    Asked = 1,
    /// Of the source: accepted.
    Taken = 2,
    /// Of the destination.
    Answer = 3,
    /// Of the source: the verdict was withdrawn while it was opened, and its SYN is to be answered with a reset.
    Refused = 4,
}

// SAFETY: repr(C), integers and byte arrays only; the test below shows that there is no padding.
unsafe impl Plain for NearSource {}
// SAFETY: as above.
unsafe impl Plain for NearDestination {}
// SAFETY: as above.
unsafe impl Plain for VerdictKey {}
// SAFETY: as above.
unsafe impl Plain for Verdict {}
// SAFETY: as above.
unsafe impl Plain for WayKey {}
// SAFETY: as above.
unsafe impl Plain for Way {}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Wire>(), 8);
        assert_eq!(size_of::<NearSource>(), 40);
        assert_eq!(size_of::<NearDestination>(), 16);
        assert_eq!(size_of::<VerdictKey>(), 56);
        assert_eq!(size_of::<Admission>(), 72);
        assert_eq!(size_of::<WayKey>(), 36);
        assert_eq!(size_of::<Way>(), 56);
    }

    #[test]
    fn a_way_leads_back_and_to_its_verdict() {
        let (a, b) = ([1; 16], [2; 16]);
        let verdict = VerdictKey::new((7, a), (8, b), 80);
        let way = verdict.way(40_000);
        assert_eq!(way, WayKey::new(a, 40_000, b, 80));
        assert_eq!(way.back().back(), way);
        assert_eq!(way.verdict(7, 8), verdict);
        assert!(way.is_of(&verdict) && !way.back().is_of(&verdict) && !way.is_of(&VerdictKey::new((7, a), (8, b), 81)));
        assert_ne!(way.back().verdict(8, 7), verdict);
    }
}
