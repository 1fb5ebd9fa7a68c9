//! Connections of enrolled pods that run without the agent, in clear, by the kernel path or as probes of the host: their
//! beginning, their end, their bytes.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING,
    BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT, BPF_TCP_TIME_WAIT, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use warren_ebpf_abi::{Endpoint, Event, EventKind, LOOPBACK_IFINDEX, WayKey};

use crate::address::{either, is_loopback};
use crate::event::emit;
use crate::host::{self, HOST_SOCKETS};
use crate::near::{self, ADMISSIONS};
use crate::node_maps::{EXEMPT, pod};
use crate::shared_maps::{config, is_own};
use crate::socket::{SO_BINDTOIFINDEX, do_not_pace, netns_cookie, set_option};
use crate::splice_ends::SPLICE_ENDS;

/// `AF_INET`.
const INET: u32 = 2;

// Each case is a function of its own: the stack of one program would not do for all of them.
#[sock_ops]
pub fn warren_flows(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            dialling_from_host(&context);
            dialling(&context);
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            within_the_node(&context, false);
            dialled(&context);
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            within_the_node(&context, true);
            opened(&context);
        }
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == BPF_TCP_CLOSE => closed(&context),
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == BPF_TCP_FIN_WAIT2 => finished(&context),
        _ => {}
    }
    1
}

#[inline(never)]
fn dialling_from_host(context: &SockOpsContext) {
    let Some(opener) = socket_of(context).and_then(|socket| HOST_SOCKETS.get(socket)) else { return };
    // SAFETY: the value belongs to the locked socket.
    let opener = unsafe { *opener.as_ptr() };
    let event = describe(context, EventKind::FlowDialled, 0);
    host::dialling(context, opener, &leaving(&event), event.socket);
}

#[inline(never)]
fn dialling(context: &SockOpsContext) {
    let Some(socket) = admitted_socket(context) else { return };
    // A pod that left is no longer captured, whatever an earlier `connect` on the same socket found.
    if pod(netns_cookie(context.ops.cast())).is_none() {
        return ADMISSIONS.remove(socket);
    }
    let key = leaving(&describe(context, EventKind::FlowDialled, 0));
    near::dialling(context, socket, &key, socket_cookie(context));
}

/// Both ends of a connection between an application and the agent are in this kernel, whoever dialled: they bear the mark.
/// (Those of the kernel path are as well, and are known below.) Pacing is ended here, before the socket's own congestion
/// control begins with it; it would not stop later.
#[inline(never)]
fn within_the_node(context: &SockOpsContext, accepted: bool) {
    let Some(socket) = socket_of(context) else { return };
    // SAFETY: the verifier knows `socket` as one.
    let mark = unsafe { (*socket).mark };
    if config().is_some_and(|config| config.is_marked(mark)) {
        do_not_pace(context.ops.cast());
        if accepted {
            keep_to(context, LOOPBACK_IFINDEX);
        }
    }
}

/// Binds an accepted socket to the device that its packets come by. The agent dials an application in the client's name,
/// from a port of its own: the client may have a connection from the same port, by the pod's interface. The kernel tells
/// them apart by their devices, and nothing else.
#[inline(always)]
fn keep_to(context: &SockOpsContext, interface: u32) {
    let Some(socket) = socket_of(context) else { return };
    // SAFETY: the verifier knows `socket` as one. A listener may have been bound already.
    if unsafe { (*socket).bound_dev_if } == 0 {
        set_option(context.ops.cast(), SO_BINDTOIFINDEX, interface);
    }
}

#[inline(never)]
fn dialled(context: &SockOpsContext) {
    let Some(socket) = admitted_socket(context) else { return };
    do_not_pace(context.ops.cast());
    let Some(admission) = ADMISSIONS.get(socket) else { return };
    // SAFETY: the value belongs to the locked socket.
    let verdict = unsafe { &admission.as_ref().verdict };
    let mut event = describe(context, EventKind::FlowDialled, verdict.source());
    event.peer = verdict.destination();
    emit(event);
}

#[inline(never)]
fn opened(context: &SockOpsContext) {
    let cookie = netns_cookie(context.ops.cast());
    if pod(cookie).is_none() || is_the_agents(context) {
        return;
    }
    let mut event = describe(context, EventKind::FlowOpened, cookie);
    if is_loopback(&event.remote.ip()) || is_own(cookie, event.remote.ip()) {
        return;
    }
    let arriving = leaving(&event).back();
    let interface = match near::accepted(&arriving, cookie, event.socket) {
        Some((peer, interface)) => {
            event.peer = peer;
            do_not_pace(context.ops.cast());
            Some(interface)
        }
        None => {
            if host::accepted(&arriving, cookie) {
                event.kind = EventKind::ProbeOpened as u32;
            }
            near::only_interface(cookie)
        }
    };
    if let Some(interface) = interface {
        keep_to(context, interface);
    }
    // Only a flow whose end will be seen is worth reporting.
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if context.set_cb_flags(flags as i32).is_ok() {
        emit(event);
    }
}

#[inline(never)]
fn closed(context: &SockOpsContext) {
    let cookie = netns_cookie(context.ops.cast());
    let mut event = describe(context, EventKind::FlowClosed, cookie);
    let key = leaving(&event);
    host::closed(&key, event.socket);
    let (sent, received) = uncounted(context, &key, event.received);
    event.sent = event.sent.saturating_sub(sent);
    event.received = event.received.saturating_sub(received);
    event.peer = near::closed(&key, event.socket).unwrap_or(0);
    add_spliced(&mut event);
    if context.arg(0) == BPF_TCP_SYN_SENT {
        event.kind = EventKind::FlowFailed as u32;
    }
    if pod(cookie).is_some() {
        emit(event);
    }
}

#[inline(never)]
fn finished(context: &SockOpsContext) {
    let event = describe(context, EventKind::FlowClosed, 0);
    near::finished(&leaving(&event), event.received);
}

/// How much of what the kernel counted as sent and received is no data: beginnings and ends count as a byte each.
#[inline(always)]
fn uncounted(context: &SockOpsContext, key: &WayKey, received: u64) -> (u64, u64) {
    let dialled = u64::from(admitted_socket(context).is_some());
    match context.arg(0) {
        BPF_TCP_FIN_WAIT2 => (dialled + 1, u64::from(!near::is_silent(key, received))),
        BPF_TCP_CLOSING | BPF_TCP_TIME_WAIT | BPF_TCP_LAST_ACK => (dialled + 1, 1),
        BPF_TCP_CLOSE_WAIT => (dialled, 1),
        _ => (dialled, 0),
    }
}

/// TCP has not seen the bytes that went from socket to socket.
#[inline(always)]
fn add_spliced(event: &mut Event) {
    // SAFETY: the other end's socket may add to it; what comes after the end of this one is not reported.
    let Some(end) = (unsafe { SPLICE_ENDS.get(event.socket) }) else { return };
    event.received += end.received;
    event.sent += end.sent;
    let _ = SPLICE_ENDS.remove(event.socket);
}

/// What the packets that a socket sends bear.
#[inline(always)]
fn leaving(event: &Event) -> WayKey {
    WayKey::new(event.local.ip(), event.local.port(), event.remote.ip(), event.remote.port())
}

/// The context's socket.
#[inline(always)]
fn socket_of(context: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*context.ops).__bindgen_anon_2.sk };
    if socket.is_null() { None } else { Some(socket) }
}

/// The context's socket, if `connect` admitted it.
#[inline(always)]
fn admitted_socket(context: &SockOpsContext) -> Option<*mut bpf_sock> {
    socket_of(context).filter(|socket| ADMISSIONS.get(*socket).is_some())
}

#[inline(always)]
fn socket_cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the helper reads the context's socket.
    unsafe { bpf_get_socket_cookie(context.ops.cast()) }
}

/// Whether the connection was accepted by the agent, or by the application from the agent (it bears the mark).
#[inline(always)]
fn is_the_agents(context: &SockOpsContext) -> bool {
    let Some(socket) = socket_of(context) else { return true };
    // SAFETY: the verifier knows `socket` as one.
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
        socket: socket_cookie(context),
        peer: 0,
        local: Endpoint::new(local, ops.local_port as u16),
        remote: Endpoint::new(remote, u32::from_be(ops.remote_port) as u16),
        received: ops.bytes_received,
        sent: ops.bytes_acked,
    }
}
