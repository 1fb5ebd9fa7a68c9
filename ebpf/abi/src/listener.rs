/// Most workers an agent may run: one listener of each kind and family exists for each.
pub const MAX_WORKERS: u32 = 64;

/// Size of a pod's sockmap.
pub const LISTENER_SLOTS: u32 = 4 * 2 * MAX_WORKERS;

/// What a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum ListenerKind {
    /// Captured connections of the pod.
    Outbound = 0,
    /// Tunnels of peers.
    Hbone = 1,
    /// Plaintext from outside that needs a decision.
    Plaintext = 2,
    /// The self-test's connection: a listener of its own, so that a test never takes a connection of the pod's.
    SelfTest = 3,
}

impl ListenerKind {
    /// The kinds that every worker has.
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Hbone, Self::Plaintext];
}

/// Address family of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// Where a listener stands in the sockmap; `worker` is taken modulo [`MAX_WORKERS`].
#[must_use]
#[inline(always)]
pub const fn listener_slot(kind: ListenerKind, family: Family, worker: u32) -> u32 {
    (kind as u32 * 2 + family as u32) * MAX_WORKERS + worker % MAX_WORKERS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_has_a_slot_of_its_own() {
        let mut seen = [false; LISTENER_SLOTS as usize];
        for kind in ListenerKind::ALL.into_iter().chain([ListenerKind::SelfTest]) {
            for family in Family::ALL {
                for worker in 0..MAX_WORKERS {
                    let slot = listener_slot(kind, family, worker) as usize;
                    assert!(!core::mem::replace(&mut seen[slot], true), "slot {slot} given twice");
                }
            }
        }
        assert!(seen.iter().all(|taken| *taken));
    }
}
