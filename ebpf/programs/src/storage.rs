//! Socket storage, for any program that has the socket at hand, with flags of our choice.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};

/// The flags every socket storage needs.
pub(crate) const PRIVATE: usize = BPF_F_NO_PREALLOC as usize;
/// As [`PRIVATE`]; and sockets accepted from a socket inherit its value.
pub(crate) const INHERITED: usize = PRIVATE | BPF_F_CLONE as usize;

/// A `BPF_MAP_TYPE_SK_STORAGE` map in the form that loaders read from BTF.
#[repr(C)]
pub(crate) struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields describe a map to the loader and are never dereferenced.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    pub(crate) const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    fn map(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The value of a socket.
    #[inline(always)]
    pub(crate) fn get(&self, socket: *mut bpf_sock) -> Option<NonNull<T>> {
        // SAFETY: the map is ours; the verifier checks that `socket` is one.
        NonNull::new(unsafe { bpf_sk_storage_get(self.map(), socket.cast(), ptr::null_mut(), 0) }.cast())
    }

    /// Gives a socket that has no value yet this one; false if the kernel could not.
    #[inline(always)]
    pub(crate) fn insert(&self, socket: *mut bpf_sock, mut value: T) -> bool {
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        let first = ptr::from_mut(&mut value).cast();
        // SAFETY: as above; `value` outlives the call, which copies it.
        !unsafe { bpf_sk_storage_get(self.map(), socket.cast(), first, flags) }.is_null()
    }

    /// Takes a socket's value away.
    #[inline(always)]
    pub(crate) fn remove(&self, socket: *mut bpf_sock) {
        // SAFETY: as above. It fails only if there is no value, which is what is wanted.
        unsafe { bpf_sk_storage_delete(self.map(), socket.cast()) };
    }
}
