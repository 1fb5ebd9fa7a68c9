//! Programs inside a lab's namespaces, and their orderly end.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;

/// How long a program may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(20);

/// A command inside a network namespace. Unlike `ip netns exec`, this leaves
/// /sys alone, where the agent needs cgroup2 and bpffs.
pub(crate) fn inside(netns: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = process::command("nsenter");
    command.arg(format!("--net={}", netns.display())).arg("--").arg(program);
    command
}

/// A program that runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts it with its output in a file, in a process group of its own: a
    /// Ctrl-C is the chore's to handle, in its order.
    pub(crate) fn start(name: &str, log: &Path, command: &mut Command) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| process::shown(command))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once and waits for that.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end; `wait` sees to it.
    pub(crate) fn ask_to_end(&self) {
        process::terminate(&self.child);
    }

    /// Waits for its end, and kills it when it takes too long.
    pub(crate) fn wait(&mut self) {
        let started = Instant::now();
        while self.is_running() {
            if started.elapsed() > PATIENCE {
                eprintln!("warning: {} does not end and is killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// Ends processes known by number only: those of an earlier run, found in the
/// lab's own namespaces.
pub(crate) fn end_strangers(pids: &[Pid]) {
    for pid in pids {
        let _ = kill(*pid, Signal::SIGTERM);
    }
    let started = Instant::now();
    let alive = |pid: &Pid| kill(*pid, None).is_ok();
    while pids.iter().any(alive) && started.elapsed() < PATIENCE {
        thread::sleep(POLL);
    }
    for pid in pids.iter().filter(|pid| alive(pid)) {
        let _ = kill(*pid, Signal::SIGKILL);
    }
}
