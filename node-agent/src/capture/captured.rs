//! What is captured: the tries and the exact entries, changed by difference.

use std::collections::BTreeSet;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use ipnet::IpNet;
use warren_core::world::CaptureSet;
use warren_ebpf_abi::{ExactKey, map};

use super::address::key;
use super::bpf::{BpfError, Raw};
use super::object::Object;

/// How much a change of what is captured changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CaptureDiff {
    /// Entries added.
    pub(crate) added: usize,
    /// Entries removed.
    pub(crate) removed: usize,
}

/// The maps that say what is captured.
pub(super) struct CapturedMaps {
    trie4: LpmTrie<MapData, [u8; 4], u8>,
    trie6: LpmTrie<MapData, [u8; 16], u8>,
    exact: HashMap<MapData, Raw<ExactKey>, u8>,
    wanted: Option<CaptureSet>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entries {
    v4: BTreeSet<(u32, [u8; 4])>,
    v6: BTreeSet<(u32, [u8; 16])>,
    exact: BTreeSet<ExactKey>,
}

impl CapturedMaps {
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        Ok(Self {
            trie4: object.map(map::CAPTURE4)?,
            trie6: object.map(map::CAPTURE6)?,
            exact: object.map(map::CAPTURE_EXACT)?,
            wanted: None,
        })
    }

    /// Makes the maps hold this set. Entries are added before others are removed: nothing that is in both sets is ever
    /// missing. If only addresses changed, only what changed is looked at.
    pub(super) fn set(&mut self, set: &CaptureSet) -> Result<CaptureDiff, BpfError> {
        let diff = match self.wanted.take() {
            Some(before) if before.ranges == set.ranges => self.follow(&before, set)?,
            Some(before) => self.change(&Entries::of(&before), &Entries::of(set))?,
            // The first time, an earlier agent's entries may stand there.
            None => self.change(&self.read()?, &Entries::of(set))?,
        };
        self.wanted = Some(set.clone());
        Ok(diff)
    }

    /// Makes the maps hold again what was set last.
    pub(super) fn repair(&mut self) -> Result<CaptureDiff, BpfError> {
        let Some(wanted) = self.wanted.as_ref().map(Entries::of) else { return Ok(CaptureDiff::default()) };
        let standing = self.read()?;
        self.change(&standing, &wanted)
    }

    fn follow(&mut self, before: &CaptureSet, after: &CaptureSet) -> Result<CaptureDiff, BpfError> {
        let (mut came, mut went) = (Entries::default(), Entries::default());
        after.addresses.since(&before.addresses, |difference| {
            let ip = *difference.key;
            match (difference.before, difference.after) {
                _ if after.is_covered(ip) => {}
                (None, Some(_)) => came.add(IpNet::from(ip)),
                (Some(_), None) => went.add(IpNet::from(ip)),
                // Another pod or Service has it too, or no longer.
                _ => {}
            }
        });
        if before.exact != after.exact {
            came.exact = exact_keys(after);
            went.exact = exact_keys(before);
        }
        self.change(&went, &came)
    }

    fn change(&mut self, standing: &Entries, wanted: &Entries) -> Result<CaptureDiff, BpfError> {
        for (length, ip) in wanted.v4.difference(&standing.v4) {
            self.trie4.insert(&Key::new(*length, *ip), 1, 0).map_err(BpfError::map(map::CAPTURE4))?;
        }
        for (length, ip) in wanted.v6.difference(&standing.v6) {
            self.trie6.insert(&Key::new(*length, *ip), 1, 0).map_err(BpfError::map(map::CAPTURE6))?;
        }
        for entry in wanted.exact.difference(&standing.exact) {
            self.exact.insert(Raw(*entry), 1, 0).map_err(BpfError::map(map::CAPTURE_EXACT))?;
        }
        for (length, ip) in standing.v4.difference(&wanted.v4) {
            self.trie4.remove(&Key::new(*length, *ip)).map_err(BpfError::map(map::CAPTURE4))?;
        }
        for (length, ip) in standing.v6.difference(&wanted.v6) {
            self.trie6.remove(&Key::new(*length, *ip)).map_err(BpfError::map(map::CAPTURE6))?;
        }
        for entry in standing.exact.difference(&wanted.exact) {
            self.exact.remove(&Raw(*entry)).map_err(BpfError::map(map::CAPTURE_EXACT))?;
        }
        Ok(CaptureDiff { added: wanted.beyond(standing), removed: standing.beyond(wanted) })
    }

    fn read(&self) -> Result<Entries, BpfError> {
        let mut entries = Entries::default();
        for key in self.trie4.keys() {
            let key = key.map_err(BpfError::map(map::CAPTURE4))?;
            entries.v4.insert((key.prefix_len(), key.data()));
        }
        for key in self.trie6.keys() {
            let key = key.map_err(BpfError::map(map::CAPTURE6))?;
            entries.v6.insert((key.prefix_len(), key.data()));
        }
        for entry in self.exact.keys() {
            let Raw(entry) = entry.map_err(BpfError::map(map::CAPTURE_EXACT))?;
            entries.exact.insert(entry);
        }
        Ok(entries)
    }
}

impl Entries {
    fn of(set: &CaptureSet) -> Self {
        let mut entries = Self::default();
        for prefix in set.prefixes() {
            entries.add(prefix);
        }
        entries.exact = exact_keys(set);
        entries
    }

    fn add(&mut self, prefix: IpNet) {
        match prefix.trunc() {
            IpNet::V4(net) => self.v4.insert((u32::from(net.prefix_len()), net.network().octets())),
            IpNet::V6(net) => self.v6.insert((u32::from(net.prefix_len()), net.network().octets())),
        };
    }

    fn beyond(&self, other: &Self) -> usize {
        self.v4.difference(&other.v4).count()
            + self.v6.difference(&other.v6).count()
            + self.exact.difference(&other.exact).count()
    }
}

fn exact_keys(set: &CaptureSet) -> BTreeSet<ExactKey> {
    set.exact.iter().map(|(ip, port)| ExactKey::new(key(*ip), *port)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn entries_are_the_networks_of_the_prefixes() {
        let ranges = Arc::new(["10.1.2.3/16".parse().unwrap()].into());
        let exact = Arc::new([("192.0.2.1".parse().unwrap(), 80)].into());
        let mut set = CaptureSet { ranges, exact, ..CaptureSet::default() };
        set.addresses.insert("fd00::1".parse().unwrap(), 1);
        set.addresses.insert("10.1.9.9".parse().unwrap(), 1);
        let entries = Entries::of(&set);
        assert!(entries.v4.contains(&(16, [10, 1, 0, 0])));
        assert_eq!((entries.v4.len(), entries.v6.len()), (1, 1), "one address is covered by the range");
        assert_eq!(entries.beyond(&Entries::default()), 3);
        assert_eq!(Entries::default().beyond(&entries), 0);
    }
}
