//! The two agents: started, stopped, killed and asked, one by one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::board::Board;
use super::lab::{NODES, Node, TRUST_DOMAIN};
use crate::interrupt;
use crate::netlab::process::{Daemon, inside};
use crate::process;

/// For a start, and for a world to be taken in: under load on few cores.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// What stands in an agent's log when it is to be looked at.
const ALARMS: [&str; 2] = ["panicked at", "worker died"];

/// How the agents are run.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The program.
    pub(super) warren: PathBuf,
    /// Run directories, CA and world.
    pub(super) directory: PathBuf,
    /// Logs and audit logs.
    pub(super) logs: PathBuf,
    pub(super) world: PathBuf,
    pub(super) leaf_ttl: Duration,
}

impl Setting {
    /// A node's audit log.
    pub(super) fn audit_log(&self, node: Node) -> PathBuf {
        self.logs.join(format!("{}-audit.jsonl", node.name))
    }

    /// `warren status --json`
    pub(super) fn status(&self, node: Node) -> Result<Value> {
        let mut command = process::command(&self.warren);
        command.args(["status", "--json", "--socket"]).arg(self.directory.join(node.name).join("agent.sock"));
        serde_json::from_str(&process::output(&mut command)?).context("status of the agent")
    }
}

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
}

/// Both agents.
#[derive(Debug)]
pub(super) struct Agents {
    setting: Setting,
    daemons: [Option<Daemon>; NODES.len()],
    board: Arc<Board>,
    starts: usize,
}

impl Agents {
    /// Makes the shared root; starts none.
    pub(super) fn new(setting: Setting, board: Arc<Board>) -> Result<Self> {
        let mut init = process::command(&setting.warren);
        init.args(["ca", "init", "--trust-domain", TRUST_DOMAIN, "--ca-dir"]).arg(setting.directory.join("ca"));
        process::output(&mut init)?;
        Ok(Self { setting, daemons: [None, None], board, starts: 0 })
    }

    /// Starts one and waits until it is ready.
    pub(super) fn start(&mut self, node: Node) -> Result<()> {
        self.starts += 1;
        let log = self.setting.logs.join(format!("{}-{}.log", node.name, self.starts));
        let mut daemon = Daemon::start(&format!("agent of {}", node.name), &log, &mut self.command(node))?;
        let ready = wait_until_ready(node, &mut daemon, &log);
        self.board.agent(node, Some(daemon.id()));
        self.daemons[node.index()] = Some(daemon);
        ready
    }

    fn command(&self, node: Node) -> std::process::Command {
        let Setting { warren, directory, world, leaf_ttl, .. } = &self.setting;
        let mut command = inside(&node.netns(), warren);
        command.args(["agent", "--node", node.name, "--trust-domain", TRUST_DOMAIN]);
        command.arg("--world").arg(world).arg("--ca-dir").arg(directory.join("ca"));
        command.arg("--run-dir").arg(directory.join(node.name)).arg("--audit-log").arg(self.setting.audit_log(node));
        command.arg("--leaf-ttl").arg(format!("{}s", leaf_ttl.as_secs())).args(["--drain", "1s", "--away-wait", "20s"]);
        // A line for each connection would fill the disk; the audit log has them.
        command.args(["--log", "info,access=off"]);
        command
    }

    /// Ends one, and waits until its process is gone.
    pub(super) fn end(&mut self, node: Node, way: Way) {
        if let Some(mut daemon) = self.daemons[node.index()].take() {
            match way {
                Way::Stop => daemon.ask_to_end(),
                Way::Kill => daemon.kill(),
            }
            daemon.wait();
            self.board.agent(node, None);
        }
    }

    /// Ends both.
    pub(super) fn end_all(&mut self) {
        self.daemons.iter().flatten().for_each(Daemon::ask_to_end);
        NODES.into_iter().for_each(|node| self.end(node, Way::Stop));
    }

    /// Agents that ended by themselves.
    pub(super) fn check(&mut self) -> Result<()> {
        for daemon in self.daemons.iter_mut().flatten() {
            if !daemon.is_running() {
                bail!("the {} ended by itself; see {}", daemon.name(), self.setting.logs.display());
            }
        }
        Ok(())
    }

    /// How they are run.
    pub(super) fn setting(&self) -> &Setting {
        &self.setting
    }

    /// The generations of the worlds that the running agents serve.
    pub(super) fn generations(&self) -> Result<Vec<(Node, u64)>> {
        self.running().map(|node| Ok((node, generation(&self.setting.status(node)?)))).collect()
    }

    fn running(&self) -> impl Iterator<Item = Node> {
        NODES.into_iter().filter(|node| self.daemons[node.index()].is_some())
    }

    /// Waits until each serves a newer world than that.
    pub(super) fn wait_for_newer(&self, before: &[(Node, u64)]) -> Result<()> {
        for (node, old) in before {
            self.wait(*node, "does not take the new world in", |status| generation(status) > *old)?;
        }
        Ok(())
    }

    /// Waits until the agent's status is as wanted.
    pub(super) fn wait(&self, node: Node, what: &str, good: impl Fn(&Value) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let status = self.setting.status(node)?;
            if good(&status) {
                return Ok(());
            }
            if started.elapsed() > LIMIT {
                bail!("the agent of {} {what} within {} s", node.name, LIMIT.as_secs());
            }
            interrupt::check()?;
            thread::sleep(POLL);
        }
    }

    /// Lines in any of their logs that should not be there.
    pub(super) fn alarms(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.setting.logs).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = entries.filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.flat_map(|path| alarms_in(&path)).collect()
    }

    /// Removes what a node's agent left in the kernel.
    pub(super) fn clean_up(warren: &Path, directory: &Path, node: &str) -> Result<()> {
        let mut command = process::command(warren);
        command.args(["agent", "cleanup", "--node", node, "--run-dir"]).arg(directory.join(node));
        process::output(&mut command).map(drop)
    }
}

fn generation(status: &Value) -> u64 {
    status["world"]["generation"].as_u64().unwrap_or_default()
}

fn wait_until_ready(node: Node, daemon: &mut Daemon, log: &Path) -> Result<()> {
    let line = format!("warren: ready node={}", node.name);
    let started = Instant::now();
    let text = || fs::read_to_string(log).unwrap_or_default();
    while started.elapsed() < LIMIT {
        interrupt::check()?;
        if text().contains(&line) {
            return Ok(());
        }
        if !daemon.is_running() {
            bail!("the {} ended:\n{}", daemon.name(), tail(&text()));
        }
        thread::sleep(POLL);
    }
    bail!("the {} is not ready within {} s:\n{}", daemon.name(), LIMIT.as_secs(), tail(&text()))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn alarms_in(log: &Path) -> Vec<String> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let found = text.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    found.map(|line| format!("{}: {line}", log.display())).collect()
}
