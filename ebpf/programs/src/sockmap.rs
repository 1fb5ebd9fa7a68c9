//! A sockmap whose values are 8 bytes long: user space can then read the cookies of the sockets in it.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_SK_LOOKUP_F_NO_REUSEPORT;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use aya_ebpf::programs::SkLookupContext;

/// A `BPF_MAP_TYPE_SOCKMAP` in the form that loaders read from BTF.
#[repr(C)]
pub(crate) struct Sockmap<const ENTRIES: usize> {
    r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SOCKMAP as usize],
    key: *const u32,
    value: *const u64,
    max_entries: *const [i32; ENTRIES],
}

// SAFETY: the fields describe a map to the loader and are never dereferenced.
unsafe impl<const ENTRIES: usize> Sync for Sockmap<ENTRIES> {}

impl<const ENTRIES: usize> Sockmap<ENTRIES> {
    pub(crate) const fn new() -> Self {
        Self { r#type: ptr::null(), key: ptr::null(), value: ptr::null(), max_entries: ptr::null() }
    }

    /// Gives a looked-up connection to the listener in a slot, and to no other of a group it may be in; false if it
    /// could not.
    #[inline(always)]
    pub(crate) fn assign(&self, context: &SkLookupContext, slot: u32) -> bool {
        let socket = self.get(slot);
        if socket.is_null() {
            return false;
        }
        // SAFETY: the context is the program's own; the socket was just found and its reference is given back once.
        unsafe {
            let result = bpf_sk_assign(context.as_ptr(), socket, u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT));
            bpf_sk_release(socket);
            result == 0
        }
    }

    /// Whether a socket stands in a slot.
    #[inline(always)]
    pub(crate) fn is_filled(&self, slot: u32) -> bool {
        let socket = self.get(slot);
        if socket.is_null() {
            return false;
        }
        // SAFETY: the socket was just found and its reference is given back once.
        unsafe { bpf_sk_release(socket) };
        true
    }

    #[inline(always)]
    fn get(&self, slot: u32) -> *mut c_void {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the map is ours and the key outlives the call.
        unsafe { bpf_map_lookup_elem(map, ptr::from_ref(&slot).cast()) }
    }
}
