//! Network namespaces by name, and doing things inside them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use nix::sched::{CloneFlags, setns};

use crate::command;

/// A named network namespace (`/run/netns/NAME`), removed when dropped.
///
/// No descriptor is kept: whoever holds one keeps the namespace alive, and tests want to see it die.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    path: PathBuf,
}

impl NetNs {
    /// Makes the namespace, with `lo` up.
    #[track_caller]
    pub fn create(name: &str) -> Self {
        command::run("ip", &["netns", "add", name]);
        let ns = Self { name: name.to_owned(), path: Path::new("/run/netns").join(name) };
        command::ip_batch(Some(name), "link set lo up\n");
        ns
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path it is bound to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` on a thread of its own inside the namespace; sockets it makes stay there when they are returned.
    #[track_caller]
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        let joined = std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("setns needs root");
                drop(file);
                f()
            });
            inside.join()
        });
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a program inside to its end.
    #[track_caller]
    pub fn output(&self, command: &mut Command) -> Output {
        self.run(|| command::output(command))
    }

    /// Runs a program inside to its end and demands success.
    #[track_caller]
    pub fn check(&self, program: &str, args: &[&str]) -> String {
        self.run(|| command::run(program, args))
    }

    /// Starts a program inside; the caller owns the child.
    #[track_caller]
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.run(|| command.spawn().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}")))
    }

    /// Reads a file as seen inside (`/proc/sys/net/...`, `/proc/thread-self/net/...`).
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        self.run(|| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    /// Sets a sysctl given by its path under `/proc/sys`.
    #[track_caller]
    pub fn set_sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path} = {value}: {e}")));
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if self.path.exists() {
            let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
        }
    }
}
