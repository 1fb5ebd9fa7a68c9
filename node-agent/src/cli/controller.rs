//! `warren controller`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// The flags of a controller.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// Namespace of Warren's own objects.
    #[arg(long, default_value = "warren-system")]
    pub(crate) namespace: String,
    /// SPIFFE trust domain of this mesh; agents must be told the same.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// Where agents ask for SVIDs.
    #[arg(long, default_value = "[::]:15012")]
    pub(crate) listen: SocketAddr,
    /// Where health and metrics are.
    #[arg(long, default_value = "[::]:15020")]
    pub(crate) admin: SocketAddr,
    /// Lifetime of a pod's SVID; agents renew at half of it.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) leaf_ttl: Duration,
    /// Name of this replica in the Lease, such as its pod's [default: a random one].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How to reach the API server [default: as this pod is told by kubelet].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Log filter, as in RUST_LOG.
    #[arg(long, default_value = "info")]
    pub(crate) log: String,
    /// Write logs as JSON.
    #[arg(long)]
    pub(crate) log_json: bool,
}
