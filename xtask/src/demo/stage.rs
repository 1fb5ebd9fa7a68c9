//! What the demo builds and takes down again: its directory, namespaces,
//! programs, and what the agents put into the kernel.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::agent::Agents;
use super::lab::{NODES, PREFIX};
use crate::netlab::process::Daemon;
use crate::netlab::{self, network};
use crate::workspace::Workspace;

const DIRECTORY: &str = "/run/warren-demo";
const LOCK: &str = "warren-demo";
/// Longer than a demo takes.
const LOCK_LIMIT: Duration = Duration::from_secs(120);
/// Where the agents pin what outlives them.
const PINS: &str = "/sys/fs/bpf/warren";

/// Two demos at once would be in each other's way: the second waits.
pub(super) fn lock() -> Result<UnixListener> {
    netlab::lock(LOCK, LOCK_LIMIT)
}

/// The built world. Dropping it takes everything down.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) agents: Agents,
    pub(super) daemons: Vec<Daemon>,
    down: bool,
}

impl Stage {
    /// Removes what an earlier run left, and makes the directory.
    pub(super) fn begin(workspace: &Workspace) -> Result<Self> {
        let agents = Agents::new(workspace, &directory());
        if directory().exists() || !network::existing(PREFIX).is_empty() {
            println!("taking down what an earlier demo left or kept");
        }
        let left = take_down(&agents);
        if !left.is_empty() {
            bail!("an earlier run left things that cannot be removed: {}", left.join(", "));
        }
        fs::create_dir_all(DIRECTORY).context(DIRECTORY)?;
        Ok(Self { agents, daemons: Vec::new(), down: false })
    }

    /// Ends the programs in the reverse order of their start, then removes
    /// everything; says what could not be removed.
    pub(super) fn end(&mut self) -> Vec<String> {
        self.down = true;
        // The agents were started last: all are asked first, then waited for.
        self.daemons.iter().rev().for_each(Daemon::ask_to_end);
        self.daemons.iter_mut().rev().for_each(Daemon::wait);
        self.daemons.clear();
        take_down(&self.agents)
    }

    /// Leaves everything running.
    pub(super) fn keep(mut self) {
        self.down = true;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.down {
            for left in self.end() {
                eprintln!("warning: left behind: {left}");
            }
        }
    }
}

/// The demo's directory.
pub(super) fn directory() -> PathBuf {
    PathBuf::from(DIRECTORY)
}

/// Removes everything of the demo, whoever started it. Processes in its
/// namespaces are its own: nobody else enters them.
pub(super) fn take_down(agents: &Agents) -> Vec<String> {
    let mut left = network::end_processes(PREFIX);
    for node in NODES.into_iter().filter(|node| agents.program().exists() && has_traces(node.name)) {
        if let Err(error) = agents.clean_up(node) {
            left.push(format!("{error:#}"));
        }
    }
    left.extend(network::remove(PREFIX).into_iter().map(|name| format!("network namespace {name}")));
    left.extend(pins().map(|path| path.display().to_string()).filter(|path| Path::new(path).exists()));
    if let Err(error) = fs::remove_dir_all(DIRECTORY)
        && error.kind() != ErrorKind::NotFound
    {
        left.push(format!("{DIRECTORY}: {error}"));
    }
    left
}

fn has_traces(node: &str) -> bool {
    Path::new(PINS).join(node).exists() || directory().join(node).exists()
}

fn pins() -> impl Iterator<Item = PathBuf> {
    NODES.into_iter().map(|node| Path::new(PINS).join(node.name))
}
