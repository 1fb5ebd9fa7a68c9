//! `setsockopt`: a spliced socket gets no protocol on top, which would take what is in its queue for its own. Libraries
//! that ask for kernel TLS do without if they are refused.

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;

use crate::splice_maps::SPLICE_PAIRS;

/// `SOL_TCP`, and its `TCP_ULP`.
const SOL_TCP: i32 = 6;
const TCP_ULP: i32 = 31;

#[cgroup_sockopt(setsockopt)]
pub fn warren_splice_option(context: SockoptContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let option = unsafe { &mut *context.sockopt };
    // SAFETY: the union has one member that programs may read, and the verifier knows it as a socket.
    let socket = unsafe { option.__bindgen_anon_1.sk };
    if option.level == SOL_TCP && option.optname == TCP_ULP && SPLICE_PAIRS.get(socket).is_some() {
        return 0;
    }
    // The kernel takes the caller's value, however long: only the first page of it was copied for us.
    option.optlen = 0;
    1
}
