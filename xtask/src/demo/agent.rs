//! The two agents: started on the running pods, asked for their state.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::lab::{NODES, Node, PODS, TRUST_DOMAIN, WORLD};
use crate::interrupt;
use crate::netlab::process::{Daemon, inside};
use crate::process;
use crate::workspace::Workspace;

/// Short enough to see several rotations in half a minute.
pub(super) const LEAF_TTL: Duration = Duration::from_secs(20);
const READY_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Where the agents' program and files are.
#[derive(Debug, Clone)]
pub(super) struct Agents {
    warren: PathBuf,
    directory: PathBuf,
}

impl Agents {
    /// Files go below a directory that exists.
    pub(super) fn new(workspace: &Workspace, directory: &Path) -> Self {
        Self { warren: workspace.target().join("debug/warren"), directory: directory.to_owned() }
    }

    /// The program.
    pub(super) fn program(&self) -> &Path {
        &self.warren
    }

    /// The world both read.
    pub(super) fn world(&self) -> PathBuf {
        self.directory.join("mesh.yaml")
    }

    /// A node's run directory.
    pub(super) fn run_directory(&self, node: Node) -> PathBuf {
        self.directory.join(node.name)
    }

    /// A node's status socket.
    pub(super) fn socket(&self, node: Node) -> PathBuf {
        self.run_directory(node).join("agent.sock")
    }

    /// A node's audit log.
    pub(super) fn audit_log(&self, node: Node) -> PathBuf {
        self.directory.join(format!("{}-audit.jsonl", node.name))
    }

    fn log(&self, node: Node) -> PathBuf {
        self.directory.join(format!("{}.log", node.name))
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca")
    }

    /// Makes the shared root, starts both, waits until both are ready.
    pub(super) fn start(&self, daemons: &mut Vec<Daemon>) -> Result<()> {
        fs::write(self.world(), WORLD)?;
        let mut init = process::command(&self.warren);
        init.args(["ca", "init", "--trust-domain", TRUST_DOMAIN, "--ca-dir"]).arg(self.ca());
        process::output(&mut init)?;
        for node in NODES {
            daemons.push(Daemon::start(&format!("agent of {}", node.name), &self.log(node), &mut self.command(node))?);
        }
        for (node, daemon) in NODES.into_iter().zip(daemons.iter_mut().rev().take(NODES.len()).rev()) {
            self.wait_until_ready(node, daemon)?;
        }
        Ok(())
    }

    fn command(&self, node: Node) -> std::process::Command {
        let mut command = inside(&node.netns(), &self.warren);
        command.args(["agent", "--node", node.name, "--trust-domain", TRUST_DOMAIN]);
        command.arg("--world").arg(self.world()).arg("--ca-dir").arg(self.ca());
        command.arg("--run-dir").arg(self.run_directory(node)).arg("--audit-log").arg(self.audit_log(node));
        command.arg("--leaf-ttl").arg(format!("{}s", LEAF_TTL.as_secs()));
        command
    }

    fn wait_until_ready(&self, node: Node, daemon: &mut Daemon) -> Result<()> {
        let line = format!("warren: ready node={}", node.name);
        let started = Instant::now();
        while started.elapsed() < READY_LIMIT {
            interrupt::check()?;
            if fs::read_to_string(self.log(node)).unwrap_or_default().contains(&line) {
                return Ok(());
            }
            if !daemon.is_running() {
                bail!("the {} ended:\n{}", daemon.name(), self.log_tail(node));
            }
            thread::sleep(POLL);
        }
        bail!("the {} is not ready within {} s:\n{}", daemon.name(), READY_LIMIT.as_secs(), self.log_tail(node))
    }

    fn log_tail(&self, node: Node) -> String {
        let text = fs::read_to_string(self.log(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// `warren status --json`
    pub(super) fn status(&self, node: Node) -> Result<Value> {
        let mut command = process::command(&self.warren);
        command.args(["status", "--json", "--socket"]).arg(self.socket(node));
        serde_json::from_str(&process::output(&mut command)?).context("status of the agent")
    }

    /// What is wrong with a node's pods: each of the lab's must be enrolled under its identity.
    pub(super) fn enrolment_faults(&self, node: Node) -> Result<Vec<String>> {
        let status = self.status(node)?;
        let reported = status["pods"].as_array().cloned().unwrap_or_default();
        let expected = PODS.into_iter().filter(|pod| pod.node == node && pod.enrolled);
        Ok(expected
            .filter_map(|pod| {
                let found = reported.iter().find(|entry| entry["name"] == pod.name);
                let well = found.is_some_and(|entry| {
                    entry["state"] == "enrolled" && entry["identity"].as_str() == pod.identity().as_deref()
                });
                (!well).then(|| format!("{}: {}", pod.name, found.map_or("not reported".into(), Value::to_string)))
            })
            .collect())
    }

    /// Removes what a node's agent left in the kernel; says what stays.
    pub(super) fn clean_up(&self, node: Node) -> Result<()> {
        let mut command = process::command(&self.warren);
        command.args(["agent", "cleanup", "--node", node.name, "--run-dir"]).arg(self.run_directory(node));
        process::output(&mut command).map(drop)
    }
}
