//! Maps of the kernel path that the node's and every pod's programs share, and what they say.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{MAX_VERDICTS, MAX_WAYS, PAST_WAY_NS, Verdict, VerdictKey, Way, WayKey};

use crate::shared_maps::config;

#[btf_map]
pub(crate) static NEAR_VERDICTS: HashMap<VerdictKey, Verdict, MAX_VERDICTS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Never evicted: the packets of a connection whose way were missing would leave by the shared network.
#[btf_map]
pub(crate) static WAYS: HashMap<WayKey, Way, MAX_WAYS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What a closed socket still answers bears no data, so the oldest may go.
#[btf_map]
pub(crate) static PAST_WAYS: LruHashMap<WayKey, Way, 32768> = LruHashMap::new();

/// Whether there is a good verdict.
#[inline(always)]
pub(crate) fn is_permitted(key: &VerdictKey) -> bool {
    let Some(config) = config() else { return false };
    // SAFETY: the value is one integer, read once.
    match unsafe { NEAR_VERDICTS.get(key) } {
        Some(verdict) => config.is_current(verdict.generation),
        None => false,
    }
}

/// The way with this key, if its sender has closed not long ago.
#[inline(always)]
pub(crate) fn past_way(key: &WayKey) -> Option<&'static Way> {
    // SAFETY: past ways are written once; should the slot be given to another one meanwhile, its packets are compared
    // with that one's interface and dropped or delivered to a pod that may have them.
    let way = unsafe { PAST_WAYS.get(key) }?;
    // SAFETY: the helper reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    (now.saturating_sub(way.ended) < PAST_WAY_NS).then_some(way)
}
