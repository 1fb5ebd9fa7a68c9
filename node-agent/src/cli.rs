//! The command line: what can be asked, and with which defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::capture::Mark;

mod ca;
mod certs;
mod controller;
mod install;

pub(crate) use ca::{CaAction, CaBackupArgs, CaCommand, CaRestoreArgs, CaRotateArgs, CaStatusArgs, ClusterArgs};
pub(crate) use certs::{CertsAction, CertsCommand};
pub(crate) use controller::ControllerArgs;
pub(crate) use install::{ApiArgs, CrdsAction, CrdsCommand, DoctorArgs, UninstallArgs};

/// Warren: sidecarless mTLS for pods, under each pod's own SPIFFE identity.
#[derive(Debug, Parser)]
#[command(name = "warren", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `warren` can be asked to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node agent, or clean up after one.
    Agent(Box<AgentCommand>),
    /// Show pods, identities and connections of a running agent.
    Status(StatusArgs),
    /// Run the mesh's certificate authority, beside the API server.
    Controller(Box<ControllerArgs>),
    /// Manage the certificate authority: the controllers', or an agent's own directory.
    Ca(CaCommand),
    /// Manage the SVIDs of a node's pods.
    Certs(CertsCommand),
    /// List connections, and end those that are older than their pod's enrolment.
    Connections(ConnectionsArgs),
    /// Be the CNI plugin, as a container runtime runs it; or install it, or remove it.
    Cni(CniCommand),
    /// Manage the kinds of objects that Warren reads.
    Crds(CrdsCommand),
    /// Say what keeps Warren from working on this node and in this cluster, and what to do about it.
    Doctor(DoctorArgs),
    /// Remove Warren from a cluster: from its nodes first, then its objects. Policies and labels stay.
    Uninstall(UninstallArgs),
}

/// `warren agent …`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AgentCommand {
    #[command(subcommand)]
    pub(crate) action: Option<AgentAction>,
    #[command(flatten)]
    pub(crate) run: Option<AgentArgs>,
}

/// Actions beside running.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentAction {
    /// Remove every link, pin, rule, route and sysctl that this node's agent left.
    Cleanup(CleanupArgs),
    /// Mount the BPF file system where it is missing.
    MountBpffs,
}

/// The flags of a running agent.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Name of this node; pods with this spec.nodeName are local.
    #[arg(long)]
    pub(crate) node: String,
    /// Where the world comes from: `kubernetes`, the API server; or manifests, one YAML file or a directory of them,
    /// whose changes are picked up while running (a file of that name is `./kubernetes`).
    #[arg(long, value_name = "kubernetes|PATH")]
    pub(crate) world: PathBuf,
    /// With `--world kubernetes` or `--identity controller`: how to reach the API server [default: as the agent's own pod is told by kubelet].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// With `--world kubernetes`: a range of addresses to capture beside those of Services and of observed pods, such
    /// as the pods' network; repeatable. In a world from files the Mesh document says it.
    #[arg(long, value_name = "CIDR")]
    pub(crate) captured: Vec<ipnet::IpNet>,
    /// What becomes of a captured connection to an address at which the world knows nothing.
    #[arg(long, value_enum, default_value_t = UnknownDestination::Refuse)]
    pub(crate) unknown_destination: UnknownDestination,
    /// What becomes of a connection to a pod that is meant to be in the mesh, on a node whose agent does not say that
    /// it takes tunnels: `plain` is for the time in which agents come to a cluster's nodes one by one.
    #[arg(long, value_enum, default_value_t = IncapableDestination::Refuse)]
    pub(crate) incapable_destination: IncapableDestination,
    /// Where SVIDs come from: `embedded`, a certificate authority in each agent with a root in `--ca-dir`; or
    /// `controller`, Warren's controllers.
    #[arg(long, value_enum, default_value_t = Identity::Embedded)]
    pub(crate) identity: Identity,
    /// With `--identity embedded`: directory of the root; agents that share it share a root.
    #[arg(long, value_name = "DIR", required_if_eq("identity", "embedded"))]
    pub(crate) ca_dir: Option<PathBuf>,
    /// With `--identity controller`: the token that proves this agent, of audience warren-ca.
    #[arg(long, value_name = "FILE", required_if_eq("identity", "controller"))]
    pub(crate) ca_token: Option<PathBuf>,
    /// Namespace of Warren's own objects.
    #[arg(long, value_name = "NAMESPACE", default_value = "warren-system")]
    pub(crate) system_namespace: String,
    /// With `--world kubernetes`: the DaemonSet that this agent is of. If the API server says at SIGTERM that it is gone
    /// or being deleted, capture is taken away from the node; otherwise, and if it says nothing, capture stays.
    #[arg(long, value_name = "NAME")]
    pub(crate) daemon_set: Option<String>,
    /// SPIFFE trust domain of this mesh; a Mesh document in the world may set it as well.
    #[arg(long)]
    pub(crate) trust_domain: Option<String>,
    /// Lifetime of a pod's SVID; renewal starts at half of it.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) leaf_ttl: Duration,
    /// Directory for the status socket and the agent's state file [default: /run/warren/NODE].
    #[arg(long)]
    pub(crate) run_dir: Option<PathBuf>,
    /// Where audit events go, one JSON object a line: a file, `-` for standard output, or `none`.
    #[arg(long, default_value = "-")]
    pub(crate) audit_log: String,
    /// Address of the metrics and health endpoint; loopback only.
    #[arg(long, default_value = "127.0.0.1:15020")]
    pub(crate) admin: SocketAddr,
    /// How long captured connections wait for an agent that is away before they are refused.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) away_wait: Duration,
    /// How long a connection waits for its pod's first SVID before it is refused.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) svid_wait: Duration,
    /// How long open connections may go on after SIGTERM.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// Socket mark of captured connections, as VALUE/MASK in hexadecimal.
    #[arg(long, default_value = "0x577/0xfff", value_parser = parse_mark)]
    pub(crate) mark: Mark,
    /// Routing table that captured connections use inside a pod.
    #[arg(long, default_value_t = 15577)]
    pub(crate) route_table: u32,
    /// Worker threads [default: one per core].
    #[arg(long)]
    pub(crate) workers: Option<usize>,
    /// Peers (IP addresses) to which client bytes are sent only after their 200; repeatable.
    #[arg(long, value_name = "IP")]
    pub(crate) no_early_data_to: Vec<std::net::IpAddr>,
    /// Send no client bytes before a peer's 200, to any peer.
    #[arg(long)]
    pub(crate) no_early_data: bool,
    /// Congestion control of tunnels, as the kernel names it; `system` leaves the node's default alone. One that paces
    /// (bbr) takes twice the CPU per byte on a fast network.
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub(crate) tunnel_congestion: String,
    /// Whether tunnels to peers that are used again and again are dialled before the next connection wants one.
    #[arg(long, value_enum, default_value_t = WarmTunnels::On)]
    pub(crate) warm_tunnels: WarmTunnels,
    /// How connections between two pods of this node are carried: by the kernel, from socket to socket, where its
    /// self-test passes, or in mutual TLS like all others.
    #[arg(long, value_enum, default_value_t = SameNode::Kernel)]
    pub(crate) same_node: SameNode,
    /// Whether bytes of connections that the kernel carries within this node skip TCP, where its self-test passes.
    /// ARCHITECTURE.md says what applications must not do then.
    #[arg(long, value_enum, default_value_t = Splice::Off)]
    pub(crate) splice: Splice,
    /// How often the auditor compares the kernel with the world.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) audit_interval: Duration,
    /// A namespace whose pods are never enrolled, whatever their labels say, beside kube-system and warren-system: that
    /// of an issuer, without which no pod gets an identity; repeatable.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) never_enrol: Vec<String>,
    /// The cgroup that the cgroups of this node's pods lie in, below the root of the hierarchy; repeatable [default: those
    /// named as kubelet names it]. Kubelet's probes are told from pods' connections by it.
    #[arg(long, value_name = "PATH")]
    pub(crate) pod_cgroup: Vec<PathBuf>,
    /// Answer the CNI plugin, so that pods are in before their first process.
    #[arg(long)]
    pub(crate) cni: bool,
    /// File of the decisions by which pods start while the agent is away [default: /var/lib/warren/NODE/decisions].
    #[arg(long, value_name = "FILE", requires = "cni")]
    pub(crate) cni_decisions: Option<PathBuf>,
    /// Install the plugin's configuration here, before all others, and keep it in step with the primary plugin's.
    #[arg(long, value_name = "DIR", requires_all = ["cni", "cni_bin_dir"])]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Install the plugin itself here.
    #[arg(long, value_name = "DIR", requires_all = ["cni", "cni_conf_dir"])]
    pub(crate) cni_bin_dir: Option<PathBuf>,
    /// Log filter, as in RUST_LOG.
    #[arg(long, default_value = "info")]
    pub(crate) log: String,
    /// Write logs as JSON.
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// Where SVIDs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Identity {
    /// A certificate authority of the agent's own.
    Embedded,
    /// Warren's controllers.
    Controller,
}

/// Whether tunnels are dialled ahead of need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WarmTunnels {
    /// They are.
    On,
    /// A connection that finds none waits for TCP and TLS.
    Off,
}

/// What becomes of connections to addresses that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UnknownDestination {
    /// They are refused: whether they belong into a tunnel cannot be known.
    Refuse,
    /// They leave in clear.
    Plain,
}

/// What becomes of connections to pods of the mesh that no agent serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IncapableDestination {
    /// They are refused.
    Refuse,
    /// They pass in clear, and are counted by caller, destination and port.
    Plain,
}

/// How connections between pods of one node are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SameNode {
    /// By the kernel, without TLS, past every shared network; in TLS where that cannot be.
    Kernel,
    /// In mutual TLS.
    Tunnel,
}

/// Whether bytes skip TCP within a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Splice {
    /// They do not.
    Off,
    /// Those of applications that do not wait in calls, where the kernel's self-test passes.
    On,
    /// Those of all applications: a blocking `recv` may come back with EAGAIN.
    All,
}

/// `warren agent cleanup`
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Node whose traces are removed; its agent must not be running.
    #[arg(long)]
    pub(crate) node: String,
    /// The run directory that agent was given [default: /run/warren/NODE].
    #[arg(long)]
    pub(crate) run_dir: Option<PathBuf>,
}

/// `warren status`
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Node whose agent is asked, by its default run directory.
    #[arg(long, conflicts_with = "socket")]
    pub(crate) node: Option<String>,
    /// The agent's status socket.
    #[arg(long)]
    pub(crate) socket: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `warren connections`
#[derive(Debug, Args)]
pub(crate) struct ConnectionsArgs {
    /// Node whose agent is asked, by its default run directory.
    #[arg(long, conflicts_with = "socket")]
    pub(crate) node: Option<String>,
    /// The agent's status socket.
    #[arg(long)]
    pub(crate) socket: Option<PathBuf>,
    /// Only those in clear text, for which nobody's identity is proven.
    #[arg(long)]
    pub(crate) clear_text: bool,
    /// End those that are older than their pod's enrolment; their applications connect anew, through the mesh.
    #[arg(long)]
    pub(crate) cut: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `warren cni …`
#[derive(Debug, Args)]
pub(crate) struct CniCommand {
    #[command(subcommand)]
    pub(crate) action: Option<CniAction>,
}

/// Actions beside being the plugin.
#[derive(Debug, Subcommand)]
pub(crate) enum CniAction {
    /// Copy the plugin to where the runtime looks for it, and put it behind the primary plugin.
    Install(CniInstallArgs),
    /// Remove the plugin's configuration, then the plugin; the primary's stays as it is.
    Uninstall(CniUninstallArgs),
    /// Say where this machine's runtime looks for plugins and their configurations.
    Paths,
}

/// `warren cni install`
#[derive(Debug, Args)]
pub(crate) struct CniInstallArgs {
    /// Folder of configurations [default: this distribution's].
    #[arg(long)]
    pub(crate) conf_dir: Option<PathBuf>,
    /// Folder of plugins [default: this distribution's].
    #[arg(long)]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Node whose agent the plugin asks.
    #[arg(long)]
    pub(crate) node: String,
    /// The agent's run directory [default: /run/warren/NODE].
    #[arg(long)]
    pub(crate) run_dir: Option<PathBuf>,
    /// File of the agent's decisions [default: /var/lib/warren/NODE/decisions].
    #[arg(long)]
    pub(crate) decisions: Option<PathBuf>,
    /// As of the agent; repeatable.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) never_enrol: Vec<String>,
}

/// `warren cni uninstall`
#[derive(Debug, Args)]
pub(crate) struct CniUninstallArgs {
    /// Folder of configurations [default: this distribution's].
    #[arg(long)]
    pub(crate) conf_dir: Option<PathBuf>,
    /// Folder of plugins [default: this distribution's].
    #[arg(long)]
    pub(crate) bin_dir: Option<PathBuf>,
}

fn parse_mark(text: &str) -> Result<Mark, String> {
    let (value, mask) = text.split_once('/').ok_or("expected VALUE/MASK, for example 0x577/0xfff")?;
    let mark = Mark { value: parse_u32(value)?, mask: parse_u32(mask)? };
    if mark.value == 0 || mark.value & !mark.mask != 0 {
        return Err("the value must be non-zero and lie within the mask".into());
    }
    Ok(mark)
}

fn parse_u32(text: &str) -> Result<u32, String> {
    let digits = text.trim();
    match digits.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .map_err(|error| format!("{digits:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mark_must_lie_within_its_mask() {
        assert_eq!(parse_mark("0x577/0xfff"), Ok(Mark { value: 0x577, mask: 0xfff }));
        assert!(parse_mark("0x1577/0xfff").is_err());
        assert!(parse_mark("0/0xfff").is_err());
        assert!(parse_mark("0x577").is_err());
    }

    #[test]
    fn cleanup_needs_no_world() {
        let cli = Cli::try_parse_from(["warren", "agent", "cleanup", "--node", "a"]).unwrap();
        let Command::Agent(agent) = cli.command else { panic!("not the agent command") };
        assert!(matches!(agent.action, Some(AgentAction::Cleanup(_))));
    }
}
