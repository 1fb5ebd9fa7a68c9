//! Where the runtime has put pods, as the CNI plugin told: known before a pod's first process, and before its object has
//! any address. Kept in the run directory, so that an agent that is restarted still knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use warren_core::identity::PodUid;
use warren_core::world::World;

use crate::cni::Place;

const FILE: &str = "places.json";
/// Version of the file; one of another version is not read, and its pods are found by other means, or started anew.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    places: BTreeMap<String, Written>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    container: String,
    netns: PathBuf,
    ips: Vec<std::net::IpAddr>,
}

/// The places of this node's pods.
pub(crate) struct Places {
    file: PathBuf,
    places: BTreeMap<PodUid, Place>,
    /// Pods whose sandboxes went, as long as the world has them.
    departed: BTreeSet<PodUid>,
}

impl Places {
    /// What an earlier agent was told, as far as it can be read.
    pub(crate) fn open(run_dir: &Path) -> Self {
        let file = run_dir.join(FILE);
        let places = match read(&file) {
            Ok(places) => places,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "places of pods are not known; they are looked for");
                BTreeMap::new()
            }
        };
        Self { file, places, departed: BTreeSet::new() }
    }

    /// Where the runtime has put a pod.
    pub(crate) fn at(&self, uid: &PodUid) -> Option<&Place> {
        self.places.get(uid)
    }

    /// Whether the runtime has taken the pod's sandbox away, and made no other.
    pub(crate) fn has_departed(&self, uid: &PodUid) -> bool {
        self.departed.contains(uid)
    }

    /// Takes in what the plugin tells; whether it is news.
    pub(crate) fn put(&mut self, uid: &PodUid, place: &Place) -> bool {
        if self.places.get(uid) == Some(place) {
            return false;
        }
        self.departed.remove(uid);
        self.places.insert(uid.clone(), place.clone());
        self.save();
        true
    }

    /// Keeps the places of sandboxes of which `keep` says so; whether any went.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) -> bool {
        let gone = self.places.extract_if(.., |_, place| !keep(&place.container));
        let gone: Vec<PodUid> = gone.map(|(uid, _)| uid).collect();
        let changed = !gone.is_empty();
        self.departed.extend(gone);
        if changed {
            self.save();
        }
        changed
    }

    /// Forgets pods that are in no world any more, and whose namespaces are gone: somebody forgot to say DEL.
    pub(crate) fn prune(&mut self, world: &World) {
        self.departed.retain(|uid| world.pod(uid).is_some());
        let gone = |uid: &PodUid, place: &Place| world.pod(uid).is_none() && !place.netns.exists();
        let before = self.places.len();
        self.places.retain(|uid, place| !gone(uid, place));
        if self.places.len() != before {
            self.save();
        }
    }

    /// The world, with the addresses that the runtime gave its pods.
    pub(crate) fn over(&self, world: &World) -> Option<World> {
        world.with_addresses(self.places.iter().map(|(uid, place)| (uid, place.ips.as_slice())))
    }

    fn save(&self) {
        let written = |place: &Place| Written {
            container: place.container.clone(),
            netns: place.netns.clone(),
            ips: place.ips.clone(),
        };
        let places = self.places.iter().map(|(uid, place)| (uid.to_string(), written(place))).collect();
        let fresh = self.file.with_extension("new");
        let write = || -> io::Result<()> {
            fs::write(&fresh, serde_json::to_vec(&Content { version: VERSION, places })?)?;
            fs::rename(&fresh, &self.file)
        };
        if let Err(error) = write() {
            tracing::error!(%error, file = %self.file.display(), "places of pods not written");
        }
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<PodUid, Place>> {
    let content: Content = serde_json::from_slice(&fs::read(file)?)?;
    if content.version != VERSION {
        let reason = format!("version {} is not known to this release", content.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let place = |written: Written| Place { container: written.container, netns: written.netns, ips: written.ips };
    Ok(content.places.into_iter().map(|(uid, written)| (PodUid::from(uid.as_str()), place(written))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_outlive_the_agent_and_go_with_their_sandbox() {
        let dir = std::env::temp_dir().join(format!("warren-places-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let place = |container: &str| Place {
            container: container.to_owned(),
            netns: "/run/netns/a".into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
        };
        let uid = PodUid::from("u1");
        let mut places = Places::open(&dir);
        assert!(places.put(&uid, &place("old")));
        assert!(places.put(&uid, &place("new")), "the sandbox was made anew");
        assert!(!places.put(&uid, &place("new")), "the runtime asks again");
        let mut later = Places::open(&dir);
        assert_eq!(later.places[&uid], place("new"));
        assert!(!later.retain(|container| container != "old"), "a late DEL of the old sandbox");
        assert!(later.retain(|container| container != "new"));
        assert!(Places::open(&dir).places.is_empty());
        fs::write(dir.join(FILE), r#"{"version":9,"places":{}}"#).unwrap();
        assert!(Places::open(&dir).places.is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
