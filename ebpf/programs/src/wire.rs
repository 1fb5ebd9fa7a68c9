//! The ends of pods' links in the agent's namespace: packets of admitted connections go from the source's link straight
//! into the destination's pod, past bridges, routes and neighbours; whatever else claims to be of one is dropped. So is
//! what claims to be of a connection that the host opens, and is not its socket's.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use warren_ebpf_abi::{HBONE_PORT, Way, WayKey, stat};

use crate::frame::{Frame, read};
use crate::host;
use crate::near::NEAR_DESTINATIONS;
use crate::near_maps::{WAYS, past_way};
use crate::stats::count;

/// `PACKET_HOST`: to be taken by the receiver whatever address the frame bears, which a neighbour may have chosen.
const PACKET_HOST: u32 = 0;

#[classifier]
pub fn warren_wire_from(context: TcContext) -> i32 {
    match read(&context) {
        Frame::Tcp(key, is_syn) => from_pod(&context, &key, is_syn),
        Frame::Other => TC_ACT_UNSPEC,
        Frame::Odd => drop(),
    }
}

#[classifier]
pub fn warren_wire_to(context: TcContext) -> i32 {
    match read(&context) {
        // SAFETY: only the presence of the entry is looked at.
        Frame::Tcp(key, _) if unsafe { WAYS.get(key) }.is_some() => drop(),
        Frame::Tcp(key, _) if !host::may_enter(context.skb.skb.cast(), &key) => TC_ACT_SHOT,
        Frame::Tcp(..) | Frame::Other => TC_ACT_UNSPEC,
        Frame::Odd => drop(),
    }
}

#[inline(always)]
fn from_pod(context: &TcContext, key: &WayKey, is_syn: bool) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let interface = unsafe { (*context.skb.skb).ifindex };
    // SAFETY: the links of an entry are written before it is there and never again.
    if let Some(way) = unsafe { WAYS.get(key) } {
        return if way.from_wire.outer() == interface { deliver(context, way) } else { drop() };
    }
    if let Some(way) = past_way(key)
        && way.from_wire.outer() == interface
    {
        return deliver(context, way);
    }
    if is_syn && is_near(key) { drop() } else { TC_ACT_UNSPEC }
}

/// Whether a SYN is between pods whose connections are either captured or admitted, so that it must not leave like this.
#[inline(always)]
fn is_near(key: &WayKey) -> bool {
    // SAFETY: only the presence of entries is looked at.
    key.to_port() != HBONE_PORT
        && unsafe { NEAR_DESTINATIONS.get(key.to()).is_some() && NEAR_DESTINATIONS.get(key.from()).is_some() }
}

#[inline(always)]
fn deliver(context: &TcContext, way: &Way) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: the context is the program's own.
    unsafe {
        if (*skb).pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST) != 0 {
            return drop();
        }
        bpf_redirect_peer(way.to_wire.outer(), 0) as i32
    }
}

#[inline(always)]
fn drop() -> i32 {
    count(stat::WIRE_DROPPED);
    TC_ACT_SHOT
}
