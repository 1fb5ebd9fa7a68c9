//! `cluster`: a real Kubernetes on this machine. A node is a set of namespaces
//! and a cgroup; ending its first process ends it and leaves nothing.

mod cgroups;
mod config;
mod down;
mod images;
mod inside;
mod member;
mod names;
mod network;
mod node_root;
mod parts;
mod pki;
mod proxy_mode;
mod state;
mod supervise;
mod units;
mod up;
mod wait;

use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use self::images::Given;
use self::member::Members;
use self::names::{ClusterName, MOST_NODES, Member, Node};
pub(crate) use self::parts::Parts;
use self::proxy_mode::ProxyMode;
use self::state::State;
use self::up::Shape;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::setup::{self, Group};
use crate::workspace::Workspace;
use crate::{interrupt, netlab, process};

/// Longer than a cluster takes to come up or to go.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// `cargo xtask cluster`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which cluster; several stand side by side.
    #[arg(long, default_value = "lab")]
    name: ClusterName,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Bring a cluster up; what is missing is installed and built first.
    Up {
        /// How many nodes.
        #[arg(long, default_value = "2", value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
        nodes: u8,
        /// How kube-proxy leads connections to Services.
        #[arg(long, default_value = "iptables")]
        proxy_mode: ProxyMode,
    },
    /// Take it down and remove everything; also what a killed run left.
    Down,
    /// Say what runs.
    Status,
    /// kubectl as the cluster's administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command inside of a node (or of control-plane); a shell without one.
    Node {
        #[arg(value_parser = member)]
        node: Member,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Add a node to a cluster that is up.
    NodeAdd,
    /// Switch a node off and on again: its files stay, all else is gone.
    NodeReboot { node: Node },
    /// Cut a node off from the network.
    NodeCut { node: Node },
    /// Join a node that was cut off to the network again.
    NodeHeal { node: Node },
    /// Switch a node off, or control-plane, or all of them.
    PowerOff {
        #[arg(value_parser = member)]
        only: Option<Member>,
    },
    /// Switch on again what is off.
    PowerOn {
        #[arg(value_parser = member)]
        only: Option<Member>,
    },
    /// Load an image into every node: NAME=ARCHIVE.tar, or nginx, redis, python, curl made of this machine's own.
    Image {
        #[arg(required = true)]
        images: Vec<Given>,
    },
    /// Build Kubernetes' programs, or those named, and print their folder.
    Parts { programs: Vec<String> },
    /// A member's first step (internal).
    #[command(hide = true)]
    Enter(inside::Args),
    /// A member's process number 1 (internal).
    #[command(hide = true)]
    Init(inside::Args),
}

/// Takes a member's step, if the command line asks for one: such a process may
/// see no source tree.
pub(crate) fn step(args: &Args) -> Option<Result<()>> {
    match &args.action {
        Action::Enter(args) => Some(inside::enter(args)),
        Action::Init(args) => Some(inside::init(args)),
        _ => None,
    }
}

/// The command line's entry.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if let Action::Parts { programs } = &args.action {
        interrupt::arm()?;
        println!("{}", Parts::ensure(workspace, programs)?.bin().display());
        return Ok(());
    }
    if !geteuid().is_root() {
        let message = "a cluster is made of namespaces and cgroups: please run it as root".into();
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    }
    let state = State::of(&args.name)?;
    match &args.action {
        Action::Kubectl { arguments } => become_program(existing(&state)?.kubectl().args(arguments)),
        Action::Node { node, command } => {
            let mut enter = existing(&state)?.command_in(*node)?;
            if command.is_empty() {
                enter.arg("/bin/bash")
            } else {
                enter.args(command)
            };
            become_program(&mut enter)
        }
        Action::Status => status(&existing(&state)?),
        other => change(workspace, &state, other),
    }
}

/// What changes a cluster, one at a time.
fn change(workspace: &Workspace, state: &State, action: &Action) -> Result<()> {
    interrupt::arm()?;
    let _alone = lock(state)?;
    match action {
        Action::Up { nodes, proxy_mode } => {
            proxy_mode.must_be_possible()?;
            setup::ensure(workspace, Group::Cluster)?;
            let parts = Parts::ensure(workspace, &[])?;
            let shape = Shape { nodes: *nodes, proxy_mode: *proxy_mode };
            status(&up::bring_up(workspace, state, shape, parts)?)
        }
        Action::Down => down::take_down(state),
        Action::NodeAdd => {
            println!("{}", up::add_node(&existing(state)?)?);
            Ok(())
        }
        Action::NodeReboot { node } => up::power_cycle(&known(state, *node)?, *node),
        Action::NodeCut { node } => {
            known(state, *node).and_then(|_| network::set_connected(state.name(), *node, false))
        }
        Action::NodeHeal { node } => {
            known(state, *node).and_then(|_| network::set_connected(state.name(), *node, true))
        }
        Action::PowerOff { only } => power_off(&existing(state)?, *only),
        Action::PowerOn { only } => power_on(&existing(state)?, *only),
        Action::Image { images } => {
            let members = existing(state)?;
            for given in images {
                println!("{}", images::load(workspace, &members, given)?);
            }
            Ok(())
        }
        Action::Status | Action::Kubectl { .. } | Action::Node { .. } | Action::Parts { .. } => Ok(()),
        Action::Enter(_) | Action::Init(_) => Ok(()),
    }
}

fn member(text: &str) -> Result<Member> {
    if text == Member::ControlPlane.to_string() { Ok(Member::ControlPlane) } else { Ok(Member::Node(text.parse()?)) }
}

fn lock(state: &State) -> Result<UnixListener> {
    netlab::lock(&format!("warren-cluster-{}", state.name()), LOCK_LIMIT)
}

fn existing(state: &State) -> Result<Members> {
    state.expect()?;
    Members::new(state, Parts::place()?)
}

fn known(state: &State, node: Node) -> Result<Members> {
    let nodes = state.expect()?.nodes()?;
    if !nodes.contains(&node) {
        anyhow::bail!("cluster {} has no {node}; it has {}", state.name(), nodes.len());
    }
    existing(state)
}

fn all(members: &Members) -> Result<Vec<Member>> {
    let nodes = members.state().expect()?.nodes()?;
    Ok([Member::ControlPlane].into_iter().chain(nodes.into_iter().map(Member::Node)).collect())
}

fn power_off(members: &Members, only: Option<Member>) -> Result<()> {
    // The bridge is the control plane's: the nodes go first.
    let mut chosen = all(members)?.into_iter().rev().filter(|member| only.is_none_or(|only| only == *member));
    chosen.try_for_each(|member| up::power_off(members, member))
}

fn power_on(members: &Members, only: Option<Member>) -> Result<()> {
    let nodes = members.state().expect()?.nodes()?;
    let off = all(members)?.into_iter().filter(|member| only.is_none_or(|only| only == *member));
    let off: Vec<Member> = off.filter(|member| !members.is_on(*member)).collect();
    for member in &off {
        members.power_on(*member, &nodes)?;
    }
    up::api_server_ready(members)?;
    let started: Vec<Node> = off
        .into_iter()
        .filter_map(|member| match member {
            Member::Node(node) => Some(node),
            Member::ControlPlane => None,
        })
        .collect();
    if started.is_empty() { Ok(()) } else { up::nodes_ready(members, &started) }
}

fn status(members: &Members) -> Result<()> {
    for member in all(members)? {
        let word = if members.is_on(member) { "on" } else { "off" };
        println!("{member:<16}{word:<6}logs: {}", members.state().logs(member).display());
    }
    let name = members.state().name();
    println!("kubeconfig: {} (inside `cargo xtask cluster --name {name} kubectl`)", members.state().admin().display());
    print!("{}", process::output(members.kubectl().args(["get", "nodes", "-o", "wide"]))?);
    Ok(())
}

/// The program takes this one's place: signals, input and exit code are its own.
fn become_program(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::inherit());
    Err(command.exec()).with_context(|| process::shown(command))
}
