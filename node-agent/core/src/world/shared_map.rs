//! A map whose versions share what they have in common.
//!
//! Two levels of 64 branches by hash, then a sorted list. A clone costs one reference count; a change of a map that
//! somebody else holds copies two small tables and one list of some `len / 4096` entries; two versions are compared by
//! looking only at what they do not share. Entries are kept without an allocation each, so that a hundred thousand
//! pods in four such maps cost little more than their keys.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

const FANOUT: usize = 64;

type Leaf<K, V> = Arc<Vec<(K, V)>>;
type Branch<K, V> = Arc<Vec<Option<Leaf<K, V>>>>;

/// A persistent map. Its order is that of hashes: the same for the same content, whatever was done to get there.
pub struct SharedMap<K, V> {
    root: Arc<Vec<Option<Branch<K, V>>>>,
    len: usize,
}

/// What became of a key from one version of a map to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// What the older version had.
    pub before: Option<&'a V>,
    /// What the newer version has.
    pub after: Option<&'a V>,
}

fn place<Q: Hash + ?Sized>(key: &Q) -> (usize, usize) {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let hash = hasher.finish() as usize;
    (hash % FANOUT, hash / FANOUT % FANOUT)
}

impl<K: Hash + Ord + Clone, V: Clone> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Ord + ?Sized,
    {
        let (outer, inner) = place(key);
        let leaf = self.root.get(outer)?.as_ref()?.get(inner)?.as_ref()?;
        let at = leaf.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        leaf.get(at).map(|(_, value)| value)
    }

    /// Whether there is such a key.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Ord + ?Sized,
    {
        self.get(key).is_some()
    }

    /// Sets a value; returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let leaf = self.leaf_mut(place(&key))?;
        let before = match leaf.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => leaf.get_mut(at).map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => {
                // Growing by doubling would waste half of what is kept.
                leaf.reserve_exact(1);
                leaf.insert(at, (key, value));
                None
            }
        };
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes a key out; returns what it had.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Ord + ?Sized,
    {
        // What is not there must not make anything be copied.
        self.get(key)?;
        let (outer, inner) = place(key);
        let root = Arc::make_mut(&mut self.root);
        let branch = Arc::make_mut(root.get_mut(outer)?.as_mut()?);
        let slot = branch.get_mut(inner)?;
        let leaf = Arc::make_mut(slot.as_mut()?);
        let at = leaf.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        let (_, value) = leaf.remove(at);
        if leaf.is_empty() {
            *slot = None;
        }
        self.len -= 1;
        Some(value)
    }

    /// All entries, in an order that depends on the content only.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let branches = self.root.iter().flatten();
        let leaves = branches.flat_map(|branch| branch.iter().flatten());
        leaves.flat_map(|leaf| leaf.iter()).map(|(key, value)| (key, value))
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Calls `tell` for each key that came, went or changed since `older`.
    pub fn since<'a>(&'a self, older: &'a Self, mut tell: impl FnMut(Difference<'a, K, V>))
    where
        V: PartialEq,
    {
        if Arc::ptr_eq(&self.root, &older.root) {
            return;
        }
        for (new, old) in self.root.iter().zip(older.root.iter()) {
            if same(new.as_ref(), old.as_ref()) {
                continue;
            }
            for at in 0..FANOUT {
                let leaf = |branch: &'a Option<Branch<K, V>>| branch.as_ref().and_then(|b| b.get(at)?.as_ref());
                let (new, old) = (leaf(new), leaf(old));
                if !same(new, old) {
                    compare(new.map_or(&[], |l| l.as_slice()), old.map_or(&[], |l| l.as_slice()), &mut tell);
                }
            }
        }
    }

    fn leaf_mut(&mut self, (outer, inner): (usize, usize)) -> Option<&mut Vec<(K, V)>> {
        let root = Arc::make_mut(&mut self.root);
        let branch = root.get_mut(outer)?.get_or_insert_with(|| Arc::new(vec![None; FANOUT]));
        let leaf = Arc::make_mut(branch).get_mut(inner)?.get_or_insert_with(Default::default);
        Some(Arc::make_mut(leaf))
    }
}

fn same<T: ?Sized>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Walks two sorted lists side by side.
fn compare<'a, K: Ord, V: PartialEq>(
    new: &'a [(K, V)],
    old: &'a [(K, V)],
    tell: &mut impl FnMut(Difference<'a, K, V>),
) {
    let (mut new, mut old) = (new.iter().peekable(), old.iter().peekable());
    loop {
        let order = match (new.peek(), old.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let after = if order.is_le() { new.next() } else { None };
        let before = if order.is_ge() { old.next() } else { None };
        let Some((key, _)) = after.or(before) else { return };
        let (before, after) = (before.map(|(_, v)| v), after.map(|(_, v)| v));
        if before != after {
            tell(Difference { key, before, after });
        }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { root: Arc::new((0..FANOUT).map(|_| None).collect()), len: 0 }
    }
}

impl<K: Hash + Ord + Clone, V: Clone + PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Hash + Ord + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map_and_knows_what_changed(
            steps in prop::collection::vec((0u16..500, prop::option::of(0u8..4)), 0..400),
            cut in 0usize..400,
        ) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let (mut old, mut old_model) = (map.clone(), model.clone());
            for (number, (key, value)) in steps.into_iter().enumerate() {
                if number == cut {
                    (old, old_model) = (map.clone(), model.clone());
                }
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.len(), model.len());
            }
            prop_assert_eq!(old.iter().collect::<BTreeMap<_, _>>(), old_model.iter().collect::<BTreeMap<_, _>>());
            let mut told = BTreeMap::new();
            map.since(&old, |d| { told.insert(*d.key, (d.before.copied(), d.after.copied())); });
            let keys = model.keys().chain(old_model.keys());
            let wanted: BTreeMap<_, _> = keys
                .map(|key| (*key, (old_model.get(key).copied(), model.get(key).copied())))
                .filter(|(_, (before, after))| before != after)
                .collect();
            prop_assert_eq!(told, wanted);
            let rebuilt = model.iter().rev().fold(SharedMap::default(), |mut map, (key, value)| {
                map.insert(*key, *value);
                map
            });
            prop_assert!(rebuilt == map && rebuilt.iter().eq(map.iter()), "the order is that of the content");
        }
    }

    #[test]
    fn a_change_shares_everything_but_its_own_leaf() {
        let mut map = SharedMap::default();
        for key in 0..10_000u32 {
            map.insert(key, key);
        }
        let before = map.clone();
        map.insert(7, 8);
        let shared = |a: &SharedMap<u32, u32>, b: &SharedMap<u32, u32>| {
            let leaves = a.root.iter().zip(b.root.iter()).flat_map(|(a, b)| a.iter().zip(b.iter()));
            leaves.flat_map(|(a, b)| a.iter().zip(b.iter())).filter(|(a, b)| !same(a.as_ref(), b.as_ref())).count()
        };
        assert_eq!(shared(&map, &before), 1);
        assert_eq!(before.get(&7), Some(&7));
    }
}
