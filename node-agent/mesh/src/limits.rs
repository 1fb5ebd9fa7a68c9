//! Budgets: every number that bounds time, memory or concurrency of the data path.
//!
//! The defaults are those of hbone.md §6, §14 and §20, or stricter where the
//! peer cannot tell the difference. One value of [`Limits`] is shared by all
//! workers, so that a budget has one definition.

use std::time::Duration;

use warren_core::http2::Config;

/// Budgets of one agent. Sizes are bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TLS handshake, both roles (hbone.md §20 names none; unbounded would let
    /// a silent peer hold a worker's slot for ever).
    pub handshake_timeout: Duration,
    /// From sending CONNECT to its response. Longer than the peer's own 10 s
    /// limit for reaching its application, so that its 503 arrives.
    pub connect_response_timeout: Duration,
    /// TCP connect to a peer or to the application.
    pub tcp_connect_timeout: Duration,
    /// How long a peer's tunnel port that refuses is tried again: its agent may
    /// be restarting. Shorter than `tcp_connect_timeout`, or the refusal would
    /// be told as silence.
    pub peer_retry: Duration,
    /// HTTP/2 PING: time between an answer and the next PING.
    pub ping_interval: Duration,
    /// HTTP/2 PING: an answer later than this means a dead peer.
    pub ping_timeout: Duration,
    /// A pooled connection without streams is closed after this long.
    pub pool_unused: Duration,
    /// Connections to one peer that are not full, per worker: beyond it even a heavy stream's connection is shared.
    pub pool_tunnels: usize,
    /// How long after its last connection a destination's next tunnel is still dialled ahead of need; zero: never.
    pub pool_warm: Duration,
    /// Streams this side opens on one connection at most (the peer's own
    /// MAX_CONCURRENT_STREAMS may lower it).
    pub pool_streams_per_connection: usize,
    /// MAX_CONCURRENT_STREAMS advertised by the server side.
    pub server_max_streams: u32,
    /// HTTP/2 stream receive window: what a slow reader may pile up in memory.
    pub stream_window: u32,
    /// HTTP/2 connection receive window: as much as all of a connection's
    /// streams together, or those that nobody reads starve the others.
    pub connection_window: u32,
    /// HTTP/2 MAX_FRAME_SIZE advertised.
    pub max_frame_size: u32,
    /// MAX_HEADER_LIST_SIZE advertised by the client side.
    pub client_header_list: u32,
    /// MAX_HEADER_LIST_SIZE advertised by the server side.
    pub server_header_list: u32,
    /// One read at most, where bytes are copied without a tunnel.
    pub read_size: usize,
    /// Whether client bytes follow CONNECT without waiting for the 200.
    pub early_data: bool,
    /// Early bytes per stream at most; they are kept for the one safe retry.
    pub early_data_limit: usize,
    /// After the peer reset a stream: how long bytes already received may still
    /// flow to an application that reads slowly, before it sees the reset.
    pub reset_flush: Duration,
    /// How long a stream whose application reset before the answer is kept for
    /// that answer, before it is reset in turn. A server that finds more than a
    /// few streams opened and reset before it has looked at them ends the whole
    /// connection, with everybody on it (Rapid Reset, CVE-2023-44487).
    pub reset_linger: Duration,
    /// Connections held while their pod has no SVID yet, per pod.
    pub held_for_svid: usize,
    /// How long a connection is held for an SVID.
    pub svid_wait: Duration,
    /// TLS handshakes under way at once, per pod, worker and direction; a small share of the outbound ones is for
    /// tunnels that are dialled ahead.
    pub inflight_handshakes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u32 = 1024 * 1024;
        Self {
            handshake_timeout: Duration::from_secs(10),
            connect_response_timeout: Duration::from_secs(15),
            tcp_connect_timeout: Duration::from_secs(10),
            peer_retry: Duration::from_secs(9),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            pool_unused: Duration::from_secs(300),
            pool_tunnels: 8,
            pool_warm: Duration::from_secs(60),
            pool_streams_per_connection: 100,
            server_max_streams: 100,
            stream_window: MIB,
            connection_window: 100 * MIB,
            max_frame_size: MIB,
            client_header_list: 16 * 1024,
            server_header_list: 64 * 1024,
            read_size: 256 * 1024,
            early_data: true,
            early_data_limit: 64 * 1024,
            reset_flush: Duration::from_secs(1),
            reset_linger: Duration::from_secs(1),
            held_for_svid: 1024,
            svid_wait: Duration::from_secs(5),
            inflight_handshakes: 256,
        }
    }
}

impl Limits {
    /// What HTTP/2 is told, but for the header list, which differs by role.
    pub(crate) fn http2(&self) -> Config {
        Config {
            stream_window: self.stream_window,
            connection_window: self.connection_window,
            max_frame_size: self.max_frame_size,
            max_header_list: self.server_header_list,
            max_streams: self.server_max_streams,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_streams_cannot_fill_the_connection() {
        let limits = Limits::default();
        let streams = limits.server_max_streams.max(limits.pool_streams_per_connection as u32);
        assert!(limits.connection_window >= streams * limits.stream_window);
        assert!(limits.early_data_limit <= 64 * 1024);
        assert!(limits.connect_response_timeout > limits.tcp_connect_timeout);
        assert!(limits.peer_retry < limits.tcp_connect_timeout);
    }
}
