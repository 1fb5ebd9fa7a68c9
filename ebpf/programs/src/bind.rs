//! `bind`: lets an application listen on a port that is the remote port of a captured connection.
//!
//! The agent's end of such a connection lives in the pod's namespace with that port as its own local one; without
//! SO_REUSEADDR the application's `bind` would fail. TCP only: on UDP it would let datagrams be stolen.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::node_maps::pod;
use crate::socket::{SO_REUSEADDR, is_tcp, netns_cookie, set_option};

#[cgroup_sock_addr(bind4)]
pub fn warren_bind4(context: SockAddrContext) -> i32 {
    share_port(&context)
}

#[cgroup_sock_addr(bind6)]
pub fn warren_bind6(context: SockAddrContext) -> i32 {
    share_port(&context)
}

#[inline(always)]
fn share_port(context: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &*context.sock_addr };
    if is_tcp(address) && pod(netns_cookie(context.sock_addr.cast())).is_some() {
        // A socket on which it cannot be set binds as it would have without us.
        set_option(context.sock_addr.cast(), SO_REUSEADDR, 1);
    }
    1
}
