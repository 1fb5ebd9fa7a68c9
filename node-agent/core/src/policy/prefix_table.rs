//! Values by network. Looking an address up costs one look-up for each prefix
//! length that occurs, however many networks there are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// Values by network of either family.
#[derive(Debug)]
pub(super) struct PrefixTable<T> {
    v4: ByLength<u32, T>,
    v6: ByLength<u128, T>,
}

/// Prefix length → network address → value.
type ByLength<A, T> = BTreeMap<u8, HashMap<A, T>>;

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

impl<T: Default> PrefixTable<T> {
    /// The value of a network, made if there is none.
    pub(super) fn entry(&mut self, network: IpNet) -> &mut T {
        let length = network.prefix_len();
        match network.network() {
            IpAddr::V4(ip) => self.v4.entry(length).or_default().entry(ip.to_bits()).or_default(),
            IpAddr::V6(ip) => self.v6.entry(length).or_default().entry(ip.to_bits()).or_default(),
        }
    }
}

impl<T> PrefixTable<T> {
    /// The values of every network that has this address. Allocates nothing.
    pub(super) fn containing(&self, ip: IpAddr) -> impl Iterator<Item = &T> {
        let (v4, v6) = match ip {
            IpAddr::V4(ip) => (Some(ip.to_bits()), None),
            IpAddr::V6(ip) => (None, Some(ip.to_bits())),
        };
        let v4 = v4.into_iter().flat_map(|bits| {
            self.v4.iter().filter_map(move |(length, networks)| {
                networks.get(&(bits & u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0)))
            })
        });
        let v6 = v6.into_iter().flat_map(|bits| {
            self.v6.iter().filter_map(move |(length, networks)| {
                networks.get(&(bits & u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0)))
            })
        });
        v4.chain(v6)
    }
}

#[cfg(test)]
mod tests {
    use super::PrefixTable;

    #[test]
    fn an_address_finds_every_network_that_has_it() {
        let mut table = PrefixTable::<Vec<&str>>::default();
        for network in
            ["0.0.0.0/0", "10.1.2.3/8", "10.1.2.0/24", "10.1.2.3/32", "10.2.0.0/16", "::/0", "fd00::/8", "fd00::7/128"]
        {
            table.entry(network.parse().unwrap()).push(network);
        }
        let found = |ip: &str| table.containing(ip.parse().unwrap()).flatten().copied().collect::<Vec<_>>();
        assert_eq!(found("10.1.2.3"), ["0.0.0.0/0", "10.1.2.3/8", "10.1.2.0/24", "10.1.2.3/32"]);
        assert_eq!(found("10.2.2.3"), ["0.0.0.0/0", "10.1.2.3/8", "10.2.0.0/16"]);
        assert_eq!(found("fd00::7"), ["::/0", "fd00::/8", "fd00::7/128"]);
        assert_eq!(found("::ffff:10.1.2.3"), ["::/0"]);
    }
}
