//! The gate on a pod's `lo`: while the agent is away for a short time, SYNs of captured connections are dropped, so
//! that the client's own retransmission waits, which `sk_lookup` cannot do. After that time they are turned into the
//! RST that answers them: a RST that the kernel makes itself would need a local source address.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use warren_ebpf_abi::{Config, Family, ListenerKind, listener_slot, stat};

use crate::pod_maps::LISTENERS;
use crate::shared_maps::{agent_is_away, config};
use crate::stats::count;

const ETHERNET_HEADER: usize = 14;
/// Source address in an IPv4 header; the destination follows it.
const IPV4_ADDRESSES: usize = ETHERNET_HEADER + 12;
const IPV6_HEADER: usize = 40;
/// Source address in an IPv6 header; the destination follows it.
const IPV6_ADDRESSES: usize = ETHERNET_HEADER + 8;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// States of TCP sockets (`enum` in the kernel's `tcp_states.h`).
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What becomes of a packet.
enum Passage {
    /// It goes on.
    Open,
    /// It is dropped, and its sender will try again.
    Held,
    /// Its sender is answered with a RST.
    Refused(Syn),
}

/// A bare SYN.
struct Syn {
    family: Family,
    /// Where its TCP header begins.
    tcp: usize,
}

#[classifier]
pub fn warren_gate(context: TcContext) -> i32 {
    match decide(&context) {
        Passage::Open => TC_ACT_OK,
        Passage::Held => {
            count(stat::SYN_HELD);
            TC_ACT_SHOT
        }
        Passage::Refused(syn) => {
            count(stat::REFUSED_AWAY);
            match syn.answer(&context) {
                Ok(()) => TC_ACT_OK,
                Err(_) => TC_ACT_SHOT,
            }
        }
    }
}

#[inline(always)]
fn decide(context: &TcContext) -> Passage {
    let Some(config) = config() else { return Passage::Open };
    match captured_syn(context, config) {
        Some(syn) if has_listener(&syn) => Passage::Open,
        Some(syn) if agent_is_away(config) => Passage::Refused(syn),
        Some(_) => Passage::Held,
        None => Passage::Open,
    }
}

#[inline(always)]
fn captured_syn(context: &TcContext, config: &Config) -> Option<Syn> {
    // SAFETY: the context is valid while the program runs.
    let mark = unsafe { (*context.skb.skb).mark };
    if !config.is_marked(mark) || is_connected(context) {
        return None;
    }
    let first: u8 = context.load(ETHERNET_HEADER).ok()?;
    let (family, protocol_at, header) = match first >> 4 {
        4 => (Family::V4, ETHERNET_HEADER + 9, usize::from(first & 0x0f) * 4),
        6 => (Family::V6, ETHERNET_HEADER + 6, IPV6_HEADER),
        _ => return None,
    };
    let protocol: u8 = context.load(protocol_at).ok()?;
    let tcp = ETHERNET_HEADER + header;
    let flags: u8 = context.load(tcp + 13).ok()?;
    (protocol == TCP && flags & (SYN | ACK) == SYN).then_some(Syn { family, tcp })
}

/// Whether a socket sends that has its SYN behind it. Almost every packet is such a one, and nothing of it is looked at.
#[inline(always)]
fn is_connected(context: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*context.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return false;
    }
    // SAFETY: just checked, and the verifier knows it as a socket.
    matches!(unsafe { (*socket).state }, TCP_ESTABLISHED | TCP_FIN_WAIT1..=TCP_TIME_WAIT | TCP_CLOSE_WAIT..=TCP_LAST_ACK)
}

/// Whether the agent listens. A process that ends, however it ends, leaves no socket in the map.
#[inline(always)]
fn has_listener(syn: &Syn) -> bool {
    LISTENERS.is_filled(listener_slot(ListenerKind::Outbound, syn.family, 0))
}

impl Syn {
    /// Makes the packet its own refusal: ends exchanged, and RST with the number that acknowledges it.
    #[inline(always)]
    fn answer(&self, context: &TcContext) -> Result<(), i64> {
        match self.family {
            Family::V4 => exchange::<4>(context, IPV4_ADDRESSES)?,
            Family::V6 => exchange::<16>(context, IPV6_ADDRESSES)?,
        }
        exchange::<2>(context, self.tcp)?;
        let sequence: [u8; 4] = context.load(self.tcp + 4)?;
        let acknowledged = u32::from_be_bytes(sequence).wrapping_add(1).to_be_bytes();
        self.replace(context, 8, acknowledged)?;
        self.replace(context, 4, [0; 4])?;
        let [offset, _, window @ ..]: [u8; 4] = context.load(self.tcp + 12)?;
        self.replace(context, 12, [offset, RST | ACK, window[0], window[1]])
    }

    /// Replaces four bytes of the TCP header. The checksum is kept right where it is not left to the device.
    #[inline(always)]
    fn replace(&self, context: &TcContext, at: usize, new: [u8; 4]) -> Result<(), i64> {
        let old: [u8; 4] = context.load(self.tcp + at)?;
        let [from, to] = [old, new].map(|word| u64::from(u32::from_ne_bytes(word)));
        context.l4_csum_replace(self.tcp + 16, from, to, size_of_val(&new) as u64)?;
        context.store(self.tcp + at, &new, 0)
    }
}

/// Exchanges two neighbouring fields; sums over them stay what they are.
#[inline(always)]
fn exchange<const SIZE: usize>(context: &TcContext, at: usize) -> Result<(), i64> {
    let first: [u8; SIZE] = context.load(at)?;
    let second: [u8; SIZE] = context.load(at + SIZE)?;
    context.store(at, &second, 0)?;
    context.store(at + SIZE, &first, 0)
}
