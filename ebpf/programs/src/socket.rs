//! Reading and changing the socket a program runs for.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt};

/// `SOCK_STREAM`.
const STREAM: u32 = 1;
/// `IPPROTO_TCP`.
pub(crate) const TCP: u32 = 6;
/// `SOL_SOCKET`.
pub(crate) const SOL_SOCKET: i32 = 1;
/// `SO_REUSEADDR`.
pub(crate) const SO_REUSEADDR: i32 = 2;
/// `SO_BINDTODEVICE`.
pub(crate) const SO_BINDTODEVICE: i32 = 25;
/// `SO_MARK`.
pub(crate) const SO_MARK: i32 = 36;
/// `SO_BINDTOIFINDEX`.
pub(crate) const SO_BINDTOIFINDEX: i32 = 62;

/// `TCP_CONGESTION`.
const TCP_CONGESTION: i32 = 13;
/// The congestion control that every kernel has.
const RENO: [u8; 5] = *b"reno\0";

/// Whether the socket is a TCP one; every other must be left alone.
#[inline(always)]
pub(crate) fn is_tcp(address: &bpf_sock_addr) -> bool {
    address.type_ == STREAM && address.protocol == TCP
}

/// Cookie of the network namespace of the context's socket.
#[inline(always)]
pub(crate) fn netns_cookie(context: *mut c_void) -> u64 {
    // SAFETY: the verifier checks that `context` is the program's own.
    unsafe { bpf_get_netns_cookie(context) }
}

/// Sets a socket option of level `SOL_SOCKET`; false if the kernel would not.
#[inline(always)]
pub(crate) fn set_option(context: *mut c_void, option: i32, value: u32) -> bool {
    set_option_of(context, SOL_SOCKET, option, value)
}

/// Sets a socket option of any level; false if the kernel would not.
#[inline(always)]
pub(crate) fn set_option_of(context: *mut c_void, level: i32, option: i32, value: u32) -> bool {
    let mut value = value;
    let pointer = ptr::from_mut(&mut value).cast();
    // SAFETY: as above; `value` outlives the call and is as long as stated.
    unsafe { bpf_setsockopt(context, level, option, pointer, size_of::<u32>() as i32) == 0 }
}

/// Gives a socket a congestion control that does not pace: what the node's default does for a network (BBR above all) costs
/// a timer per burst where there is none. What the kernel says of it is of no consequence.
#[inline(always)]
pub(crate) fn do_not_pace(context: *mut c_void) {
    let mut name = RENO;
    let pointer = ptr::from_mut(&mut name).cast();
    // SAFETY: the verifier checks that `context` is the program's own; `name` outlives the call and is as long as stated.
    unsafe { bpf_setsockopt(context, TCP as i32, TCP_CONGESTION, pointer, RENO.len() as i32) };
}
