//! Counters.

use crate::shared_maps::STATS;

/// Adds one to a counter of [`warren_ebpf_abi::stat`].
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's own; programs are not preempted by one another between read and write
        // in a way that loses more than a count.
        unsafe { *counter += 1 };
    }
}
