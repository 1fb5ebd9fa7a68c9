//! When a tunnel is dialled before a connection wants it.

use std::time::Duration;

use super::TunnelState;

/// The pause after the first try that served nobody.
pub const PAUSE_SHORTEST: Duration = Duration::from_millis(500);
/// No pause is longer.
pub const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// Connections served before a destination counts as one that is used again and again.
const RECURRENT: u32 = 2;
/// A successor is wanted this long before its predecessor's SVID expires, at most.
const LEAD: Duration = Duration::from_secs(30);

/// What is known of a pool key when one asks whether its next tunnel should be dialled now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Connections it served so far.
    pub served: u32,
    /// Since the last of them was opened.
    pub since: Duration,
    /// How long after its last connection a key is still kept warm; zero switches dialling ahead off.
    pub warm: Duration,
    /// Tunnels in the pool.
    pub tunnels: usize,
    /// Tunnels there may be.
    pub most: usize,
    /// One of them is ready for the next connection ([`is_ready`]).
    pub ready: bool,
}

/// Whether to dial ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// The next connection would have to dial: do it now.
    Dial,
    /// The next connection finds a tunnel, or there are as many as may be.
    Enough,
    /// Nobody is expected.
    Unwanted,
}

/// Decides whether a key's next tunnel is dialled ahead. Only keys whose connections recur are worth a handshake that
/// nobody asked for, and only for a while: a peer that is gone is not dialled for ever.
pub fn ahead(demand: &Demand) -> Ahead {
    if demand.served < RECURRENT || demand.since >= demand.warm {
        Ahead::Unwanted
    } else if demand.ready || demand.tunnels >= demand.most {
        Ahead::Enough
    } else {
        Ahead::Dial
    }
}

/// Whether the next connection can use this tunnel without a loss, and another one after it. An empty tunnel always is
/// ready, or a peer that takes one stream on each would have them dialled without end.
pub fn is_ready(tunnel: &TunnelState) -> bool {
    let limit = tunnel.own_limit.min(tunnel.peer_limit);
    let room = match tunnel.streams {
        0 => limit > 0,
        streams => streams.saturating_add(1) < limit && !tunnel.heavy,
    };
    room && !tunnel.closing && tunnel.svid_remaining > tunnel.svid_lead
}

/// How long before its SVID expires a tunnel's successor is wanted, from what is left when the tunnel is dialled.
pub fn expiry_lead(remaining: Duration) -> Duration {
    (remaining / 10).min(LEAD)
}

/// The pause after `tries` tries in a row that served nobody: none after none, then doubled from 0.5 s to 30 s.
/// `random` spreads it over the upper half of that, so that the workers of many nodes do not come back in step.
pub fn pause(tries: u32, random: u32) -> Duration {
    let Some(doublings) = tries.checked_sub(1) else { return Duration::ZERO };
    let longest = PAUSE_SHORTEST.saturating_mul(2_u32.saturating_pow(doublings.min(16))).min(PAUSE_LONGEST);
    let half = longest / 2;
    let part = half.mul_f64(f64::from(random) / f64::from(u32::MAX));
    (half + part).max(PAUSE_SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const WANTED: Demand =
        Demand { served: 2, since: SECOND, warm: Duration::from_secs(60), tunnels: 0, most: 8, ready: false };

    const FRESH: TunnelState = TunnelState { streams: 1, ..crate::pool::tests::FRESH };

    #[test]
    fn only_what_recurs_and_was_used_lately_is_dialled_ahead() {
        let table = [
            (WANTED, Ahead::Dial),
            (Demand { served: 1, ..WANTED }, Ahead::Unwanted),
            (Demand { served: 0, ..WANTED }, Ahead::Unwanted),
            (Demand { since: SECOND * 59, ..WANTED }, Ahead::Dial),
            (Demand { since: SECOND * 60, ..WANTED }, Ahead::Unwanted),
            (Demand { warm: Duration::ZERO, since: Duration::ZERO, ..WANTED }, Ahead::Unwanted),
            (Demand { ready: true, tunnels: 1, ..WANTED }, Ahead::Enough),
            (Demand { tunnels: 7, ..WANTED }, Ahead::Dial),
            (Demand { tunnels: 8, ..WANTED }, Ahead::Enough),
        ];
        for (demand, expected) in table {
            assert_eq!(ahead(&demand), expected, "{demand:?}");
        }
    }

    #[test]
    fn a_tunnel_is_ready_if_the_next_connection_loses_nothing_by_it() {
        let lead = FRESH.svid_lead;
        let table = [
            (FRESH, true),
            (TunnelState { closing: true, ..FRESH }, false),
            (TunnelState { heavy: true, ..FRESH }, false),
            (TunnelState { heavy: true, streams: 0, ..FRESH }, true),
            (TunnelState { streams: 98, ..FRESH }, true),
            (TunnelState { streams: 99, ..FRESH }, false),
            (TunnelState { streams: 100, ..FRESH }, false),
            (TunnelState { streams: 1, peer_limit: 2, ..FRESH }, false),
            (TunnelState { streams: 0, peer_limit: 1, ..FRESH }, true),
            (TunnelState { streams: 0, peer_limit: 0, ..FRESH }, false),
            (TunnelState { svid_remaining: lead, ..FRESH }, false),
            (TunnelState { svid_remaining: lead + SECOND, ..FRESH }, true),
        ];
        for (tunnel, expected) in table {
            assert_eq!(is_ready(&tunnel), expected, "{tunnel:?}");
        }
    }

    #[test]
    fn a_successor_is_wanted_a_tenth_of_the_life_ahead_but_not_long_before() {
        assert_eq!(expiry_lead(SECOND * 20), SECOND * 2);
        assert_eq!(expiry_lead(SECOND * 86_400), SECOND * 30);
    }

    #[test]
    fn pauses_double_within_bounds_and_are_spread() {
        assert_eq!(pause(0, u32::MAX), Duration::ZERO);
        for tries in 1..=40 {
            let (low, high) = (pause(tries, 0), pause(tries, u32::MAX));
            assert!(low >= PAUSE_SHORTEST && high <= PAUSE_LONGEST, "{tries}: {low:?} to {high:?}");
            assert!(high <= low * 2, "{tries}");
        }
        assert_eq!(pause(1, u32::MAX), PAUSE_SHORTEST);
        assert_eq!(pause(3, u32::MAX), SECOND * 2);
        assert_eq!(pause(40, u32::MAX), PAUSE_LONGEST);
    }
}
