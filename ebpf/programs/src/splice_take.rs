//! The beginning of a spliced connection: both its ends are remembered when they are established, the one that dialled
//! first.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock,
    bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_hash_update};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use warren_ebpf_abi::{SPLICE_BUFFER, SpliceEnd, SplicePair, SplicePort, Way, WayKey};

use crate::address::either;
use crate::socket::{netns_cookie, set_option, set_option_of};
use crate::splice_ends::SPLICE_ENDS;
use crate::splice_maps::{SPLICE_LISTENERS, SPLICE_PAIRS, SPLICE_SOCKETS, WAYS};
use crate::splice_peek::Peek;

/// `AF_INET`.
const INET: u32 = 2;
/// `SO_RCVBUF`.
const SO_RCVBUF: i32 = 8;
/// `SOL_TCP`, and its `TCP_NOTSENT_LOWAT`.
const SOL_TCP: i32 = 6;
const TCP_NOTSENT_LOWAT: i32 = 25;
/// `BPF_ANY`.
const ANY: u64 = 0;

/// Set by the loader: 1 splices sockets that wait in calls as well.
#[unsafe(no_mangle)]
static SPLICE_BLOCKING: u32 = 0;

#[sock_ops]
pub fn warren_splice_take(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => dialled(&context),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context),
        _ => {}
    }
    1
}

#[inline(always)]
fn socket_of(context: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*context.ops).__bindgen_anon_2.sk };
    if socket.is_null() { None } else { Some(socket) }
}

#[inline(always)]
fn listening(context: &SockOpsContext) {
    let Some(socket) = socket_of(context) else { return };
    // SAFETY: the context is valid while the program runs.
    let port = unsafe { (*context.ops).local_port };
    let key = SplicePort::new(netns_cookie(context.ops.cast()), port as u16);
    let _ = SPLICE_LISTENERS.insert(key, socket as u64, ANY);
}

#[inline(always)]
fn dialled(context: &SockOpsContext) {
    let key = leaving(context);
    let (Some(way), Some(socket)) = (admitted(context, &key), socket_of(context)) else { return };
    let Some(address) = remember(context, socket) else { return };
    let waits = !Peek::at(address).is_nonblocking() || !has_nonblocking_listener(way.to, key.to_port());
    // SAFETY: the static is valid; reading it so keeps the compiler from believing the zero above.
    let only_without_waiting = unsafe { (&raw const SPLICE_BLOCKING).read_volatile() } == 0;
    if (waits && only_without_waiting) || !take(context, address) {
        SPLICE_PAIRS.remove(socket);
    }
}

/// Whoever accepts is spliced if the other end is: that end has looked at the one who listens.
#[inline(always)]
fn accepted(context: &SockOpsContext) {
    let key = leaving(context);
    let (Some(_), Some(socket)) = (admitted(context, &key), socket_of(context)) else { return };
    // SAFETY: what is read is written before the entry is there.
    let Some(asked) = (unsafe { WAYS.get(key.back()) }) else { return };
    // SAFETY: only the presence of the entry is looked at.
    if asked.owner == 0 || unsafe { SPLICE_ENDS.get(asked.owner) }.is_none() {
        return;
    }
    let Some(address) = remember(context, socket) else { return };
    if !take(context, address) {
        SPLICE_PAIRS.remove(socket);
    }
}

/// Whether the server at a port does not wait for connections; it will not wait on them either.
///
/// The kernel lets a call that waits on a spliced socket return EAGAIN when something else than bytes wakes it: the
/// acknowledgement of a half-close, or room to send.
#[inline(always)]
fn has_nonblocking_listener(netns: u64, port: u16) -> bool {
    // SAFETY: the entry is one number, read once.
    let Some(listener) = (unsafe { SPLICE_LISTENERS.get(SplicePort::new(netns, port)) }) else { return false };
    let listener = Peek::at(*listener);
    listener.is_listening() && listener.is_nonblocking()
}

#[inline(always)]
fn take(context: &SockOpsContext, address: u64) -> bool {
    let cookie = cookie(context);
    if !Peek::at(address).is_plain() || !join(context, cookie) {
        return false;
    }
    if Peek::at(address).may_receive_more(SPLICE_BUFFER) {
        // The kernel doubles it.
        set_option(context.ops.cast(), SO_RCVBUF, SPLICE_BUFFER / 2);
    }
    // A sender whose bytes TCP has to carry waits until they are on their way, rather than keep TCP's queue full for
    // ever: only while that is empty can bytes be spliced again.
    set_option_of(context.ops.cast(), SOL_TCP, TCP_NOTSENT_LOWAT, 1);
    // Last, because an end that is found here is one that bytes may be sent to.
    let _ = SPLICE_ENDS.insert(cookie, SpliceEnd { address, sent: 0, received: 0 }, ANY);
    true
}

/// Begins a socket's entry; returns its address. What goes through memory comes back as a number, with which the
/// verifier lets us calculate.
#[inline(always)]
fn remember(context: &SockOpsContext, socket: *mut bpf_sock) -> Option<u64> {
    let own = cookie(context);
    let pair = SplicePair { own, own_address: socket as u64, peer: 0, peer_address: 0, small: 0, reserved: 0 };
    if !SPLICE_PAIRS.insert(socket, pair) {
        return None;
    }
    // SAFETY: the value belongs to the socket, which is locked.
    Some(unsafe { (&raw const (*SPLICE_PAIRS.get(socket)?.as_ptr()).own_address).read_volatile() })
}

#[inline(always)]
fn join(context: &SockOpsContext, cookie: u64) -> bool {
    let mut key = cookie;
    let map = (&raw const SPLICE_SOCKETS).cast_mut().cast();
    // SAFETY: context and map are the program's own, and the key outlives the call.
    unsafe { bpf_sock_hash_update(context.ops, map, (&raw mut key).cast(), ANY) == 0 }
}

#[inline(always)]
fn cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the helper reads the context's socket.
    unsafe { bpf_get_socket_cookie(context.ops.cast()) }
}

/// The way of what the context's socket sends, if the connection was admitted with this socket in its namespace.
#[inline(always)]
fn admitted(context: &SockOpsContext, key: &WayKey) -> Option<&'static Way> {
    // SAFETY: what is read is written before the entry is there.
    let way = unsafe { WAYS.get(key) }?;
    (way.from == netns_cookie(context.ops.cast())).then_some(way)
}

/// What the packets that the context's socket sends bear.
#[inline(always)]
fn leaving(context: &SockOpsContext) -> WayKey {
    // SAFETY: the context is valid while the program runs.
    let ops: &bpf_sock_ops = unsafe { &*context.ops };
    let is_v4 = ops.family == INET;
    let local = either(is_v4, &raw const ops.local_ip4, &raw const ops.local_ip6);
    let remote = either(is_v4, &raw const ops.remote_ip4, &raw const ops.remote_ip6);
    WayKey::new(local, ops.local_port as u16, remote, u32::from_be(ops.remote_port) as u16)
}
