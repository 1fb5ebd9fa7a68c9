//! What a SYN from outside claims: to be of a connection that was admitted to the kernel path.

use warren_ebpf_abi::{WayKey, WayState};

use crate::near_maps::{WAYS, is_permitted, past_way};

/// What becomes of the claim.
pub(crate) enum Claim {
    /// There is none.
    None,
    /// The application gets the connection.
    Good,
    /// It was admitted, but has been accepted or has ended already, or is no longer permitted.
    Void,
}

/// Judges the claim of a packet that arrived at the pod with this cookie by this interface.
#[inline(always)]
pub(crate) fn judge(key: &WayKey, cookie: u64, interface: u32) -> Claim {
    // SAFETY: the fields that are read are written before the entry is there; of the state either value will do.
    let Some(way) = (unsafe { WAYS.get(key) }) else {
        return if past_way(key).is_some() { Claim::Void } else { Claim::None };
    };
    let is_ours = way.to == cookie && way.to_wire.inner() == interface && way.state == WayState::Asked as u32;
    if is_ours && is_permitted(&key.verdict(way.from, way.to)) { Claim::Good } else { Claim::Void }
}
