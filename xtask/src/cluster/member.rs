//! Switching members on and off, and finding the ones that run.

use std::fs;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::cgroups::{self, Hierarchy};
use super::inside;
use super::names::{Member, Node};
use super::parts::Parts;
use super::pki::Pki;
use super::state::{Record, State};
use super::{config, network, node_root, units};
use crate::netlab::netns_path;
use crate::process;

/// A cluster's members, and what it takes to start one.
#[derive(Debug)]
pub(crate) struct Members {
    state: State,
    parts: Parts,
    hierarchies: Vec<Hierarchy>,
}

impl Members {
    /// Those of a cluster, running or not.
    pub(crate) fn new(state: &State, parts: Parts) -> Result<Self> {
        Ok(Self { state: state.clone(), parts, hierarchies: Hierarchy::all()? })
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Makes the control plane's files, once.
    pub(crate) fn prepare_control_plane(&self) -> Result<()> {
        let pki = Pki::create(&self.state.pki())?;
        config::write_control_plane(&self.state, &pki)?;
        self.write_units(Member::ControlPlane, &units::control_plane(&self.parts, &self.state, &pki))
    }

    /// Makes a node's files, once.
    pub(crate) fn prepare_node(&self, node: Node, record: &Record) -> Result<()> {
        let member = Member::Node(node);
        let root = self.state.root(member);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.state.member(member))?;
        node_root::create(&root)?;
        let pki = Pki::open(&self.state.pki());
        pki.issue_node(node)?;
        let files = [("ca.crt", "ca.crt"), ("proxy.crt", "proxy.crt"), ("proxy.key", "proxy.key")];
        let own = [format!("{node}.crt"), format!("{node}.key")];
        let files = files.into_iter().chain([(own[0].as_str(), "node.crt"), (own[1].as_str(), "node.key")]);
        for (from, to) in files {
            let to = root.join("etc/kubernetes/pki").join(to);
            fs::copy(pki.file(from), &to).with_context(|| to.display().to_string())?;
        }
        let snapshotter = node_root::snapshotter(&self.state.member(member))?;
        config::write_node(&root, node, record.proxy_mode, snapshotter)?;
        self.write_units(member, &units::node(node))
    }

    fn write_units(&self, member: Member, units: &[units::Unit]) -> Result<()> {
        let path = self.state.member(member).join("units.json");
        fs::write(&path, serde_json::to_vec_pretty(units)?).with_context(|| path.display().to_string())
    }

    /// Starts a member whose files are there.
    pub(crate) fn power_on(&self, member: Member, nodes: &[Node]) -> Result<()> {
        let name = self.state.name().of(member);
        if self.is_on(member) {
            bail!("{member} is on");
        }
        match member {
            // It stays when the control plane is switched off: the nodes' cables end there.
            Member::ControlPlane if netns_path(&name).exists() => {}
            Member::ControlPlane => network::create(self.state.name())?,
            Member::Node(node) => network::join(self.state.name(), node, nodes)?,
        }
        cgroups::create(&self.hierarchies, &name)?;
        let log = self.state.member(member).join("member.log");
        let file = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(std::env::current_exe().context("own program")?);
        command.args(["cluster", "enter"]).args(self.inside(member, name).words());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.spawn().with_context(|| process::shown(&command))?;
        Ok(())
    }

    fn inside(&self, member: Member, name: String) -> inside::Args {
        let units = self.state.member(member).join("units.json");
        match member {
            Member::ControlPlane => inside::Args::control_plane(name, units, self.state.logs(member)),
            Member::Node(node) => inside::Args::control_plane(name, units, "/var/log".into()).with_root(
                self.state.root(member),
                node.to_string(),
                self.parts.bin().to_owned(),
                self.state.images(),
            ),
        }
    }

    /// Ends a member as a power failure would: its processes and a node's
    /// network are gone, its files stay. Returns what does not go.
    pub(crate) fn power_off(&self, member: Member) -> Vec<String> {
        let name = self.state.name().of(member);
        let left = cgroups::end(&self.hierarchies, &name);
        if let Member::Node(node) = member {
            network::leave(self.state.name(), node);
        }
        left
    }

    /// Whether its first process runs.
    pub(crate) fn is_on(&self, member: Member) -> bool {
        self.first_process(member).is_some()
    }

    /// A member's process number 1, as this machine numbers it.
    pub(crate) fn first_process(&self, member: Member) -> Option<Pid> {
        cgroups::first_process(&self.hierarchies, &self.state.name().of(member))
    }

    /// A command inside of a member.
    pub(crate) fn command_in(&self, member: Member) -> Result<Command> {
        let pid = self.first_process(member).with_context(|| format!("{member} is not on"))?;
        let mut command = process::command("nsenter");
        command.arg("--target").arg(pid.to_string());
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]);
        Ok(command)
    }

    /// kubectl as the administrator, with a file system and a working folder as
    /// outside: files may be named.
    pub(crate) fn kubectl(&self) -> Command {
        let netns = netns_path(&self.state.name().of(Member::ControlPlane));
        let mut command = crate::netlab::process::inside(&netns, self.parts.program("kubectl"));
        command.arg("--kubeconfig").arg(self.state.admin());
        command
    }
}
