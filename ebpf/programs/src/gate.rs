//! The gate on a pod's `lo`: while the agent is away for a short time, SYNs of captured connections are dropped, so
//! that the client's own retransmission waits. `sk_lookup` cannot do that: its refusal is a RST.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use warren_ebpf_abi::{Family, ListenerKind, listener_slot, stat};

use crate::pod_maps::LISTENERS;
use crate::shared_maps::{agent_is_away, config};
use crate::stats::count;

const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[classifier]
pub fn warren_gate(context: TcContext) -> i32 {
    if must_wait(&context) {
        count(stat::SYN_HELD);
        return TC_ACT_SHOT;
    }
    TC_ACT_OK
}

#[inline(always)]
fn must_wait(context: &TcContext) -> bool {
    let Some(config) = config() else { return false };
    // SAFETY: the context is valid while the program runs.
    let mark = unsafe { (*context.skb.skb).mark };
    if !config.is_marked(mark) {
        return false;
    }
    let Some(family) = family_of_bare_syn(context) else { return false };
    // After the configured time the SYN goes on, and finds no listener, and is refused.
    !has_listener(family) && !agent_is_away(config)
}

#[inline(always)]
fn family_of_bare_syn(context: &TcContext) -> Option<Family> {
    let first: u8 = context.load(ETHERNET_HEADER).ok()?;
    let (family, protocol_at, header) = match first >> 4 {
        4 => (Family::V4, ETHERNET_HEADER + 9, usize::from(first & 0x0f) * 4),
        6 => (Family::V6, ETHERNET_HEADER + 6, IPV6_HEADER),
        _ => return None,
    };
    let protocol: u8 = context.load(protocol_at).ok()?;
    if protocol != TCP {
        return None;
    }
    let flags: u8 = context.load(ETHERNET_HEADER + header + 13).ok()?;
    (flags & (SYN | ACK) == SYN).then_some(family)
}

/// Whether the agent listens. A process that ends, however it ends, leaves no socket in the map.
#[inline(always)]
fn has_listener(family: Family) -> bool {
    LISTENERS.is_filled(listener_slot(ListenerKind::Outbound, family, 0))
}
