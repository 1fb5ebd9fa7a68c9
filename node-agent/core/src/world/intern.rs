//! Keeps one copy of what many pods say: names, label sets, declared ports.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::ContainerPort;
use super::text::{Labels, Text};
use crate::identity::SpiffeId;

/// The values in use. What nobody holds any more is dropped from time to time.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: HashSet<Text>,
    labels: HashSet<Labels>,
    ports: HashSet<Arc<[ContainerPort]>>,
    addresses: HashSet<Arc<[IpAddr]>>,
    probed: HashSet<Arc<[u16]>>,
    identities: HashSet<SpiffeId>,
    /// Values when they were last looked through.
    swept: usize,
}

/// Fewer values are not worth looking through.
const FEW: usize = 1024;

impl Interner {
    pub(super) fn text(&mut self, text: &str) -> Text {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let new = Text::from(text);
        self.texts.insert(new.clone());
        new
    }

    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) -> Labels {
        let read: Labels = labels.iter().map(|(key, value)| (self.text(key), self.text(value))).collect();
        keep(&mut self.labels, read)
    }

    pub(super) fn ports(&mut self, ports: &[ContainerPort]) -> Arc<[ContainerPort]> {
        keep(&mut self.ports, ports.into())
    }

    pub(super) fn probed(&mut self, ports: &[u16]) -> Arc<[u16]> {
        keep(&mut self.probed, ports.into())
    }

    pub(super) fn addresses(&mut self, addresses: &[IpAddr]) -> Arc<[IpAddr]> {
        keep(&mut self.addresses, addresses.into())
    }

    pub(super) fn identity(&mut self, identity: SpiffeId) -> SpiffeId {
        keep(&mut self.identities, identity)
    }

    /// Drops what nobody holds, once there is twice as much as after the last time.
    pub(super) fn sweep(&mut self) {
        if self.size() < FEW.max(2 * self.swept) {
            return;
        }
        self.labels.retain(|labels| labels.holders() > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.addresses.retain(|addresses| Arc::strong_count(addresses) > 1);
        self.probed.retain(|ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|text| text.holders() > 1);
        self.identities.retain(|identity| identity.holders() > 1);
        self.swept = self.size();
    }

    fn size(&self) -> usize {
        self.texts.len() + self.labels.len() + self.ports.len() + self.addresses.len() + self.probed.len()
    }
}

fn keep<T: Clone + Eq + std::hash::Hash>(known: &mut HashSet<T>, value: T) -> T {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    known.insert(value.clone());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_while_held_and_none_after() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        assert_eq!(interner.text("kept").holders(), 3, "the set, ours, and the one asked");
        for number in 0..2 * FEW {
            drop(interner.text(&number.to_string()));
        }
        interner.sweep();
        assert_eq!(interner.texts.len(), 1);
        assert_eq!(kept.holders(), 2);
    }
}
