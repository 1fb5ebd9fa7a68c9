//! Maps of one pod.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{LISTENER_SLOTS, PodConfig, PortVerdicts};

use crate::sockmap::Sockmap;

#[btf_map]
pub(crate) static LISTENERS: Sockmap<{ LISTENER_SLOTS as usize }> = Sockmap::new();

/// Loopback ports of the listeners, with the slot of each.
#[btf_map]
pub(crate) static LISTENER_PORTS: HashMap<u16, u32, { LISTENER_SLOTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub(crate) static VERDICTS: Array<PortVerdicts, 1> = Array::new();

#[btf_map]
pub(crate) static POD_CONFIG: Array<PodConfig, 1> = Array::new();
