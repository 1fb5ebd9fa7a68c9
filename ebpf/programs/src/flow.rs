//! Plaintext that applications of enrolled pods accept without the agent: its beginning, its end, its bytes.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use warren_ebpf_abi::{Endpoint, Event, EventKind};

use crate::address::{either, is_loopback};
use crate::event::emit;
use crate::node_maps::{EXEMPT, pod};
use crate::shared_maps::{config, is_own};
use crate::socket::netns_cookie;

/// `AF_INET`.
const INET: u32 = 2;

#[sock_ops]
pub fn warren_flows(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(&context),
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == BPF_TCP_CLOSE => closed(&context),
        _ => {}
    }
    1
}

#[inline(always)]
fn opened(context: &SockOpsContext) {
    let cookie = netns_cookie(context.ops.cast());
    if pod(cookie).is_none() || is_the_agents(context) {
        return;
    }
    let event = describe(context, EventKind::FlowOpened, cookie);
    if is_loopback(&event.remote.ip()) || is_own(cookie, event.remote.ip()) {
        return;
    }
    // Only a flow whose end will be seen is worth reporting.
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if context.set_cb_flags(flags as i32).is_ok() {
        emit(event);
    }
}

#[inline(always)]
fn closed(context: &SockOpsContext) {
    let cookie = netns_cookie(context.ops.cast());
    if pod(cookie).is_some() {
        emit(describe(context, EventKind::FlowClosed, cookie));
    }
}

/// Whether the connection was accepted by the agent, or by the application from the agent (it bears the mark).
#[inline(always)]
fn is_the_agents(context: &SockOpsContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*context.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return true;
    }
    // SAFETY: just checked, and the verifier knows it as a socket.
    let mark = unsafe { (*socket).mark };
    EXEMPT.get(socket).is_some() || config().is_some_and(|config| config.is_marked(mark))
}

#[inline(always)]
fn describe(context: &SockOpsContext, kind: EventKind, cookie: u64) -> Event {
    // SAFETY: the context is valid while the program runs.
    let ops: &bpf_sock_ops = unsafe { &*context.ops };
    let is_v4 = ops.family == INET;
    let local = either(is_v4, &raw const ops.local_ip4, &raw const ops.local_ip6);
    let remote = either(is_v4, &raw const ops.remote_ip4, &raw const ops.remote_ip6);
    Event {
        kind: kind as u32,
        reason: 0,
        cookie,
        // SAFETY: the helper reads the context's socket.
        socket: unsafe { bpf_get_socket_cookie(context.ops.cast()) },
        local: Endpoint::new(local, ops.local_port as u16),
        remote: Endpoint::new(remote, u32::from_be(ops.remote_port) as u16),
        received: ops.bytes_received,
        sent: ops.bytes_acked,
    }
}
