//! `sk_lookup`: which listener of the agent takes a SYN that arrives in the pod.
//!
//! For captured traffic it never answers "pass" without a socket: the SYN would reach a wildcard listener of the pod.

use aya_ebpf::bindings::{bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use warren_ebpf_abi::{
    Endpoint, Event, EventKind, Family, HBONE_PORT, LOOPBACK_IFINDEX, ListenerKind, PodConfig, PortVerdict, WayKey,
    is_self_test, listener_slot, stat,
};

use crate::address::{either, is_loopback};
use crate::claim::{self, Claim};
use crate::event::emit;
use crate::pod_maps::{LISTENER_PORTS, LISTENERS, POD_CONFIG, VERDICTS};
use crate::probe::{self, Probe};
use crate::shared_maps::is_own;
use crate::stats::count;

/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `AF_INET`.
const INET: u32 = 2;

/// Why a SYN is refused.
enum Refusal {
    /// The agent's listener is not there, or is dialled directly.
    NoListener,
    /// Plaintext, by verdict; and why it is no probe, if the host opened it.
    Plaintext(u32),
    /// A claim to be of an admitted connection does not hold.
    Void,
}

struct Packet {
    family: Family,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
    on_loopback: bool,
    interface: u32,
}

#[sk_lookup]
pub fn warren_lookup(context: SkLookupContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let lookup = unsafe { &*context.lookup };
    if lookup.protocol != TCP {
        return sk_action::SK_PASS;
    }
    let Some(config) = POD_CONFIG.get(0) else { return sk_action::SK_DROP };
    let packet = Packet::read(lookup);
    match choose(&context, config, &packet) {
        Ok(()) => sk_action::SK_PASS,
        Err(Refusal::NoListener) => {
            count(stat::NO_LISTENER);
            sk_action::SK_DROP
        }
        Err(Refusal::Void) => sk_action::SK_DROP,
        Err(Refusal::Plaintext(no_probe)) => {
            count(stat::PLAINTEXT_REFUSED);
            report(config, &packet, EventKind::PlaintextRefused, no_probe);
            sk_action::SK_DROP
        }
    }
}

#[inline(always)]
fn choose(context: &SkLookupContext, config: &PodConfig, packet: &Packet) -> Result<(), Refusal> {
    if packet.on_loopback {
        if is_loopback(&packet.local) {
            return refuse_direct_dial(packet);
        }
        // The pod calls itself, or the agent calls the application.
        if is_own(config.cookie(), packet.local) {
            return Ok(());
        }
        return assign(context, config, packet, captured_kind(packet));
    }
    // The kernel names the interface that owns the address when a pod calls its own address.
    if is_own(config.cookie(), packet.local) && is_own(config.cookie(), packet.remote) {
        return Ok(());
    }
    if packet.local_port == HBONE_PORT {
        return assign(context, config, packet, ListenerKind::Hbone);
    }
    let key = WayKey::new(packet.remote, packet.remote_port, packet.local, packet.local_port);
    match claim::judge(&key, config.cookie(), packet.interface) {
        Claim::Good => return Ok(()),
        Claim::Void => return Err(Refusal::Void),
        Claim::None => {}
    }
    let no_probe = match probe::judge(&key, config.cookie(), lets_probes_in(packet.local_port)) {
        Probe::Yes => return Ok(()),
        Probe::Refused(refusal) => refusal,
        Probe::No => 0,
    };
    match verdict(packet.local_port) {
        PortVerdict::Pass => Ok(()),
        PortVerdict::Agent => {
            if no_probe != 0 {
                report(config, packet, EventKind::NotAProbe, no_probe);
            }
            assign(context, config, packet, ListenerKind::Plaintext)
        }
        PortVerdict::Refuse => Err(Refusal::Plaintext(no_probe)),
    }
}

#[inline(always)]
fn captured_kind(packet: &Packet) -> ListenerKind {
    if is_self_test(packet.local) { ListenerKind::SelfTest } else { ListenerKind::Outbound }
}

/// Loopback traffic is the pod's own affair, but the agent's listeners are not to be reached by it.
#[inline(always)]
fn refuse_direct_dial(packet: &Packet) -> Result<(), Refusal> {
    // SAFETY: the value is one integer, read once.
    match unsafe { LISTENER_PORTS.get(packet.local_port) } {
        Some(_) => Err(Refusal::NoListener),
        None => Ok(()),
    }
}

/// Without a table nothing comes in.
#[inline(always)]
fn verdict(port: u16) -> PortVerdict {
    VERDICTS.get(0).map_or(PortVerdict::Refuse, |verdicts| verdicts.of(port))
}

/// As above.
#[inline(always)]
fn lets_probes_in(port: u16) -> bool {
    VERDICTS.get(0).is_some_and(|verdicts| verdicts.lets_probes_in(port))
}

#[inline(always)]
fn assign(context: &SkLookupContext, config: &PodConfig, packet: &Packet, kind: ListenerKind) -> Result<(), Refusal> {
    let worker = match kind {
        ListenerKind::SelfTest => 0,
        _ => config.worker(packet.remote_port),
    };
    let slot = listener_slot(kind, packet.family, worker);
    if LISTENERS.assign(context, slot) { Ok(()) } else { Err(Refusal::NoListener) }
}

#[inline(always)]
fn report(config: &PodConfig, packet: &Packet, kind: EventKind, reason: u32) {
    emit(Event {
        kind: kind as u32,
        reason,
        cookie: config.cookie(),
        socket: 0,
        peer: 0,
        local: Endpoint::new(packet.local, packet.local_port),
        remote: Endpoint::new(packet.remote, packet.remote_port),
        received: 0,
        sent: 0,
    });
}

impl Packet {
    #[inline(always)]
    fn read(lookup: &bpf_sk_lookup) -> Self {
        let family = if lookup.family == INET { Family::V4 } else { Family::V6 };
        let is_v4 = matches!(family, Family::V4);
        let local = either(is_v4, &raw const lookup.local_ip4, &raw const lookup.local_ip6);
        let remote = either(is_v4, &raw const lookup.remote_ip4, &raw const lookup.remote_ip6);
        Self {
            family,
            local,
            remote,
            local_port: lookup.local_port as u16,
            remote_port: u16::from_be(lookup.remote_port),
            on_loopback: lookup.ingress_ifindex == LOOPBACK_IFINDEX,
            interface: lookup.ingress_ifindex,
        }
    }
}
