//! A process in a cgroup named like a pod's, in the pod's network namespace: what a kubelet and a runtime leave behind
//! for an agent to find.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use crate::netns::NetNs;

/// A pod's only process. Dropping it ends it and removes its cgroup.
#[derive(Debug)]
pub struct PodProcess {
    child: Child,
    cgroups: [PathBuf; 2],
}

impl PodProcess {
    /// Starts it. `group` is a name of the test's own.
    #[track_caller]
    pub fn start(group: &str, uid: &str, netns: &NetNs) -> Self {
        let parent = hierarchy().join(format!("kubepods-{group}-{uid}"));
        let own = parent.join(format!("pod{uid}"));
        fs::create_dir_all(&own).unwrap_or_else(|e| panic!("{}: {e}", own.display()));
        let child = netns.spawn(Command::new("sleep").arg("1000"));
        fs::write(own.join("cgroup.procs"), child.id().to_string()).expect("a process may change its cgroup");
        Self { child, cgroups: [own, parent] }
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for cgroup in &self.cgroups {
            // Its process may take a moment to leave it.
            for _ in 0..50 {
                if fs::remove_dir(cgroup).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

/// Where the cgroup v2 hierarchy is mounted, alone or beside v1.
fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc");
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.expect("a cgroup v2 hierarchy is mounted")
}
