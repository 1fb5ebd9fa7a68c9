use std::path::PathBuf;
use std::time::Duration;

use super::splice::Which;

/// A socket mark and the bits of it that belong to capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The mark; it lies within the mask and is not 0.
    pub(crate) value: u32,
    /// The bits that are set and compared.
    pub(crate) mask: u32,
}

/// How a node captures.
#[derive(Debug, Clone)]
pub(crate) struct CaptureConfig {
    /// Name of the node; agents of different nodes on one kernel do not disturb each other.
    pub(crate) node: String,
    /// Where the bpf file system is, or is to be, mounted.
    pub(crate) bpffs: PathBuf,
    /// Directory of the state file, which says what a cleanup has to undo.
    pub(crate) run_dir: PathBuf,
    /// Mark of captured sockets.
    pub(crate) mark: Mark,
    /// How long connections wait for an agent that is away before they are refused.
    pub(crate) away_wait: Duration,
    /// Congestion control of tunnels; `None` is the node's default.
    pub(crate) tunnel_congestion: Option<String>,
    /// Number of workers, each with listeners of its own.
    pub(crate) workers: usize,
    /// Number of the routing table used inside pods.
    pub(crate) route_table: u32,
    /// Whether connections between pods of this node may take the kernel path.
    pub(crate) near: bool,
    /// Cgroups that pods' cgroups lie in, as paths below the root of the hierarchy; none are looked for.
    pub(crate) pod_cgroups: Vec<PathBuf>,
    /// Bytes of which such connections go from socket to socket, where the kernel does that right; `None` is none.
    pub(crate) splice: Option<Which>,
    /// How long the self-test of an enrolment may take.
    pub(crate) self_test_timeout: Duration,
}
