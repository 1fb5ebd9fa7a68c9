//! Who has what only one can have. The first by rank counts, in whatever order the claims came.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hash;

use crate::world::shared_map::SharedMap;

/// Things and their claimants. `V` is ordered by rank.
pub(super) struct Claims<K, V> {
    owners: SharedMap<K, V>,
    /// Everything that several claim, with all claimants.
    contested: BTreeMap<K, BTreeSet<V>>,
}

impl<K: Hash + Ord + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for Claims<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("owners", &self.owners).field("contested", &self.contested).finish()
    }
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self { owners: SharedMap::default(), contested: BTreeMap::new() }
    }
}

impl<K: Hash + Ord + Clone, V: Ord + Clone> Claims<K, V> {
    pub(super) fn owners(&self) -> &SharedMap<K, V> {
        &self.owners
    }

    pub(super) fn contested(&self) -> &BTreeMap<K, BTreeSet<V>> {
        &self.contested
    }

    pub(super) fn claim(&mut self, key: K, claimant: V) {
        let Some(owner) = self.owners.get(&key) else {
            self.owners.insert(key, claimant);
            return;
        };
        if *owner == claimant {
            return;
        }
        let all = self.contested.entry(key.clone()).or_insert_with(|| BTreeSet::from([owner.clone()]));
        all.insert(claimant);
        if let Some(first) = all.first() {
            self.owners.insert(key, first.clone());
        }
    }

    pub(super) fn release(&mut self, key: &K, claimant: &V) {
        if let Some(all) = self.contested.get_mut(key) {
            all.remove(claimant);
            if let Some(first) = all.first() {
                self.owners.insert(key.clone(), first.clone());
            }
            if all.len() < 2 {
                self.contested.remove(key);
            }
        } else if self.owners.get(key) == Some(claimant) {
            self.owners.remove(key);
        }
    }
}

/// Counts one more holder; says whether it is the first.
pub(in crate::world) fn count_up<K: Hash + Ord + Clone>(counts: &mut SharedMap<K, u32>, key: &K) -> bool {
    let before = counts.get(key).copied().unwrap_or(0);
    counts.insert(key.clone(), before + 1);
    before == 0
}

/// Counts one holder less; says whether it was the last.
pub(in crate::world) fn count_down<K: Hash + Ord + Clone>(counts: &mut SharedMap<K, u32>, key: &K) -> bool {
    match counts.get(key).copied() {
        None => false,
        Some(0 | 1) => counts.remove(key).is_some(),
        Some(more) => {
            counts.insert(key.clone(), more - 1);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_by_rank_has_it_whoever_came_first() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let mut claims = Claims::default();
            for rank in order {
                claims.claim("address", rank);
            }
            assert_eq!(claims.owners().get(&"address"), Some(&1));
            claims.release(&"address", &1);
            assert_eq!(claims.owners().get(&"address"), Some(&2));
            claims.release(&"address", &3);
            assert!(claims.contested().is_empty());
            claims.release(&"address", &2);
            assert!(claims.owners().is_empty());
        }
    }
}
