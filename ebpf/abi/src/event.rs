use crate::Plain;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    ip: [u8; 16],
    port: u16,
    reserved: [u8; 6],
}

impl Endpoint {
    /// No address.
    pub const NONE: Self = Self::new([0; 16], 0);

    /// `ip` in the form of [`mapped`](crate::mapped), port as a number.
    #[must_use]
    #[inline(always)]
    pub const fn new(ip: [u8; 16], port: u16) -> Self {
        Self { ip, port, reserved: [0; 6] }
    }

    /// The address, in the form of [`mapped`](crate::mapped).
    #[must_use]
    pub const fn ip(&self) -> [u8; 16] {
        self.ip
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

/// Something the kernel side tells the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Number of an [`EventKind`].
    pub kind: u32,
    /// Number of a [`RefusalReason`] or, of plaintext, of a [`ProbeRefusal`](crate::ProbeRefusal); or 0.
    pub reason: u32,
    /// Cookie of the pod's network namespace.
    pub cookie: u64,
    /// Cookie of the socket, or 0.
    pub socket: u64,
    /// Cookie of the other end's network namespace, if the kernel vouches for it, or 0.
    pub peer: u64,
    /// The pod's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// Bytes received from the other end.
    pub received: u64,
    /// Bytes sent and acknowledged.
    pub sent: u64,
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// Plaintext from outside was refused by verdict.
    PlaintextRefused = 1,
    /// An application accepted plaintext from outside.
    FlowOpened = 2,
    /// Such a connection ended.
    FlowClosed = 3,
    /// A connection to a captured destination was refused at `connect`.
    ConnectRefused = 4,
    /// An application has opened a connection that takes the kernel path.
    FlowDialled = 5,
    /// Such a connection was not answered.
    FlowFailed = 6,
    /// A connection to a pod of this node has no verdict.
    VerdictWanted = 7,
    /// An application accepted a probe of this node's host.
    ProbeOpened = 8,
    /// A connection from this node's host is no probe, so that the agent decides.
    NotAProbe = 9,
}

impl EventKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::PlaintextRefused),
            2 => Some(Self::FlowOpened),
            3 => Some(Self::FlowClosed),
            4 => Some(Self::ConnectRefused),
            5 => Some(Self::FlowDialled),
            6 => Some(Self::FlowFailed),
            7 => Some(Self::VerdictWanted),
            8 => Some(Self::ProbeOpened),
            9 => Some(Self::NotAProbe),
            _ => None,
        }
    }
}

/// Why a connection was refused at `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalReason {
    /// The agent was away for longer than configured.
    AgentAway = 1,
    /// The configuration is missing or of another contract.
    NotConfigured = 2,
    /// The socket's earlier state could not be kept.
    NotRemembered = 3,
    /// The mark could not be set.
    NotMarked = 4,
    /// The socket could not be bound to `lo`.
    NotBound = 5,
    /// An earlier capture could not be undone.
    NotUndone = 6,
}

impl RefusalReason {
    /// The reason with this number.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::AgentAway),
            2 => Some(Self::NotConfigured),
            3 => Some(Self::NotRemembered),
            4 => Some(Self::NotMarked),
            5 => Some(Self::NotBound),
            6 => Some(Self::NotUndone),
            _ => None,
        }
    }

    /// A short name for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentAway => "agent_away",
            Self::NotConfigured => "not_configured",
            Self::NotRemembered => "not_remembered",
            Self::NotMarked => "not_marked",
            Self::NotBound => "not_bound",
            Self::NotUndone => "not_undone",
        }
    }
}

// SAFETY: repr(C), integers and byte arrays only; the test below shows that there is no padding.
unsafe impl Plain for Event {}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(size_of::<Endpoint>(), 24);
        assert_eq!(size_of::<Event>(), 96);
        assert_eq!(offset_of!(Event, local), 32);
        assert_eq!(offset_of!(Event, received), 80);
    }

    #[test]
    fn codes_decode_to_what_they_were() {
        for code in 1..=9 {
            assert_eq!(EventKind::from_code(code).map(|kind| kind as u32), Some(code));
        }
        for code in 1..=6 {
            assert_eq!(RefusalReason::from_code(code).map(|reason| reason as u32), Some(code));
        }
        assert_eq!((EventKind::from_code(0), RefusalReason::from_code(0)), (None, None));
    }
}
