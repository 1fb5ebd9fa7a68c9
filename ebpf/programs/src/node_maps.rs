//! Maps that only the node's programs use.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, LpmTrie};
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{Captured, ExactKey, PodEntry};

use crate::storage::{INHERITED, PRIVATE, SocketStorage};

#[btf_map]
pub(crate) static PODS: HashMap<u64, PodEntry, 4096> = HashMap::new();

#[btf_map]
pub(crate) static CAPTURE4: LpmTrie<[u8; 4], u8, 524288> = LpmTrie::new();

#[btf_map]
pub(crate) static CAPTURE6: LpmTrie<[u8; 16], u8, 524288> = LpmTrie::new();

#[btf_map]
pub(crate) static CAPTURE_EXACT: HashMap<ExactKey, u8, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Sockets of the agent. Inherited: what its listeners accept is the agent's as well.
#[btf_map]
pub(crate) static EXEMPT: SocketStorage<u8, INHERITED> = SocketStorage::new();

#[btf_map]
pub(crate) static CAPTURED: SocketStorage<Captured, PRIVATE> = SocketStorage::new();

/// The entry of the pod whose network namespace has this cookie.
#[inline(always)]
pub(crate) fn pod(cookie: u64) -> Option<PodEntry> {
    // SAFETY: the entry is one integer, read once; a concurrent update shows either value.
    unsafe { PODS.get(cookie) }.copied()
}
