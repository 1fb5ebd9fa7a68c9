//! Connections that a socket of the host opens to a pod: kubelet's probes, above all.

use crate::Plain;

/// Most connections from the host to enrolled pods that are remembered at once.
pub const MAX_HOST_CONNECTIONS: usize = 16_384;

/// Most cgroups that pods' cgroups may lie in.
pub const MAX_POD_CGROUPS: usize = 64;

/// How deep a cgroup that pods' cgroups lie in may be. A process that is deeper counts as a pod's.
pub const MAX_CGROUP_DEPTH: i32 = 32;

/// What `connect` found out about a socket of the host that goes to an enrolled pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HostOpener {
    /// A process in no pod's cgroup.
    Host = 1,
    /// A process in a pod's cgroup: the pod uses the host's network.
    Pod = 2,
    /// It is not known which cgroups are pods'.
    Unknown = 3,
}

/// How far a connection is that the host opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HostState {
    /// Its socket connects.
    Opened = 1,
    /// The pod's link saw its SYN come from that very socket.
    Sent = 2,
    /// The pod declares its port: it is let in.
    Admitted = 3,
    /// The application has accepted it. No other SYN is let in.
    Taken = 4,
}

/// A connection that a process outside of all pods opens. Keyed by what its packets bear on their way to the pod; it
/// is there as long as the socket is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HostConnection {
    /// Cookie of the socket.
    pub owner: u64,
    /// Cookie of the pod's network namespace.
    pub pod: u64,
    /// Number of a [`HostState`].
    pub state: u32,
    /// Zero.
    pub reserved: u32,
}

/// Why a connection from the host is none of the probes that are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProbeRefusal {
    /// A process in a pod's cgroup opened it.
    PodProcess = 1,
    /// It is not known which cgroups are pods'.
    PodCgroupsUnknown = 2,
    /// The pod's spec names the port in no probe and no hook.
    PortNotDeclared = 3,
    /// Its SYN was not seen on the pod's link, so that it could be anybody's.
    LinkNotWatched = 4,
    /// The application has accepted it already.
    Used = 5,
    /// It could not be remembered.
    NotRemembered = 6,
}

impl ProbeRefusal {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::PodProcess,
        Self::PodCgroupsUnknown,
        Self::PortNotDeclared,
        Self::LinkNotWatched,
        Self::Used,
        Self::NotRemembered,
    ];

    /// The refusal with this number.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::PodProcess),
            2 => Some(Self::PodCgroupsUnknown),
            3 => Some(Self::PortNotDeclared),
            4 => Some(Self::LinkNotWatched),
            5 => Some(Self::Used),
            6 => Some(Self::NotRemembered),
            _ => None,
        }
    }

    /// A short name for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodProcess => "pod_process",
            Self::PodCgroupsUnknown => "pod_cgroups_unknown",
            Self::PortNotDeclared => "port_not_declared",
            Self::LinkNotWatched => "link_not_watched",
            Self::Used => "used",
            Self::NotRemembered => "not_remembered",
        }
    }
}

// SAFETY: repr(C), integers only; the test below shows that there is no padding.
unsafe impl Plain for HostConnection {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(core::mem::size_of::<HostConnection>(), 24);
    }

    #[test]
    fn refusals_decode_to_what_they_were() {
        for refusal in ProbeRefusal::ALL {
            assert_eq!(ProbeRefusal::from_code(refusal as u32), Some(refusal));
        }
        assert_eq!((ProbeRefusal::from_code(0), ProbeRefusal::from_code(7)), (None, None));
    }
}
