//! A process in a cgroup named like a pod's, in the pod's network namespace: what a kubelet and a runtime leave behind
//! for an agent to find.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output};

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

    /// Runs another program of the pod to its end: in its cgroup, whatever network it uses.
    #[track_caller]
    pub fn output(&self, netns: &NetNs, command: &Command) -> Output {
        let mut joining = Command::new("sh");
        joining.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.cgroups[0].join("cgroup.procs"));
        netns.output(joining.arg(command.get_program()).args(command.get_args()))
    }

    /// The cgroup that its cgroup lies in, as a path below the root of the hierarchy.
    pub fn parent(&self) -> String {
        let name = self.cgroups[1].file_name().and_then(|name| name.to_str());
        name.expect("named by this module").to_owned()
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
