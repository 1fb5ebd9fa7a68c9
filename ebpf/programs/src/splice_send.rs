//! The life of a spliced connection: each message goes to the other end's queue, or to TCP.
//!
//! It goes to the queue only if everything before it is in there, and if there is room. TCP's flow control does the
//! rest: its window closes with the queue, and its sender waits.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_sock, sk_msg_md};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_msg_redirect_hash};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use warren_ebpf_abi::{SPLICE_MOST_SMALL, SPLICE_SMALL, SplicePair, WayKey, splice_stat};

use crate::address::either;
use crate::splice_ends::SPLICE_ENDS;
use crate::splice_maps::{SPLICE_PAIRS, SPLICE_SOCKETS, WAYS, count};
use crate::splice_peek::Peek;

/// `AF_INET`.
const INET: u32 = 2;

#[sk_msg]
pub fn warren_splice_send(context: SkMsgContext) -> u32 {
    if splice(&context).is_none() {
        // Whatever speaks against it, TCP takes the message.
        count(splice_stat::TO_TCP, 1);
    }
    SK_PASS
}

/// Sends the message from socket to socket: all of it, because the kernel keeps the receiver in mind while it asks about
/// the rest of a message, and would send that there too, whatever it is told.
#[inline(always)]
fn splice(context: &SkMsgContext) -> Option<()> {
    // SAFETY: the context is valid while the program runs.
    let socket: *mut bpf_sock = unsafe { (*context.msg).__bindgen_anon_3.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the value belongs to the socket, which is locked while it sends.
    let pair = unsafe { SPLICE_PAIRS.get(socket)?.as_mut() };
    if pair.peer == 0 {
        find_peer(context, pair)?;
    }
    let sequence = Peek::at(pair.own_address).sending()?;
    let room = Peek::at(pair.peer_address).room_behind(sequence)?;
    let size = context.size();
    if room.is_empty {
        pair.small = 0;
    }
    if size > room.bytes || (size < SPLICE_SMALL && pair.small >= SPLICE_MOST_SMALL) {
        return None;
    }
    redirect(context, pair, size)
}

#[inline(always)]
fn redirect(context: &SkMsgContext, pair: &mut SplicePair, size: u32) -> Option<()> {
    let mut key = pair.peer;
    let map = (&raw const SPLICE_SOCKETS).cast_mut().cast();
    let ingress = u64::from(BPF_F_INGRESS);
    // SAFETY: context and map are the program's own, and the key outlives the call.
    if unsafe { bpf_msg_redirect_hash(context.msg, map, (&raw mut key).cast(), ingress) } != i64::from(SK_PASS) {
        return None;
    }
    if size < SPLICE_SMALL {
        pair.small += 1;
    }
    account(pair, u64::from(size));
    Some(())
}

#[inline(always)]
fn account(pair: &SplicePair, bytes: u64) {
    count(splice_stat::BYTES, bytes);
    if let Some(own) = SPLICE_ENDS.get_ptr_mut(pair.own) {
        // SAFETY: only this socket, which is locked, writes this field.
        unsafe { (*own).sent += bytes };
    }
    if let Some(peer) = SPLICE_ENDS.get_ptr_mut(pair.peer) {
        // SAFETY: only this socket, being its only sender, writes this field.
        unsafe { (*peer).received += bytes };
    }
}

/// Finds the other end, once it is established as well: in the namespace that the connection was admitted to.
#[inline(always)]
fn find_peer(context: &SkMsgContext, pair: &mut SplicePair) -> Option<()> {
    let key = leaving(context.msg);
    // SAFETY: the helper reads the namespace of the context's socket.
    let netns = unsafe { bpf_get_netns_cookie(context.msg.cast()) };
    // SAFETY: what is read is written before the entry is there.
    let (way, back) = unsafe { (WAYS.get(key)?, WAYS.get(key.back())?) };
    if way.owner != pair.own || way.from != netns || way.to != back.from || back.owner == 0 {
        return None;
    }
    let peer = back.owner;
    // SAFETY: the address is written before the entry is there.
    pair.peer_address = unsafe { SPLICE_ENDS.get(peer)?.address };
    pair.peer = peer;
    Some(())
}

/// What the packets that the context's socket sends bear.
#[inline(always)]
fn leaving(message: *mut sk_msg_md) -> WayKey {
    // SAFETY: the context is valid while the program runs.
    let message: &sk_msg_md = unsafe { &*message };
    let is_v4 = message.family == INET;
    let local = either(is_v4, &raw const message.local_ip4, &raw const message.local_ip6);
    let remote = either(is_v4, &raw const message.remote_ip4, &raw const message.remote_ip6);
    WayKey::new(local, message.local_port as u16, remote, u32::from_be(message.remote_port) as u16)
}
