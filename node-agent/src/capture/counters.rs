//! What the kernel side counts.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aya::maps::{MapData, PerCpuArray};
use warren_ebpf_abi::{map, splice_stat, stat};

use super::bpf::BpfError;
use super::error::CaptureError;

/// What the kernel side has counted since its maps were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Connections captured.
    pub(crate) captured: u64,
    /// Connections of enrolled pods left alone.
    pub(crate) passed: u64,
    /// Connections left alone after an earlier capture of the same socket was undone.
    pub(crate) undone: u64,
    /// Connections refused because the agent was away for too long.
    pub(crate) refused_away: u64,
    /// Connections refused because they could not be captured.
    pub(crate) refused_error: u64,
    /// Attempts to move a captured socket to another mark or device.
    pub(crate) option_refused: u64,
    /// SYNs that were made to wait for the agent.
    pub(crate) syn_held: u64,
    /// Plaintext SYNs refused by verdict.
    pub(crate) plaintext_refused: u64,
    /// SYNs refused because the agent had no listener.
    pub(crate) no_listener: u64,
    /// Events lost because nobody read them.
    pub(crate) events_lost: u64,
    /// Connections that took the kernel path.
    pub(crate) admitted: u64,
    /// Connections that were to take it, but were led into the agent after all.
    pub(crate) diverted: u64,
    /// Packets dropped on pods' links.
    pub(crate) wire_dropped: u64,
    /// Packets dropped because they claimed to be the host's.
    pub(crate) host_forged: u64,
    /// Whether bytes are spliced.
    pub(crate) splicing: u64,
    /// Bytes that went from socket to socket.
    pub(crate) spliced_bytes: u64,
    /// Messages of spliced connections that were given to TCP.
    pub(crate) spliced_to_tcp: u64,
}

/// Reads the counters; may be kept beside the capture that it is of.
#[derive(Clone)]
pub(crate) struct CounterReader {
    node: Arc<PerCpuArray<MapData, u64>>,
    /// As long as bytes are spliced.
    splice: Arc<ArcSwapOption<PerCpuArray<MapData, u64>>>,
}

impl CounterReader {
    pub(super) fn new(node: PerCpuArray<MapData, u64>) -> Self {
        Self { node: Arc::new(node), splice: Arc::default() }
    }

    /// Bytes are spliced from now on, or are not.
    pub(super) fn splices(&self, counted: Option<Arc<PerCpuArray<MapData, u64>>>) {
        self.splice.store(counted);
    }

    /// What has been counted so far.
    pub(crate) fn read(&self) -> Result<Counters, CaptureError> {
        let sum = |index| sum(&self.node, index, map::STATS);
        let splice = self.splice.load();
        let spliced = |index| splice.as_ref().map_or(Ok(0), |counted| self::sum(counted, index, map::SPLICE_STATS));
        Ok(Counters {
            splicing: u64::from(splice.is_some()),
            spliced_bytes: spliced(splice_stat::BYTES)?,
            spliced_to_tcp: spliced(splice_stat::TO_TCP)?,
            captured: sum(stat::CAPTURED)?,
            passed: sum(stat::PASSED)?,
            undone: sum(stat::UNDONE)?,
            refused_away: sum(stat::REFUSED_AWAY)?,
            refused_error: sum(stat::REFUSED_ERROR)?,
            option_refused: sum(stat::OPTION_REFUSED)?,
            syn_held: sum(stat::SYN_HELD)?,
            plaintext_refused: sum(stat::PLAINTEXT_REFUSED)?,
            no_listener: sum(stat::NO_LISTENER)?,
            events_lost: sum(stat::EVENTS_LOST)?,
            admitted: sum(stat::ADMITTED)?,
            diverted: sum(stat::DIVERTED)?,
            wire_dropped: sum(stat::WIRE_DROPPED)?,
            host_forged: sum(stat::HOST_FORGED)?,
        })
    }
}

fn sum(counted: &PerCpuArray<MapData, u64>, index: u32, name: &'static str) -> Result<u64, BpfError> {
    Ok(counted.get(&index, 0).map_err(BpfError::map(name))?.iter().sum())
}
