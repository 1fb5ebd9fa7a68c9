//! Ends of spliced connections: written by the programs that splice, reported and taken away by the node's.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{MAX_SPLICED, SpliceEnd};

#[btf_map]
pub(crate) static SPLICE_ENDS: HashMap<u64, SpliceEnd, MAX_SPLICED, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
