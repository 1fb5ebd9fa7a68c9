//! Maps of connections from the host that the node's and every pod's programs share.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{HostConnection, MAX_HOST_CONNECTIONS, WayKey};

/// Never evicted: who could make it overflow could have a probe forgotten between its SYN and its arrival.
#[btf_map]
pub(crate) static HOST_CONNECTIONS: HashMap<
    WayKey,
    HostConnection,
    MAX_HOST_CONNECTIONS,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// For the record only: nothing is decided by it.
#[btf_map]
pub(crate) static HOST_REFUSALS: LruHashMap<WayKey, u32, 1024> = LruHashMap::new();
