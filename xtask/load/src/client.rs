//! The clients, one module for each kind of load.

mod connect;
mod exchange;
mod idle;
mod meter;
mod rr;
mod stream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub use self::connect::{Connects, connect};
pub use self::idle::{Held, Idle, idle};
pub use self::meter::Window;
pub use self::rr::{RoundTrips, round_trips};
pub use self::stream::{Direction, Streams, stream};

/// Between looks at the clock while nothing happens.
const TICK: Duration = Duration::from_millis(50);
const EVENTS: usize = 1024;
const BUFFER: usize = 256 * 1024;

/// The address `offset` behind another one.
fn shifted(address: SocketAddr, offset: u32) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).wrapping_add(offset)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).wrapping_add(u128::from(offset))).into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_on() {
        let at = |text: &str, offset| shifted(text.parse().unwrap(), offset).to_string();
        assert_eq!(at("10.0.0.255:80", 2), "10.0.1.1:80");
        assert_eq!(at("[fd00::ffff]:80", 1), "[fd00::1:0]:80");
    }
}
