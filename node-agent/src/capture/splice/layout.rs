//! Where this kernel keeps what decides whether bytes may be spliced.

use warren_ebpf_abi::SpliceLayout;

use super::btf::{Btf, BtfError};

/// Finds every place, or says which is missing.
pub(super) fn find() -> Result<SpliceLayout, BtfError> {
    let btf = Btf::of_the_kernel()?;
    // All of a TCP socket's structures begin at the same address, each being the first member of the next.
    Ok(SpliceLayout {
        state: btf.offset("sock", "__sk_common.skc_state")?,
        shutdown: btf.offset("sock", "sk_shutdown")?,
        socket: btf.offset("sock", "sk_socket")?,
        file: btf.offset("socket", "file")?,
        file_flags: btf.offset("file", "f_flags")?,
        user_data: btf.offset("sock", "sk_user_data")?,
        receive_queue: btf.offset("sock", "sk_receive_queue.qlen")?,
        charged: btf.offset("sock", "sk_backlog.rmem_alloc.counter")?,
        buffer: btf.offset("sock", "sk_rcvbuf")?,
        locks: btf.offset("sock", "sk_userlocks")?,
        upper: btf.offset("inet_connection_sock", "icsk_ulp_ops")?,
        write_seq: btf.offset("tcp_sock", "write_seq")?,
        rcv_nxt: btf.offset("tcp_sock", "rcv_nxt")?,
        multipath: btf.offset("tcp_sock", "is_mptcp")?,
        delayed: btf.offset("sk_psock", "ingress_skb.qlen")?,
        queued: btf.offset("sk_psock", "msg_tot_len")?,
    })
}
