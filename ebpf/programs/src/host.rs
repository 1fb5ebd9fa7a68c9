//! Connections that sockets of the host open to enrolled pods. `connect` finds out who opens them, `sock_ops` knows the
//! source port and writes them down, and the pod's link says whether packets are really their socket's.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_socket_cookie};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockOpsContext;
use warren_ebpf_abi::{
    Config, HostConnection, HostOpener, HostState, MAX_CGROUP_DEPTH, MAX_POD_CGROUPS, ProbeRefusal, WayKey, stat,
};

use crate::host_maps::{HOST_CONNECTIONS, HOST_REFUSALS};
use crate::stats::count;
use crate::storage::{PRIVATE, SocketStorage};

#[btf_map]
pub(crate) static POD_ADDRESSES: HashMap<[u8; 16], u64, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub(crate) static POD_CGROUPS: HashMap<u64, u8, MAX_POD_CGROUPS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub(crate) static HOST_SOCKETS: SocketStorage<u32, PRIVATE> = SocketStorage::new();

/// `BPF_ANY`
const ANY: u64 = 0;

/// A socket of the host connects. Who does it is noted; what an earlier `connect` of the socket found goes.
#[inline(always)]
pub(crate) fn connecting(socket: *mut bpf_sock, config: &Config, ip: [u8; 16]) {
    HOST_SOCKETS.remove(socket);
    // SAFETY: only the presence of the entry is looked at.
    if unsafe { POD_ADDRESSES.get(ip) }.is_some() {
        HOST_SOCKETS.insert(socket, opener(config) as u32);
    }
}

/// Whose process this is. A thread of the kernel is no pod's, but all it does for one is to add subflows to the pod's
/// Multipath TCP connection, which no listener accepts that has not accepted the first.
#[inline(always)]
fn opener(config: &Config) -> HostOpener {
    if !config.knows_pod_cgroups() {
        return HostOpener::Unknown;
    }
    for level in 0..MAX_CGROUP_DEPTH {
        // SAFETY: the helper takes a number.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return if level == 0 { HostOpener::Unknown } else { HostOpener::Host };
        }
        // SAFETY: only the presence of the entry is looked at.
        if unsafe { POD_CGROUPS.get(id) }.is_some() {
            return HostOpener::Pod;
        }
    }
    HostOpener::Pod
}

/// Before the SYN of a noted socket is made: writes the connection down, or why it will not be let in.
#[inline(always)]
pub(crate) fn dialling(context: &SockOpsContext, opener: u32, key: &WayKey, owner: u64) {
    const HOST: u32 = HostOpener::Host as u32;
    const POD: u32 = HostOpener::Pod as u32;
    // SAFETY: the value is one integer, read once.
    let Some(pod) = (unsafe { POD_ADDRESSES.get(key.to()) }).copied() else { return };
    let refusal = match opener {
        HOST if remember(context, key, owner, pod) => {
            let _ = HOST_REFUSALS.remove(key);
            return;
        }
        HOST => ProbeRefusal::NotRemembered,
        POD => ProbeRefusal::PodProcess,
        _ => ProbeRefusal::PodCgroupsUnknown,
    };
    let _ = HOST_REFUSALS.insert(key, refusal as u32, ANY);
}

/// False if the kernel could not, or would not tell of the socket's end.
#[inline(always)]
fn remember(context: &SockOpsContext, key: &WayKey, owner: u64, pod: u64) -> bool {
    let connection = HostConnection { owner, pod, state: HostState::Opened as u32, reserved: 0 };
    if HOST_CONNECTIONS.insert(key, connection, ANY).is_err() {
        return false;
    }
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if context.set_cb_flags(flags as i32).is_err() {
        let _ = HOST_CONNECTIONS.remove(key);
        return false;
    }
    true
}

/// Whether a packet that is about to enter a pod may: if it claims to be of a connection that the host opens, it must
/// be made by the socket that opens it, in whose name others could send.
#[inline(always)]
pub(crate) fn may_enter(skb: *mut c_void, key: &WayKey) -> bool {
    let Some(connection) = HOST_CONNECTIONS.get_ptr_mut(key) else { return true };
    // SAFETY: the owner is written before the entry is there and never again.
    let owner = unsafe { (*connection).owner };
    // SAFETY: the helper reads the context's socket; 0 if there is none.
    if unsafe { bpf_get_socket_cookie(skb) } != owner {
        count(stat::HOST_FORGED);
        return false;
    }
    // SAFETY: the state is one aligned integer, and nobody else writes while it has this value.
    unsafe {
        if (*connection).state == HostState::Opened as u32 {
            (*connection).state = HostState::Sent as u32;
        }
    }
    true
}

/// Whether the connection that an application of the pod with this cookie has accepted, whose packets arrive by `key`,
/// was let in as a probe. That is used up now.
#[inline(always)]
pub(crate) fn accepted(key: &WayKey, cookie: u64) -> bool {
    let Some(connection) = HOST_CONNECTIONS.get_ptr_mut(key) else { return false };
    // SAFETY: as above; the pod is never written again either.
    unsafe {
        if (*connection).pod != cookie || (*connection).state != HostState::Admitted as u32 {
            return false;
        }
        (*connection).state = HostState::Taken as u32;
    }
    true
}

/// A socket whose packets leave by `key` has closed.
#[inline(always)]
pub(crate) fn closed(key: &WayKey, owner: u64) {
    // SAFETY: the owner is written before the entry is there and never again.
    if unsafe { HOST_CONNECTIONS.get(key) }.is_some_and(|connection| connection.owner == owner) {
        let _ = HOST_CONNECTIONS.remove(key);
    }
}
