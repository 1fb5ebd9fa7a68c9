//! `connect`: sends connections of enrolled pods into the agent, or refuses them; never lets a captured one out.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use warren_ebpf_abi::{
    Captured, Config, Endpoint, Event, EventKind, ExactKey, LOOPBACK_IFINDEX, PodEntry, RefusalReason, is_self_test,
    stat,
};

use crate::address::{as_v4, from_v4, from_v6, is_loopback};
use crate::event::emit;
use crate::host;
use crate::near::{self, ADMISSIONS, Near};
use crate::node_maps::{CAPTURE_EXACT, CAPTURE4, CAPTURE6, CAPTURED, EXEMPT, pod};
use crate::shared_maps::{agent_is_away, config, is_own};
use crate::socket::{SO_BINDTOIFINDEX, SO_MARK, is_tcp, netns_cookie, set_option};
use crate::stats::count;

/// What becomes of a connection.
enum Outcome {
    /// Not ours.
    Untouched,
    /// Left alone though the pod is enrolled.
    Passed,
    /// Left alone after an earlier capture of the same socket was undone.
    Undone,
    /// It will reach the agent.
    Captured,
    /// It takes the kernel path to another pod of this node; counted when that is certain.
    Near,
}

struct Target {
    /// The address the socket is bound to, if any.
    bound: [u8; 16],
    ip: [u8; 16],
    port: u16,
}

#[cgroup_sock_addr(connect4)]
pub fn warren_connect4(context: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &*context.sock_addr };
    if !is_tcp(address) {
        return 1;
    }
    // SAFETY: the union has one member that programs may read, and the verifier knows it as a socket.
    let bound = from_v4(unsafe { (*address.__bindgen_anon_1.sk).src_ip4 });
    decide(&context, address, bound, from_v4(address.user_ip4))
}

#[cgroup_sock_addr(connect6)]
pub fn warren_connect6(context: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &*context.sock_addr };
    if !is_tcp(address) {
        return 1;
    }
    let words = [address.user_ip6[0], address.user_ip6[1], address.user_ip6[2], address.user_ip6[3]];
    // SAFETY: as above.
    let bound = unsafe { (*address.__bindgen_anon_1.sk).src_ip6 };
    let bound = from_v6([bound[0], bound[1], bound[2], bound[3]]);
    decide(&context, address, bound, from_v6(words))
}

#[inline(always)]
fn decide(context: &SockAddrContext, address: &bpf_sock_addr, bound: [u8; 16], ip: [u8; 16]) -> i32 {
    let target = Target { bound, ip, port: u16::from_be(address.user_port as u16) };
    let cookie = netns_cookie(context.sock_addr.cast());
    match handle(context, address, cookie, &target) {
        Ok(Outcome::Untouched | Outcome::Near) => 1,
        Ok(Outcome::Passed) => allow(stat::PASSED),
        Ok(Outcome::Undone) => allow(stat::UNDONE),
        Ok(Outcome::Captured) => allow(stat::CAPTURED),
        Err(reason) => refuse(cookie, &target, reason),
    }
}

#[inline(always)]
fn handle(
    context: &SockAddrContext,
    address: &bpf_sock_addr,
    cookie: u64,
    target: &Target,
) -> Result<Outcome, RefusalReason> {
    // SAFETY: the union has one member that programs may read.
    let socket = unsafe { address.__bindgen_anon_1.sk };
    let Some(pod) = pod(cookie) else {
        if let Some(config) = config().filter(|config| config.is_host(cookie)) {
            host::connecting(socket, config, target.ip);
        }
        return Ok(Outcome::Untouched);
    };
    if EXEMPT.get(socket).is_some() {
        return Ok(Outcome::Untouched);
    }
    let config = config().ok_or(RefusalReason::NotConfigured)?;
    if !is_captured(pod, cookie, target) {
        ADMISSIONS.remove(socket);
        return release(context, socket, config);
    }
    // Nobody would withdraw a verdict then.
    if agent_is_away(config) {
        return Err(RefusalReason::AgentAway);
    }
    if goes_near(context, socket, config, cookie, target) {
        return Ok(Outcome::Near);
    }
    ADMISSIONS.remove(socket);
    capture(context, socket, config)
}

/// Takes the kernel path if there is a verdict for it, and asks for one if there is none.
#[inline(always)]
fn goes_near(context: &SockAddrContext, socket: *mut bpf_sock, config: &Config, cookie: u64, target: &Target) -> bool {
    match near::find(cookie, target.bound, target.ip, target.port) {
        Near::No => false,
        Near::Undecided(verdict) => {
            emit(Event {
                kind: EventKind::VerdictWanted as u32,
                reason: 0,
                cookie,
                socket: 0,
                peer: verdict.destination(),
                local: Endpoint::new(verdict.way(0).from(), 0),
                remote: Endpoint::new(target.ip, target.port),
                received: 0,
                sent: 0,
            });
            false
        }
        // A socket that cannot be led there is captured.
        Near::Admitted(admission) => {
            let interface = admission.source.inner();
            keep_to(context, socket, config, interface) && near::remember(socket, admission)
        }
    }
}

/// Binds a socket to the pod's interface. Captured connections are bound to `lo`, and may stand on the same addresses and
/// ports: the kernel tells them apart by their devices, and nothing else.
#[inline(always)]
fn keep_to(context: &SockAddrContext, socket: *mut bpf_sock, config: &Config, interface: u32) -> bool {
    // SAFETY: the verifier knows `socket` as one.
    let (ifindex, mark) = unsafe { ((*socket).bound_dev_if, (*socket).mark) };
    let Some(before) = remembered(socket) else { return false };
    // The application's own device comes first.
    if before.ifindex() != 0 && before.ifindex() != interface {
        return false;
    }
    let raw = context.sock_addr.cast();
    let unmarked = config.unmarked(mark, before.mark());
    (mark == unmarked || set_option(raw, SO_MARK, unmarked))
        && (ifindex == interface || set_option(raw, SO_BINDTOIFINDEX, interface))
}

#[inline(always)]
fn is_captured(pod: PodEntry, cookie: u64, target: &Target) -> bool {
    if is_self_test(target.ip) {
        return true;
    }
    if !pod.is_capturing() || is_loopback(&target.ip) || is_own(cookie, target.ip) {
        return false;
    }
    let in_prefix = match as_v4(&target.ip) {
        Some(v4) => CAPTURE4.get(&Key::new(32, v4)).is_some(),
        None => CAPTURE6.get(&Key::new(128, target.ip)).is_some(),
    };
    // SAFETY: only the presence of the entry is looked at.
    in_prefix || unsafe { CAPTURE_EXACT.get(ExactKey::new(target.ip, target.port)) }.is_some()
}

/// What a socket was before it was first marked or bound here; `None` if the kernel cannot keep it.
#[inline(always)]
fn remembered(socket: *mut bpf_sock) -> Option<Captured> {
    if let Some(before) = CAPTURED.get(socket) {
        // SAFETY: the value is two integers that only the owner of the locked socket writes.
        return Some(unsafe { *before.as_ptr() });
    }
    // SAFETY: the verifier knows `socket` as one.
    let before = unsafe { Captured::new((*socket).bound_dev_if, (*socket).mark) };
    CAPTURED.insert(socket, before).then_some(before)
}

/// Marks the socket and binds it to `lo`. The mark alone is not enough: a device the application has bound the
/// socket to, or a mark it sets anew before the SYN is answered, would lead the packets out.
#[inline(always)]
fn capture(context: &SockAddrContext, socket: *mut bpf_sock, config: &Config) -> Result<Outcome, RefusalReason> {
    // SAFETY: the verifier knows `socket` as one.
    let (ifindex, mark) = unsafe { ((*socket).bound_dev_if, (*socket).mark) };
    if remembered(socket).is_none() {
        return Err(RefusalReason::NotRemembered);
    }
    let raw = context.sock_addr.cast();
    if !config.is_marked(mark) && !set_option(raw, SO_MARK, config.marked(mark)) {
        return Err(RefusalReason::NotMarked);
    }
    if ifindex != LOOPBACK_IFINDEX && !set_option(raw, SO_BINDTOIFINDEX, LOOPBACK_IFINDEX) {
        return Err(RefusalReason::NotBound);
    }
    Ok(Outcome::Captured)
}

/// Gives a socket that was captured before its own mark and device back.
#[inline(always)]
fn release(context: &SockAddrContext, socket: *mut bpf_sock, config: &Config) -> Result<Outcome, RefusalReason> {
    let Some(captured) = CAPTURED.get(socket) else { return Ok(Outcome::Passed) };
    // SAFETY: the value is two integers that only the owner of the locked socket writes.
    let captured = unsafe { *captured.as_ptr() };
    // SAFETY: the verifier knows `socket` as one.
    let mark = unsafe { (*socket).mark };
    let raw = context.sock_addr.cast();
    let undone = set_option(raw, SO_MARK, config.unmarked(mark, captured.mark()))
        && set_option(raw, SO_BINDTOIFINDEX, captured.ifindex());
    if !undone {
        return Err(RefusalReason::NotUndone);
    }
    CAPTURED.remove(socket);
    Ok(Outcome::Undone)
}

#[inline(always)]
fn allow(counter: u32) -> i32 {
    count(counter);
    1
}

#[inline(always)]
fn refuse(cookie: u64, target: &Target, reason: RefusalReason) -> i32 {
    const ECONNREFUSED: i32 = 111;
    count(if matches!(reason, RefusalReason::AgentAway) { stat::REFUSED_AWAY } else { stat::REFUSED_ERROR });
    emit(Event {
        kind: EventKind::ConnectRefused as u32,
        reason: reason as u32,
        cookie,
        socket: 0,
        peer: 0,
        local: Endpoint::NONE,
        remote: Endpoint::new(target.ip, target.port),
        received: 0,
        sent: 0,
    });
    // SAFETY: the helper takes a number. Should it fail, the program's 0 refuses with EPERM.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    0
}
