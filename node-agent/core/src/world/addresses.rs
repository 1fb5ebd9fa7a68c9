//! Addresses that somebody knows better than the objects do: the runtime that has just handed them out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::builder::{count_down, count_up};
use super::{Pod, World};
use crate::addr::canonical;
use crate::identity::PodUid;

impl World {
    /// This world, in which these pods have these addresses, and nobody else has them. `None` if it changes nothing.
    ///
    /// A pod's sandbox has its addresses before its first process starts; its object says so some time later, as does
    /// the object of the pod that had one of them before.
    #[must_use]
    pub fn with_addresses<'a>(&self, known: impl Iterator<Item = (&'a PodUid, &'a [IpAddr])>) -> Option<Self> {
        let mut world = None;
        let mut taken = BTreeSet::new();
        for (uid, ips) in known {
            let Some(pod) = self.pods.get(uid).filter(|pod| !pod.host_network) else { continue };
            let own: Vec<IpAddr> = ips.iter().map(|ip| canonical(*ip)).filter(|ip| taken.insert(*ip)).collect();
            if *pod.ips != *own {
                world.get_or_insert_with(|| self.clone()).give(uid, own);
            }
        }
        world
    }

    fn give(&mut self, uid: &PodUid, own: Vec<IpAddr>) {
        for ip in &own {
            if let Some((_, former)) = self.addresses.get(ip).filter(|(_, owner)| owner != uid).cloned() {
                let left = self.pods.get(&former).map(|pod| pod.ips.iter().copied().filter(|one| one != ip).collect());
                self.set_ips(&former, left.unwrap_or_default());
            }
        }
        self.set_ips(uid, own);
    }

    fn set_ips(&mut self, uid: &PodUid, ips: Vec<IpAddr>) {
        let Some(before) = self.pods.get(uid).cloned() else { return };
        for ip in before.ips.iter() {
            count_down(&mut self.captured.addresses, ip);
            if self.addresses.get(ip).is_some_and(|(_, owner)| owner == uid) {
                self.addresses.remove(ip);
            }
        }
        for ip in &ips {
            count_up(&mut self.captured.addresses, ip);
            self.addresses.insert(*ip, (0, uid.clone()));
        }
        self.pods.insert(uid.clone(), Arc::new(Pod { ips: ips.into(), ..(*before).clone() }));
    }
}
