//! Maps of the programs that splice.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, LruHashMap, PerCpuArray, SockHash};
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{MAX_SPLICED, MAX_WAYS, SplicePair, SplicePort, Way, WayKey, splice_stat};

use crate::storage::{PRIVATE, SocketStorage};

/// The connections that were admitted: shared with the node's programs.
#[btf_map]
pub(crate) static WAYS: HashMap<WayKey, Way, MAX_WAYS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// By cookie: a socket that takes another's addresses and ports is never mistaken for it.
#[btf_map]
pub(crate) static SPLICE_SOCKETS: SockHash<u64, MAX_SPLICED> = SockHash::new();

#[btf_map]
pub(crate) static SPLICE_PAIRS: SocketStorage<SplicePair, PRIVATE> = SocketStorage::new();

/// Who listens where. An entry may be old: what it leads to is looked at before it is believed.
#[btf_map]
pub(crate) static SPLICE_LISTENERS: LruHashMap<SplicePort, u64, 16384> = LruHashMap::new();

#[btf_map]
pub(crate) static SPLICE_STATS: PerCpuArray<u64, { splice_stat::COUNT as usize }> = PerCpuArray::new();

/// Adds to a counter of [`splice_stat`].
#[inline(always)]
pub(crate) fn count(index: u32, amount: u64) {
    if let Some(counter) = SPLICE_STATS.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's own; at worst an interrupted count is lost.
        unsafe { *counter += amount };
    }
}
