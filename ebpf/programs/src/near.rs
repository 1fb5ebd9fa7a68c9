//! The kernel path: connections between pods of this node that run between the pods' own sockets. `connect` finds the
//! verdict, `sock_ops` knows the source port and writes the ways of the connection's packets down.

use aya_ebpf::bindings::BPF_SOCK_OPS_STATE_CB_FLAG;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_sock};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockOpsContext;
use warren_ebpf_abi::{
    Admission, LOOPBACK_IFINDEX, NearDestination, NearSource, VerdictKey, Way, WayKey, WayState, stat,
};

use crate::address::as_v4;
use crate::near_maps::{PAST_WAYS, WAYS, is_permitted, past_way};
use crate::shared_maps::config;
use crate::socket::{SO_BINDTOIFINDEX, SO_MARK, set_option};
use crate::stats::count;
use crate::storage::{PRIVATE, SocketStorage};

#[btf_map]
pub(crate) static NEAR_SOURCES: HashMap<u64, NearSource, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub(crate) static NEAR_DESTINATIONS: HashMap<[u8; 16], NearDestination, 16384, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub(crate) static ADMISSIONS: SocketStorage<Admission, PRIVATE> = SocketStorage::new();

/// `BPF_ANY`
const ANY: u64 = 0;

/// What is known about a destination when a socket connects.
pub(crate) enum Near {
    /// It cannot be reached by the kernel path.
    No,
    /// It could be, but there is no verdict.
    Undecided(VerdictKey),
    /// It is.
    Admitted(Admission),
}

/// Looks a connection up: from the pod with this cookie, by a socket that is bound to `bound` or to nothing.
#[inline(always)]
pub(crate) fn find(cookie: u64, bound: [u8; 16], ip: [u8; 16], port: u16) -> Near {
    // SAFETY: an entry is replaced as a whole; its parts are checked again when the connection is admitted.
    let Some(destination) = (unsafe { NEAR_DESTINATIONS.get(ip) }) else { return Near::No };
    // SAFETY: as above.
    let Some(source) = (unsafe { NEAR_SOURCES.get(cookie) }) else { return Near::No };
    let own = match (is_unspecified(&bound), as_v4(&ip)) {
        (false, _) => bound,
        (true, Some(_)) => source.v4,
        (true, None) => source.v6,
    };
    if destination.cookie == cookie || is_unspecified(&own) {
        return Near::No;
    }
    let verdict = VerdictKey::new((cookie, own), (destination.cookie, ip), port);
    if !is_permitted(&verdict) {
        return Near::Undecided(verdict);
    }
    Near::Admitted(Admission { verdict, source: source.wire, destination: destination.wire })
}

/// "Any" of either family.
#[inline(always)]
fn is_unspecified(ip: &[u8; 16]) -> bool {
    matches!(as_v4(ip), Some([0, 0, 0, 0])) || u128::from_ne_bytes(*ip) == 0
}

/// Remembers what `connect` found; an earlier finding goes. False if the kernel could not.
#[inline(always)]
pub(crate) fn remember(socket: *mut bpf_sock, admission: Admission) -> bool {
    ADMISSIONS.remove(socket);
    ADMISSIONS.insert(socket, admission)
}

/// Before the SYN is made: writes the ways of an admitted connection down, or leads it into the agent.
#[inline(always)]
pub(crate) fn dialling(context: &SockOpsContext, socket: *mut bpf_sock, key: &WayKey, owner: u64) {
    let Some(admission) = ADMISSIONS.get(socket) else { return };
    // SAFETY: the value belongs to the locked socket.
    let admission = unsafe { admission.as_ref() };
    if admit(context, admission, key, owner) {
        return count(stat::ADMITTED);
    }
    if divert(context, socket) {
        count(stat::DIVERTED);
        return ADMISSIONS.remove(socket);
    }
    // The application may not have its socket bound anew, so that the connection cannot reach the agent.
    count(stat::REFUSED_ERROR);
    lay(context, admission, key, owner, WayState::Refused);
}

#[inline(always)]
fn admit(context: &SockOpsContext, admission: &Admission, key: &WayKey, owner: u64) -> bool {
    let verdict = &admission.verdict;
    // The kernel may have chosen another address than was looked up, and time may have passed.
    if !key.is_of(verdict) || !is_permitted(verdict) {
        return false;
    }
    lay(context, admission, key, owner, WayState::Asked)
}

/// Writes the ways of a connection down. False if the kernel could not.
#[inline(always)]
fn lay(context: &SockOpsContext, admission: &Admission, key: &WayKey, owner: u64, state: WayState) -> bool {
    let way = Way {
        owner,
        from: admission.verdict.source(),
        to: admission.verdict.destination(),
        ended: 0,
        from_wire: admission.source,
        to_wire: admission.destination,
        state: state as u32,
        received: 0,
    };
    if WAYS.insert(key, way, ANY).is_err() {
        return false;
    }
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let back = key.back();
    if WAYS.insert(back, answer(&way, 0), ANY).is_err() || context.set_cb_flags(flags as i32).is_err() {
        let _ = WAYS.remove(key);
        let _ = WAYS.remove(back);
        return false;
    }
    true
}

/// The destination's way to the source's.
#[inline(always)]
fn answer(way: &Way, owner: u64) -> Way {
    Way {
        owner,
        from: way.to,
        to: way.from,
        ended: 0,
        from_wire: way.to_wire,
        to_wire: way.from_wire,
        state: WayState::Answer as u32,
        received: 0,
    }
}

/// Captures a socket whose SYN has not been made: `connect` bound it to the pod's interface, and remembers what was before.
#[inline(always)]
fn divert(context: &SockOpsContext, socket: *mut bpf_sock) -> bool {
    let Some(config) = config() else { return false };
    // SAFETY: the verifier knows `socket` as one.
    let mark = unsafe { (*socket).mark };
    let raw = context.ops.cast();
    set_option(raw, SO_BINDTOIFINDEX, LOOPBACK_IFINDEX) && set_option(raw, SO_MARK, config.marked(mark))
}

/// An application of the pod with this cookie has accepted a connection whose packets arrive by `key`. If it was
/// admitted, that is used up now; returned are the cookie of the source and the interface in this pod.
#[inline(always)]
pub(crate) fn accepted(key: &WayKey, cookie: u64, owner: u64) -> Option<(u64, u32)> {
    let way = match WAYS.get_ptr_mut(key) {
        // SAFETY: the state is one aligned integer; nothing else of the entry is written while it exists.
        Some(found) => unsafe {
            if (*found).to == cookie && (*found).state == WayState::Asked as u32 {
                (*found).state = WayState::Taken as u32;
            }
            &*found
        },
        // A client may be gone before its connection is accepted.
        None => past_way(key)?,
    };
    if way.to != cookie || way.state == WayState::Answer as u32 {
        return None;
    }
    let found = (way.from, way.to_wire.inner());
    // Without it the answers would go by the shared network; it replaces that of the dialling end, so there is room.
    let _ = WAYS.insert(key.back(), answer(way, owner), ANY);
    Some(found)
}

/// The only interface of a pod whose connections may take the kernel path.
#[inline(always)]
pub(crate) fn only_interface(cookie: u64) -> Option<u32> {
    // SAFETY: the value is replaced as a whole, and one aligned integer of it is read.
    unsafe { NEAR_SOURCES.get(cookie) }.map(|source| source.wire.inner())
}

/// The end of stream that a socket sent was acknowledged, when it had received so many bytes. What comes afterwards says
/// whether the other side's end of stream, which counts as a byte, was among it.
#[inline(always)]
pub(crate) fn finished(key: &WayKey, received: u64) {
    if let Some(way) = WAYS.get_ptr_mut(key) {
        // SAFETY: the owner's own number, written and read by its socket alone.
        unsafe { (*way).received = received as u32 };
    }
}

/// Whether nothing has come since, the end of the other side's stream included.
#[inline(always)]
pub(crate) fn is_silent(key: &WayKey, received: u64) -> bool {
    // SAFETY: as above.
    WAYS.get_ptr(key).is_some_and(|way| unsafe { (*way).received == received as u32 })
}

/// A socket whose packets leave by `key` has closed. Returns the cookie of the other end if it was admitted.
#[inline(always)]
pub(crate) fn closed(key: &WayKey, owner: u64) -> Option<u64> {
    let peer = retire(key, owner)?;
    // Nobody will end the other direction if nobody accepted the connection.
    retire(&key.back(), 0);
    Some(peer)
}

/// Moves a way among the past ones, unless it is another socket's by now.
#[inline(always)]
fn retire(key: &WayKey, owner: u64) -> Option<u64> {
    // SAFETY: what is read is not written while the entry exists, but for the state, of which any value will do.
    let way = unsafe { &*WAYS.get_ptr(key)? };
    if way.owner != owner {
        return None;
    }
    let peer = way.to;
    let past = Way {
        owner,
        from: way.from,
        to: way.to,
        // SAFETY: the helper reads a clock.
        ended: unsafe { bpf_ktime_get_ns() },
        from_wire: way.from_wire,
        to_wire: way.to_wire,
        state: way.state,
        received: 0,
    };
    let _ = PAST_WAYS.insert(key, past, ANY);
    let _ = WAYS.remove(key);
    Some(peer)
}
