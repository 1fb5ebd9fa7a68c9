//! Warren's agents on the nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::net::{NAMESPACE, NODES, Pod};
use crate::interrupt;
use crate::netlab::netns_path;
use crate::netlab::process::{Daemon, inside};
use crate::process;

const TRUST_DOMAIN: &str = "bench.example.com";
const READY_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Where the agents pin what outlives them.
const PINS: &str = "/sys/fs/bpf/warren";

/// How the agents are run.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    program: PathBuf,
    directory: PathBuf,
    flags: Vec<String>,
}

impl Agents {
    /// Agents whose files go below this directory.
    pub(super) fn new(program: &Path, directory: &Path, flags: Vec<String>) -> Self {
        Self { program: program.to_owned(), directory: directory.to_owned(), flags }
    }

    /// Writes the world, makes the root, and starts both.
    pub(super) fn start(&self, pods: &[Pod], more_addresses: &[String]) -> Result<Vec<Daemon>> {
        fs::write(self.world(), world(pods, more_addresses))?;
        let mut init = process::command(&self.program);
        init.args(["ca", "init", "--trust-domain", TRUST_DOMAIN, "--ca-dir"]).arg(self.ca());
        process::output(&mut init)?;
        let mut daemons = NODES.iter().map(|node| self.launch(node)).collect::<Result<Vec<_>>>()?;
        for (node, daemon) in NODES.iter().zip(&mut daemons) {
            self.wait_until_ready(node, daemon)?;
        }
        Ok(daemons)
    }

    /// Starts the agent of a node without waiting for it.
    pub(crate) fn launch(&self, node: &str) -> Result<Daemon> {
        let mut command = inside(&netns_path(node), &self.program);
        command
            .args(["agent", "--node", node, "--trust-domain", TRUST_DOMAIN, "--log", "info,access=error"])
            .args(&self.flags);
        command.arg("--world").arg(self.world()).arg("--ca-dir").arg(self.ca());
        command.arg("--run-dir").arg(self.run_directory(node));
        command.arg("--audit-log").arg(self.directory.join(format!("{node}-audit.jsonl")));
        Daemon::start(&format!("agent of {node}"), &self.log(node), &mut command)
    }

    /// Waits for an agent's `ready` line.
    pub(crate) fn wait_until_ready(&self, node: &str, daemon: &mut Daemon) -> Result<()> {
        let line = format!("warren: ready node={node}");
        let started = Instant::now();
        while !self.log_text(node).contains(&line) {
            interrupt::check()?;
            if !daemon.is_running() || started.elapsed() > READY_LIMIT {
                bail!("the {} is not ready:\n{}", daemon.name(), super::tail(&self.log_text(node)));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// What an agent has logged.
    pub(crate) fn log_text(&self, node: &str) -> String {
        fs::read_to_string(self.log(node)).unwrap_or_default()
    }

    /// Removes what the agents left in the kernel.
    pub(super) fn clean_up(&self) -> Result<()> {
        for node in NODES.iter().filter(|node| pins(node).exists() || self.run_directory(node).exists()) {
            let mut command = process::command(&self.program);
            command.args(["agent", "cleanup", "--node", node, "--run-dir"]).arg(self.run_directory(node));
            process::output(&mut command)?;
        }
        Ok(())
    }

    fn world(&self) -> PathBuf {
        self.directory.join("mesh.yaml")
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca")
    }

    fn run_directory(&self, node: &str) -> PathBuf {
        self.directory.join(node)
    }

    fn log(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.log"))
    }
}

/// Where an agent pins.
pub(super) fn pins(node: &str) -> PathBuf {
    Path::new(PINS).join(node)
}

/// Whether an agent knows a flag.
pub(crate) fn knows(program: &Path, flag: &str) -> bool {
    let mut help = Command::new(program);
    process::output(help.args(["agent", "--help"])).is_ok_and(|text| text.contains(flag))
}

/// What an agent calls itself.
pub(crate) fn version(program: &Path) -> Result<String> {
    let said = process::output(process::command(program).arg("--version"));
    Ok(said.with_context(|| format!("{} does not run", program.display()))?.trim().to_owned())
}

/// The pods, who may all talk to each other.
fn world(pods: &[Pod], more_addresses: &[String]) -> String {
    let mut text = format!(
        "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{trustDomain: {TRUST_DOMAIN}}}\n"
    );
    for pod in pods {
        let mut addresses = vec![pod.address().to_string()];
        if *pod == super::net::FAR {
            addresses.extend(more_addresses.iter().cloned());
        }
        let ips: Vec<String> = addresses.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {0}\n  namespace: {NAMESPACE}\n  uid: bench-{0}\n  \
             labels: {{app: {0}, \"warren.dev/mode\": ambient}}\n  annotations: {{\"warren.dev/netns\": \"{1}\"}}\n\
             spec:\n  nodeName: {2}\n  serviceAccountName: {0}\n  containers: [{{name: app, image: app}}]\n\
             status:\n  phase: Running\n  podIPs: [{3}]\n",
            pod.name,
            pod.netns().display(),
            NODES[pod.node()],
            ips.join(", ")
        );
    }
    text
}
