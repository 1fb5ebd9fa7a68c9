//! How many pods each object binds. Counted when somebody asks: to keep the numbers up to date with every pod that comes
//! or goes would cost as much as all objects that bind it.

use std::collections::HashMap;
use std::sync::Arc;

use super::layer::ItemKey;
use crate::world::{Labels, SharedMap, Text};

/// Namespace and labels of the pods of a group.
pub(super) type GroupKey = (Text, Labels);

/// The pods in the mesh of one group, and the objects that bind them: lists that groups share.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) pods: usize,
    pub(super) applying: [Arc<[ItemKey]>; 4],
}

/// Adds up the pods of each object. Each list is gone through once, however many groups share it.
pub(super) fn pods_by_object(tallies: &SharedMap<GroupKey, Tally>) -> HashMap<&ItemKey, usize> {
    let mut lists: HashMap<*const ItemKey, (&Arc<[ItemKey]>, usize)> = HashMap::new();
    for tally in tallies.values() {
        for list in &tally.applying {
            lists.entry(list.as_ptr()).or_insert((list, 0)).1 += tally.pods;
        }
    }
    let mut pods = HashMap::new();
    for (list, count) in lists.into_values() {
        for key in list.iter() {
            *pods.entry(key).or_default() += count;
        }
    }
    pods
}
