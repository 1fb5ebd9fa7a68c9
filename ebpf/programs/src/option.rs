//! `setsockopt`: nobody, privileged or not, moves a captured connection to another device or mark.
//!
//! While the answer to a SYN is awaited, a new mark or device would let the retransmission leave in clear.

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use warren_ebpf_abi::stat;

use crate::node_maps::{CAPTURED, EXEMPT, pod};
use crate::socket::{SO_BINDTODEVICE, SO_BINDTOIFINDEX, SO_MARK, SOL_SOCKET, netns_cookie};
use crate::stats::count;

/// `IPPROTO_MPTCP`.
const MPTCP: u32 = 262;
/// `TCP_CLOSE`, the state of a socket that is not connected.
const CLOSE: u32 = 7;

#[cgroup_sockopt(setsockopt)]
pub fn warren_setsockopt(context: SockoptContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let option = unsafe { &mut *context.sockopt };
    let steering = matches!(option.optname, SO_MARK | SO_BINDTODEVICE | SO_BINDTOIFINDEX);
    if option.level == SOL_SOCKET && steering && is_captured(&context) {
        count(stat::OPTION_REFUSED);
        return 0;
    }
    // The kernel takes the caller's value, however long: only the first page of it was copied for us.
    option.optlen = 0;
    1
}

#[inline(always)]
fn is_captured(context: &SockoptContext) -> bool {
    if pod(netns_cookie(context.sockopt.cast())).is_none() {
        return false;
    }
    // SAFETY: the union has one member that programs may read, and the verifier knows it as a socket.
    let (socket, protocol, state) = unsafe {
        let socket = (*context.sockopt).__bindgen_anon_1.sk;
        (socket, (*socket).protocol, (*socket).state)
    };
    // The hook of `connect` sees and marks the subflow, not the MPTCP socket that the application holds.
    let subflow_may_be_captured = protocol == MPTCP && state != CLOSE && EXEMPT.get(socket).is_none();
    subflow_may_be_captured || CAPTURED.get(socket).is_some()
}
