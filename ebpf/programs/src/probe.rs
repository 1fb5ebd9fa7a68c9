//! Whether a SYN from outside is a probe of the node's host.

use warren_ebpf_abi::{HostState, ProbeRefusal, WayKey};

use crate::host_maps::{HOST_CONNECTIONS, HOST_REFUSALS};

/// What a SYN is.
pub(crate) enum Probe {
    /// Nothing that the host opened, as far as is known.
    No,
    /// A probe: the application gets it.
    Yes,
    /// From the host, and none: number of a [`ProbeRefusal`].
    Refused(u32),
}

/// Judges a SYN that arrived at the pod with this cookie, at a port that the pod declares for probes or does not.
#[inline(always)]
pub(crate) fn judge(key: &WayKey, cookie: u64, declared: bool) -> Probe {
    const OPENED: u32 = HostState::Opened as u32;
    const SENT: u32 = HostState::Sent as u32;
    const ADMITTED: u32 = HostState::Admitted as u32;
    let Some(connection) = HOST_CONNECTIONS.get_ptr_mut(key) else { return refused(key) };
    // SAFETY: the pod is written before the entry is there and never again; the state is one aligned integer.
    let (pod, state) = unsafe { ((*connection).pod, (*connection).state) };
    if pod != cookie {
        return Probe::No;
    }
    match state {
        _ if !declared => Probe::Refused(ProbeRefusal::PortNotDeclared as u32),
        SENT | ADMITTED => {
            // SAFETY: as above; its other writers wait for this value.
            unsafe { (*connection).state = ADMITTED };
            Probe::Yes
        }
        OPENED => Probe::Refused(ProbeRefusal::LinkNotWatched as u32),
        _ => Probe::Refused(ProbeRefusal::Used as u32),
    }
}

/// What is known of a connection that will not be let in; it is told once.
#[inline(always)]
fn refused(key: &WayKey) -> Probe {
    // SAFETY: the value is one integer, read once.
    let Some(refusal) = (unsafe { HOST_REFUSALS.get(key) }).copied() else { return Probe::No };
    let _ = HOST_REFUSALS.remove(key);
    Probe::Refused(refusal)
}
