//! Telling the daemon.

use warren_ebpf_abi::{Event, stat};

use crate::shared_maps::EVENTS;
use crate::stats::count;

/// Puts an event into the ring buffer; a full one is counted.
#[inline(always)]
pub(crate) fn emit(event: Event) {
    match EVENTS.reserve(0) {
        Some(mut entry) => {
            entry.write(event);
            entry.submit(0);
        }
        None => count(stat::EVENTS_LOST),
    }
}
