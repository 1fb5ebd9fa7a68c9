//! Maps that the node's and every pod's programs share.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use warren_ebpf_abi::{Config, Event, OwnKey, stat};

#[btf_map]
pub(crate) static OWN: HashMap<OwnKey, u8, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub(crate) static HEARTBEAT: Array<u64, 1> = Array::new();

/// Room for the events of some ten thousand short connections, should the daemon be busy for a moment.
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, 4194304> = RingBuf::new();

#[btf_map]
pub(crate) static STATS: PerCpuArray<u64, { stat::COUNT as usize }> = PerCpuArray::new();

/// The configuration, if there is one of this contract.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.is_valid())
}

/// Whether `ip` is one of the own addresses of the pod with this cookie.
#[inline(always)]
pub(crate) fn is_own(cookie: u64, ip: [u8; 16]) -> bool {
    // SAFETY: only the presence of the entry is looked at.
    unsafe { OWN.get(OwnKey::new(cookie, ip)) }.is_some()
}

/// Whether the agent has been silent for longer than connections may wait for it.
#[inline(always)]
pub(crate) fn agent_is_away(config: &Config) -> bool {
    let last = HEARTBEAT.get(0).copied().unwrap_or(0);
    // SAFETY: the helper reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    now.saturating_sub(last) >= config.away_wait_ns()
}
