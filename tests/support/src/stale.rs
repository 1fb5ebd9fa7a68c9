//! What a killed test run left behind.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use nix::fcntl::{Flock, FlockArg};

use crate::command::warren_bin;

/// Names of everything made here start with this and the process id.
pub const PREFIX: &str = "wt";

/// Removes namespaces, pins and directories of test processes that no longer live; once per process.
pub fn remove_leftovers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _alone = lock();
        for name in names_in("/sys/fs/bpf/warren") {
            clean_agent(&name);
        }
        for name in names_in("/run/netns") {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
        for name in names_in("/run/warren-test") {
            let _ = std::fs::remove_dir_all(Path::new("/run/warren-test").join(name));
        }
        for name in names_in("/etc/netns") {
            let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(name));
        }
        let temporary = std::env::temp_dir();
        for name in names_in(&temporary) {
            let _ = std::fs::remove_file(temporary.join(name));
        }
    });
}

/// Two test processes that start together must not clean the same thing at once.
fn lock() -> Option<Flock<File>> {
    let file = File::create("/run/warren-test.lock").ok()?;
    Flock::lock(file, FlockArg::LockExclusive).ok()
}

fn clean_agent(node: &str) {
    let run_dir = format!("/run/warren-test/{}/{node}", node.rsplit_once('-').map_or(node, |(lab, _)| lab));
    let _ = Command::new(warren_bin()).args(["agent", "cleanup", "--node", node, "--run-dir", &run_dir]).output();
    let _ = std::fs::remove_dir_all(Path::new("/sys/fs/bpf/warren").join(node));
}

/// Entries of `dir` that a dead test process made.
fn names_in(dir: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())).collect()
}

/// The process id in a name like `wt1234-5-client`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_names_with_prefix_and_process_id_are_ours() {
        assert_eq!(owner("wt1234-5-client"), Some(1234));
        assert_eq!(owner("wtx-5"), None);
        assert_eq!(owner("other1234-5"), None);
    }
}
