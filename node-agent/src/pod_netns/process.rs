//! Namespaces of pods on Kubernetes, by a process of the pod: its cgroup path bears the pod's UID.
//!
//! Limits: the agent must see the node's processes (`hostPID`); a pod is found once its sandbox runs, not before its
//! first process; static pods are not found, because their cgroups bear another UID than their mirror in the API
//! server; neither are pods of sandboxed runtimes, whose processes are not the node's.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_core::identity::PodUid;
use warren_core::world::Pod;

use super::{Netns, PodNetns};

/// Processes are looked through no more often: a pod that is not found is looked for with every change of the world.
const LOOK_REST: Duration = Duration::from_millis(500);

/// Finds a pod's oldest process, which is its sandbox's and lives as long as the namespace.
#[derive(Debug)]
pub(crate) struct ProcessNetns {
    proc: PathBuf,
    known: HashMap<PodUid, Place>,
    looked: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// Device and inode of the namespace.
    id: (u64, u64),
    /// When the process began, in ticks since boot.
    began: u64,
}

impl ProcessNetns {
    /// A finder in a mounted proc file system.
    pub(crate) fn new(proc: PathBuf) -> Self {
        Self { proc, known: HashMap::new(), looked: None }
    }

    /// Looks through all processes for those of the pods.
    fn look(&mut self, wanted: &[&PodUid]) {
        let own = namespace_id(&self.proc.join("self/ns/net"));
        let Ok(entries) = fs::read_dir(&self.proc) else { return };
        let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        for pid in processes {
            let dir = self.proc.join(pid.to_string());
            let Ok(cgroups) = fs::read_to_string(dir.join("cgroup")) else { continue };
            let Some(uid) = wanted.iter().find(|uid| is_of_pod(&cgroups, uid.as_str())) else { continue };
            let path = dir.join("ns/net");
            let (Some(id), Some(began)) = (namespace_id(&path), began(&dir)) else { continue };
            // A process that shares the node's network is not in the pod's namespace, whatever its cgroup.
            if Some(id) == own {
                continue;
            }
            // Read again: the process may have ended meanwhile, and its number be another's.
            if !fs::read_to_string(dir.join("cgroup")).is_ok_and(|now| now == cgroups) {
                continue;
            }
            let place = Place { path, id, began };
            let older = self.known.get(uid).is_none_or(|known| place.began < known.began);
            if older {
                self.known.insert((*uid).clone(), place);
            }
        }
    }
}

impl PodNetns for ProcessNetns {
    fn find(&mut self, pods: &[Arc<Pod>]) -> Vec<Netns> {
        let wanted: std::collections::HashSet<&PodUid> = pods.iter().map(|pod| &pod.uid).collect();
        self.known.retain(|uid, place| wanted.contains(uid) && namespace_id(&place.path) == Some(place.id));
        let unknown: Vec<&PodUid> = wanted.into_iter().filter(|uid| !self.known.contains_key(*uid)).collect();
        let rested = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_REST);
        if !unknown.is_empty() && rested {
            self.look(&unknown);
            self.looked = Some(Instant::now());
        }
        let place = |pod: &Arc<Pod>| match self.known.get(&pod.uid) {
            Some(place) => Netns::At(place.path.clone()),
            None => Netns::Unknown("no process of the pod runs on this node yet".to_owned()),
        };
        pods.iter().map(place).collect()
    }

    fn is_still_at(&self, _: &Pod, _: &Path) -> bool {
        // Where it is was never the world's word; the caller compares the namespace itself.
        true
    }
}

/// Whether one of the cgroups is a pod's, as kubelet names it: `pod<UID>`, or, driven by systemd,
/// `kubepods-<class>-pod<UID>.slice` with underscores for dashes.
fn is_of_pod(cgroups: &str, uid: &str) -> bool {
    let plain = format!("pod{uid}");
    let slice = format!("-pod{}.slice", uid.replace('-', "_"));
    let parts = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/'));
    let mut parts = parts.filter(|part| part.contains("pod"));
    parts.any(|part| part == plain || (part.starts_with("kubepods") && part.ends_with(&slice)))
}

fn namespace_id(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Field 22 of `stat`, behind the name, which may contain anything.
fn began(dir: &Path) -> Option<u64> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_both_drivers_and_of_hybrid_mounts() {
        let uid = "8a5a2f6e-0000-4000-8000-000000000001";
        for cgroups in [
            "0::/kubepods/besteffort/pod8a5a2f6e-0000-4000-8000-000000000001/abc\n",
            "12:memory:/kubepods/pod8a5a2f6e-0000-4000-8000-000000000001/abc\n0::/\n",
            "0::/kubepods.slice/kubepods-burstable.slice/\
             kubepods-burstable-pod8a5a2f6e_0000_4000_8000_000000000001.slice/cri-containerd-abc.scope\n",
        ] {
            assert!(is_of_pod(cgroups, uid), "{cgroups}");
        }
        for cgroups in [
            "0::/system.slice/ssh.service\n",
            "0::/kubepods/pod8a5a2f6e-0000-4000-8000-0000000000012/abc\n",
            "0::/user/xpod8a5a2f6e-0000-4000-8000-000000000001\n",
        ] {
            assert!(!is_of_pod(cgroups, uid), "{cgroups}");
        }
    }

    #[test]
    fn the_start_of_a_process_is_read_past_any_name() {
        assert!(began(Path::new("/proc/self")).is_some_and(|ticks| ticks > 0));
    }

    #[test]
    fn a_process_on_the_nodes_own_network_is_not_a_pods() {
        let mut finder = ProcessNetns::new("/proc".into());
        let uid = PodUid::from("8a5a2f6e-0000-4000-8000-000000000001");
        finder.look(&[&uid]);
        assert!(finder.known.is_empty());
    }
}
