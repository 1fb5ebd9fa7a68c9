//! The agent's configuration: the command line, checked once, with every default filled in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use warren_core::identity::TrustDomain;
use warren_core::world::{IncapableDestination, UnknownDestination};

use crate::capture::{Mark, Spliced};
use crate::cli::{self, AgentArgs, SameNode, Splice, WarmTunnels};

/// Trust domain of a mesh that names none.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Shortest lifetime of an SVID.
const MIN_LEAF_TTL: Duration = Duration::from_secs(2);

/// A configuration that cannot work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A flag's value is not usable.
    #[error("--{flag} {value}: {reason}")]
    Flag {
        /// Flag, without dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// Where the world comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorldSource {
    /// Manifests in a file or a directory.
    Files(PathBuf),
    /// The API server.
    Kubernetes {
        /// How to reach it; `None` as kubelet tells the agent's own pod.
        kubeconfig: Option<PathBuf>,
        /// Ranges captured beside those of Services and the addresses of pods.
        captured: Vec<IpNet>,
    },
}

/// Where SVIDs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdentitySource {
    /// A certificate authority of the agent's own, whose root is in a directory.
    Embedded {
        /// The directory.
        dir: PathBuf,
    },
    /// Warren's controllers.
    Controller {
        /// The agent's token for them.
        token: PathBuf,
        /// How the API server is reached, which tells of them.
        kubeconfig: Option<PathBuf>,
    },
}

/// Where audit events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AuditLog {
    /// Nowhere; counters still count.
    None,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// To which peers the client's first bytes follow the CONNECT without waiting for the 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EarlyData {
    enabled: bool,
    except: Vec<std::net::IpAddr>,
}

impl EarlyData {
    /// Whether this peer gets early data.
    pub(crate) fn allowed_to(&self, peer: std::net::IpAddr) -> bool {
        self.enabled && !self.except.contains(&peer)
    }
}

/// The agent's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) node: String,
    pub(crate) world: WorldSource,
    pub(crate) unknown_destination: UnknownDestination,
    pub(crate) incapable_destination: IncapableDestination,
    pub(crate) identity: IdentitySource,
    /// Namespace of Warren's own objects.
    pub(crate) system_namespace: String,
    /// The DaemonSet that this agent is of.
    pub(crate) daemon_set: Option<String>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) leaf_ttl: Duration,
    pub(crate) run_dir: PathBuf,
    pub(crate) audit_log: AuditLog,
    pub(crate) admin: SocketAddr,
    pub(crate) away_wait: Duration,
    pub(crate) svid_wait: Duration,
    pub(crate) drain: Duration,
    pub(crate) mark: Mark,
    pub(crate) route_table: u32,
    pub(crate) workers: usize,
    pub(crate) early_data: EarlyData,
    /// Congestion control of tunnels; `None` is the node's default.
    pub(crate) tunnel_congestion: Option<String>,
    /// Whether tunnels are dialled ahead of need.
    pub(crate) warm_tunnels: bool,
    pub(crate) same_node: SameNode,
    pub(crate) splice: Splice,
    pub(crate) audit_interval: Duration,
    /// Namespaces that are never enrolled, beside the fixed ones.
    pub(crate) never_enrol: Vec<String>,
    /// Cgroups that pods' cgroups lie in; none are looked for.
    pub(crate) pod_cgroups: Vec<PathBuf>,
    /// How the CNI plugin is served; `None` if it is not.
    pub(crate) cni: Option<CniConfig>,
}

/// How the CNI plugin is served.
#[derive(Debug, Clone)]
pub(crate) struct CniConfig {
    /// The file of decisions.
    pub(crate) decisions: PathBuf,
    /// Where the plugin is to be installed, if the agent is to do that.
    pub(crate) install: Option<CniTarget>,
}

/// The runtime's folders.
#[derive(Debug, Clone)]
pub(crate) struct CniTarget {
    /// Of configurations.
    pub(crate) conf_dir: PathBuf,
    /// Of plugins.
    pub(crate) bin_dir: PathBuf,
}

impl Config {
    /// Checks the flags and fills in what was left out.
    pub(crate) fn new(args: AgentArgs) -> Result<Self, ConfigError> {
        check_node(&args.node)?;
        check_admin(args.admin)?;
        if args.leaf_ttl < MIN_LEAF_TTL {
            return Err(ConfigError::Flag {
                flag: "leaf-ttl",
                value: humantime::format_duration(args.leaf_ttl).to_string(),
                reason: format!("at least {}", humantime::format_duration(MIN_LEAF_TTL)),
            });
        }
        let in_kubernetes = args.world.as_os_str() == KUBERNETES;
        let cni = args.cni.then(|| CniConfig {
            decisions: args.cni_decisions.unwrap_or_else(|| crate::cni::default_decisions(&args.node)),
            install: args.cni_conf_dir.zip(args.cni_bin_dir).map(|(conf_dir, bin_dir)| CniTarget { conf_dir, bin_dir }),
        });
        Ok(Self {
            cni,
            pod_cgroups: args.pod_cgroup,
            never_enrol: args.never_enrol,
            run_dir: args.run_dir.unwrap_or_else(|| default_run_dir(&args.node)),
            trust_domain: trust_domain(args.trust_domain.as_deref())?,
            workers: workers(args.workers)?,
            audit_log: audit_log(&args.audit_log),
            early_data: EarlyData { enabled: !args.no_early_data, except: args.no_early_data_to },
            node: args.node,
            identity: identity(args.identity, args.ca_dir, args.ca_token, args.kubeconfig.clone())?,
            system_namespace: args.system_namespace,
            daemon_set: daemon_set(args.daemon_set, in_kubernetes)?,
            world: world(
                args.world,
                args.kubeconfig.filter(|_| in_kubernetes || args.identity == cli::Identity::Embedded),
                args.captured,
            )?,
            unknown_destination: match args.unknown_destination {
                cli::UnknownDestination::Refuse => UnknownDestination::Refuse,
                cli::UnknownDestination::Plain => UnknownDestination::Plain,
            },
            incapable_destination: match args.incapable_destination {
                cli::IncapableDestination::Refuse => IncapableDestination::Refuse,
                cli::IncapableDestination::Plain => IncapableDestination::Plain,
            },
            leaf_ttl: args.leaf_ttl,
            admin: args.admin,
            away_wait: args.away_wait,
            svid_wait: args.svid_wait,
            drain: args.drain,
            mark: args.mark,
            route_table: args.route_table,
            tunnel_congestion: Some(args.tunnel_congestion).filter(|name| name != "system"),
            warm_tunnels: args.warm_tunnels == WarmTunnels::On,
            same_node: args.same_node,
            splice: args.splice,
            audit_interval: args.audit_interval,
        })
    }
}

impl Config {
    /// Which connections are to be spliced.
    pub(crate) fn spliced(&self) -> Option<Spliced> {
        match (self.same_node, self.splice) {
            (SameNode::Tunnel, _) | (_, Splice::Off) => None,
            (SameNode::Kernel, Splice::On) => Some(Spliced::NonBlocking),
            (SameNode::Kernel, Splice::All) => Some(Spliced::All),
        }
    }
}

/// Run directory of a node that was given none.
pub(crate) fn default_run_dir(node: &str) -> PathBuf {
    Path::new("/run/warren").join(node)
}

/// The status socket in a run directory.
pub(crate) fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// The name becomes a folder of pins and of state, so it must be one plain path component.
pub(crate) fn check_node(node: &str) -> Result<(), ConfigError> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !node.is_empty() && node.len() <= 253 && node.chars().all(legal) && !node.starts_with('.') {
        return Ok(());
    }
    Err(ConfigError::Flag {
        flag: "node",
        value: node.to_owned(),
        reason: "a node name has 1 to 253 characters of a-z 0-9 - . and does not start with a dot".into(),
    })
}

/// The word that stands for the API server instead of a path.
const KUBERNETES: &str = "kubernetes";

fn world(world: PathBuf, kubeconfig: Option<PathBuf>, captured: Vec<IpNet>) -> Result<WorldSource, ConfigError> {
    let of_kubernetes = |flag, value: String| ConfigError::Flag {
        flag,
        value,
        reason: format!(
            "goes with --world {KUBERNETES} only; the world is read from {} here, whose Mesh document says the like",
            world.display()
        ),
    };
    if world.as_os_str() == KUBERNETES {
        if let Some(all) = captured.iter().find(|range| range.prefix_len() == 0) {
            let reason =
                "takes in every address, so the node's and the whole Internet's; name the pods' network".into();
            return Err(ConfigError::Flag { flag: "captured", value: all.to_string(), reason });
        }
        return Ok(WorldSource::Kubernetes { kubeconfig, captured: captured.iter().map(IpNet::trunc).collect() });
    }
    match (kubeconfig, captured.first()) {
        (Some(file), _) => Err(of_kubernetes("kubeconfig", file.display().to_string())),
        (None, Some(range)) => Err(of_kubernetes("captured", range.to_string())),
        (None, None) => Ok(WorldSource::Files(world)),
    }
}

fn identity(
    identity: cli::Identity,
    dir: Option<PathBuf>,
    token: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
) -> Result<IdentitySource, ConfigError> {
    let other = |flag, path: PathBuf, of: &str| ConfigError::Flag {
        flag,
        value: path.display().to_string(),
        reason: format!("goes with --identity {of} only"),
    };
    match (identity, dir, token) {
        (cli::Identity::Embedded, Some(dir), None) => Ok(IdentitySource::Embedded { dir }),
        (cli::Identity::Controller, None, Some(token)) => Ok(IdentitySource::Controller { token, kubeconfig }),
        (cli::Identity::Embedded, _, Some(token)) => Err(other("ca-token", token, "controller")),
        (cli::Identity::Controller, Some(dir), _) => Err(other("ca-dir", dir, "embedded")),
        // The command line demands one of them already.
        (cli::Identity::Embedded, None, None) | (cli::Identity::Controller, None, None) => Err(ConfigError::Flag {
            flag: "identity",
            value: format!("{identity:?}").to_lowercase(),
            reason: "--ca-dir or --ca-token is missing".to_owned(),
        }),
    }
}

fn daemon_set(name: Option<String>, in_kubernetes: bool) -> Result<Option<String>, ConfigError> {
    match name {
        Some(value) if !in_kubernetes => {
            let reason = format!("goes with --world {KUBERNETES} only");
            Err(ConfigError::Flag { flag: "daemon-set", value, reason })
        }
        name => Ok(name),
    }
}

fn check_admin(admin: SocketAddr) -> Result<(), ConfigError> {
    if admin.ip().is_loopback() {
        return Ok(());
    }
    Err(ConfigError::Flag {
        flag: "admin",
        value: admin.to_string(),
        reason: "metrics are served without authentication, so on loopback only, for example 127.0.0.1:15020".into(),
    })
}

fn trust_domain(given: Option<&str>) -> Result<TrustDomain, ConfigError> {
    let name = given.unwrap_or(DEFAULT_TRUST_DOMAIN);
    name.parse().map_err(|error: warren_core::identity::SpiffeIdError| ConfigError::Flag {
        flag: "trust-domain",
        value: name.to_owned(),
        reason: error.to_string(),
    })
}

fn workers(given: Option<usize>) -> Result<usize, ConfigError> {
    let most = warren_ebpf_abi::MAX_WORKERS as usize;
    match given {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from).min(most)),
        Some(count) if (1..=most).contains(&count) => Ok(count),
        Some(count) => {
            Err(ConfigError::Flag { flag: "workers", value: count.to_string(), reason: format!("from 1 to {most}") })
        }
    }
}

fn audit_log(text: &str) -> AuditLog {
    match text {
        "none" => AuditLog::None,
        "-" => AuditLog::Stdout,
        path => AuditLog::File(PathBuf::from(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let fixed = ["warren", "agent", "--world", "mesh.yaml", "--ca-dir", "ca"];
        let cli = Cli::try_parse_from(fixed.iter().chain(flags)).unwrap();
        let Command::Agent(agent) = cli.command else { panic!("not the agent command") };
        Config::new(agent.run.unwrap())
    }

    #[test]
    fn defaults_follow_from_the_node() {
        let config = config(&["--node", "n1"]).unwrap();
        assert_eq!(config.run_dir, Path::new("/run/warren/n1"));
        assert_eq!(config.trust_domain.as_str(), "cluster.local");
        assert_eq!(config.leaf_ttl, Duration::from_secs(24 * 3600));
        assert_eq!(config.audit_log, AuditLog::Stdout);
    }

    #[test]
    fn a_node_name_cannot_leave_its_folder() {
        for bad in ["../x", "a/b", "", ".hidden", "UPPER"] {
            assert!(config(&["--node", bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_of_one_world_do_not_go_with_the_other() {
        let with = |flags: &[&str]| {
            let cli =
                Cli::try_parse_from(["warren", "agent", "--node", "n", "--ca-dir", "ca"].iter().chain(flags)).unwrap();
            let Command::Agent(agent) = cli.command else { panic!("not the agent command") };
            Config::new(agent.run.unwrap()).map(|config| config.world).map_err(|error| error.to_string())
        };
        let kubernetes = with(&["--world", "kubernetes", "--captured", "10.1.2.3/16"]).unwrap();
        let captured = vec!["10.1.0.0/16".parse().unwrap()];
        assert_eq!(kubernetes, WorldSource::Kubernetes { kubeconfig: None, captured });
        assert_eq!(with(&["--world", "./kubernetes"]), Ok(WorldSource::Files("./kubernetes".into())));
        for wrong in [["--kubeconfig", "k"], ["--captured", "10.0.0.0/8"]] {
            let error = with(&["--world", "mesh.yaml", wrong[0], wrong[1]]).unwrap_err();
            assert!(error.starts_with(wrong[0]) && error.contains("--world kubernetes"), "{error}");
        }
        assert!(with(&["--world", "kubernetes", "--captured", "0.0.0.0/0"]).is_err());
    }

    #[test]
    fn metrics_stay_on_loopback() {
        assert!(config(&["--node", "n1", "--admin", "0.0.0.0:15020"]).is_err());
        assert!(config(&["--node", "n1", "--admin", "[::1]:15020"]).is_ok());
    }

    #[test]
    fn early_data_can_be_switched_off_per_peer() {
        let config = config(&["--node", "n1", "--no-early-data-to", "10.0.0.1"]).unwrap();
        assert!(!config.early_data.allowed_to("10.0.0.1".parse().unwrap()));
        assert!(config.early_data.allowed_to("10.0.0.2".parse().unwrap()));
    }
}
