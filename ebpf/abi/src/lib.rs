//! The contract between the kernel programs and the daemon: map names, keys, values, constants.
//!
//! Every type here is `repr(C)`, holds only integers and byte arrays, and has no padding: the bytes that one side
//! writes are the bytes that the other side reads. A change of any of them is a change of [`ABI_VERSION`].
#![no_std]

mod event;
mod host;
mod listener;
mod node;
mod pod;
mod same_node;
mod splice;

pub use event::{Endpoint, Event, EventKind, RefusalReason};
pub use host::{
    HostConnection, HostOpener, HostState, MAX_CGROUP_DEPTH, MAX_HOST_CONNECTIONS, MAX_POD_CGROUPS, ProbeRefusal,
};
pub use listener::{Family, LISTENER_SLOTS, ListenerKind, MAX_WORKERS, listener_slot};
pub use node::{Captured, Config, ExactKey, OwnKey, PodEntry};
pub use pod::{PodConfig, PortVerdict, PortVerdicts};
pub use same_node::{
    Admission, MAX_VERDICTS, MAX_WAYS, NearDestination, NearSource, PAST_WAY_NS, Verdict, VerdictKey, Way, WayKey,
    WayState, Wire,
};
pub use splice::{
    MAX_SPLICED, SPLICE_BUFFER, SPLICE_MOST_SMALL, SPLICE_SHARE, SPLICE_SMALL, SpliceEnd, SpliceLayout, SplicePair,
    SplicePort, splice_stat,
};

/// Number of this contract. Pinned maps of another number are never opened.
pub const ABI_VERSION: u32 = 3;

/// Interface index of `lo`, the same in every network namespace.
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Port on which a pod's peers reach the agent (HBONE).
pub const HBONE_PORT: u16 = 15008;

/// IPv4 address that is captured for the self-test alone (the dummy address of RFC 7600).
pub const SELF_TEST_V4: [u8; 4] = [192, 0, 0, 8];

/// IPv6 address that is captured for the self-test alone (in the discard-only prefix of RFC 6666).
pub const SELF_TEST_V6: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x57];

/// Whether a canonical address is one of the self-test's.
#[must_use]
#[inline(always)]
pub const fn is_self_test(ip: [u8; 16]) -> bool {
    let words = u128::from_ne_bytes(ip);
    words == u128::from_ne_bytes(mapped(SELF_TEST_V4)) || words == u128::from_ne_bytes(SELF_TEST_V6)
}

/// Names of the maps, as they stand in the objects and under the pin directory.
pub mod map {
    /// Enrolled pods: netns cookie → [`PodEntry`](crate::PodEntry).
    pub const PODS: &str = "PODS";
    /// Addresses that are a pod's own: [`OwnKey`](crate::OwnKey) → 1.
    pub const OWN: &str = "OWN";
    /// IPv4 prefixes to be captured.
    pub const CAPTURE4: &str = "CAPTURE4";
    /// IPv6 prefixes to be captured.
    pub const CAPTURE6: &str = "CAPTURE6";
    /// Single (address, port) pairs to be captured: [`ExactKey`](crate::ExactKey) → 1.
    pub const CAPTURE_EXACT: &str = "CAPTURE_EXACT";
    /// The node's [`Config`](crate::Config), one entry.
    pub const CONFIG: &str = "CONFIG";
    /// CLOCK_MONOTONIC nanoseconds at which the agent was last alive, one entry.
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// Sockets of the agent itself: socket storage, 1.
    pub const EXEMPT: &str = "EXEMPT";
    /// What capture changed on a socket: socket storage, [`Captured`](crate::Captured).
    pub const CAPTURED: &str = "CAPTURED";
    /// Ring buffer of [`Event`](crate::Event).
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU counters, indexed by [`stat`](crate::stat).
    pub const STATS: &str = "STATS";
    /// A pod's listeners: sockmap, indexed by [`listener_slot`](crate::listener_slot).
    pub const LISTENERS: &str = "LISTENERS";
    /// Loopback ports of a pod's listeners: port → slot.
    pub const LISTENER_PORTS: &str = "LISTENER_PORTS";
    /// Verdicts on plaintext from outside: [`PortVerdicts`](crate::PortVerdicts), one entry.
    pub const VERDICTS: &str = "VERDICTS";
    /// A pod's [`PodConfig`](crate::PodConfig), one entry.
    pub const POD_CONFIG: &str = "POD_CONFIG";

    /// Sources of the kernel path: netns cookie → [`NearSource`](crate::NearSource).
    pub const NEAR_SOURCES: &str = "NEAR_SOURCES";
    /// Destinations of the kernel path: address → [`NearDestination`](crate::NearDestination).
    pub const NEAR_DESTINATIONS: &str = "NEAR_DESTINATIONS";
    /// Who may take the kernel path: [`VerdictKey`](crate::VerdictKey) → [`Verdict`](crate::Verdict).
    pub const NEAR_VERDICTS: &str = "NEAR_VERDICTS";
    /// Directions of admitted connections: [`WayKey`](crate::WayKey) → [`Way`](crate::Way).
    pub const WAYS: &str = "WAYS";
    /// Directions whose sender has closed, the latest of them.
    pub const PAST_WAYS: &str = "PAST_WAYS";
    /// What `connect` found out: socket storage, [`Admission`](crate::Admission).
    pub const ADMISSIONS: &str = "ADMISSIONS";

    /// Addresses of enrolled pods: address → cookie of the pod's network namespace.
    pub const POD_ADDRESSES: &str = "POD_ADDRESSES";
    /// Ids of the cgroups that pods' cgroups lie in → 1.
    pub const POD_CGROUPS: &str = "POD_CGROUPS";
    /// What `connect` found out about sockets of the host: socket storage, a [`HostOpener`](crate::HostOpener).
    pub const HOST_SOCKETS: &str = "HOST_SOCKETS";
    /// Connections that the host opens to enrolled pods: [`WayKey`](crate::WayKey) →
    /// [`HostConnection`](crate::HostConnection).
    pub const HOST_CONNECTIONS: &str = "HOST_CONNECTIONS";
    /// Those that will not be let in, until they arrive: [`WayKey`](crate::WayKey) →
    /// [`ProbeRefusal`](crate::ProbeRefusal).
    pub const HOST_REFUSALS: &str = "HOST_REFUSALS";

    /// Ends of spliced connections: socket cookie → [`SpliceEnd`](crate::SpliceEnd).
    pub const SPLICE_ENDS: &str = "SPLICE_ENDS";
    /// Sockets that spliced bytes go to: sockhash, by cookie.
    pub const SPLICE_SOCKETS: &str = "SPLICE_SOCKETS";
    /// Who listens: [`SplicePort`](crate::SplicePort) → address of the socket.
    pub const SPLICE_LISTENERS: &str = "SPLICE_LISTENERS";
    /// Per-CPU counters, indexed by [`splice_stat`](crate::splice_stat).
    pub const SPLICE_STATS: &str = "SPLICE_STATS";
    /// What a socket knows of the other end: socket storage, [`SplicePair`](crate::SplicePair).
    pub const SPLICE_PAIRS: &str = "SPLICE_PAIRS";

    /// The maps that pod objects share with the node object.
    pub const SHARED: [&str; 10] =
        [OWN, CONFIG, HEARTBEAT, EVENTS, STATS, NEAR_VERDICTS, WAYS, PAST_WAYS, HOST_CONNECTIONS, HOST_REFUSALS];
}

/// Names of the programs in the objects.
pub mod program {
    /// IPv4 `connect`.
    pub const CONNECT4: &str = "warren_connect4";
    /// IPv6 `connect`.
    pub const CONNECT6: &str = "warren_connect6";
    /// IPv4 `bind`.
    pub const BIND4: &str = "warren_bind4";
    /// IPv6 `bind`.
    pub const BIND6: &str = "warren_bind6";
    /// `setsockopt`.
    pub const SETSOCKOPT: &str = "warren_setsockopt";
    /// TCP state changes.
    pub const FLOWS: &str = "warren_flows";
    /// A pod's socket look-up.
    pub const LOOKUP: &str = "warren_lookup";
    /// The gate on a pod's `lo`.
    pub const GATE: &str = "warren_gate";
    /// What a pod sends, on its link's end in the agent's namespace.
    pub const WIRE_FROM: &str = "warren_wire_from";
    /// What a pod is sent, on its link's end in the agent's namespace.
    pub const WIRE_TO: &str = "warren_wire_to";
    /// The beginning of spliced connections.
    pub const SPLICE_TAKE: &str = "warren_splice_take";
    /// Messages of spliced connections.
    pub const SPLICE_SEND: &str = "warren_splice_send";
    /// What spliced connections receive by TCP.
    pub const SPLICE_KEEP: &str = "warren_splice_keep";
    /// Options of spliced sockets.
    pub const SPLICE_OPTION: &str = "warren_splice_option";
}

/// Indexes of the counters in [`map::STATS`].
pub mod stat {
    /// Connections captured.
    pub const CAPTURED: u32 = 0;
    /// Connections of enrolled pods left alone.
    pub const PASSED: u32 = 1;
    /// Captures undone because the socket went to an uncaptured destination.
    pub const UNDONE: u32 = 2;
    /// Connections refused because the agent was away for too long.
    pub const REFUSED_AWAY: u32 = 3;
    /// Connections refused because they could not be captured.
    pub const REFUSED_ERROR: u32 = 4;
    /// Attempts to change mark or device of a captured socket.
    pub const OPTION_REFUSED: u32 = 5;
    /// SYNs dropped while waiting for the agent.
    pub const SYN_HELD: u32 = 6;
    /// Plaintext SYNs refused by verdict.
    pub const PLAINTEXT_REFUSED: u32 = 7;
    /// Look-ups refused because no listener was there.
    pub const NO_LISTENER: u32 = 8;
    /// Events lost because the ring buffer was full.
    pub const EVENTS_LOST: u32 = 9;
    /// Connections that took the kernel path.
    pub const ADMITTED: u32 = 10;
    /// Connections that were to take it, but were led into the agent after all.
    pub const DIVERTED: u32 = 11;
    /// Packets dropped because they claimed to be of an admitted connection, or would have left for a neighbour in
    /// clear.
    pub const WIRE_DROPPED: u32 = 12;
    /// Packets dropped because they bore the addresses and ports of a connection from the host, and were not its
    /// socket's.
    pub const HOST_FORGED: u32 = 13;
    /// Number of counters.
    pub const COUNT: u32 = 14;
}

/// A type whose every bit pattern is valid and which has no padding.
///
/// # Safety
///
/// Implement it only for `repr(C)` types made of integers and arrays of them, without padding: values are copied to
/// and from the kernel as bytes.
pub unsafe trait Plain: Copy + 'static {}

/// An IPv4 address in the one form that keys and events use: mapped into IPv6.
#[must_use]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}
