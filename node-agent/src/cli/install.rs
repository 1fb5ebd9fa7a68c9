//! `warren crds`, `warren uninstall`, `warren doctor`

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

/// `warren crds …`
#[derive(Debug, Args)]
pub(crate) struct CrdsCommand {
    #[command(subcommand)]
    pub(crate) action: CrdsAction,
}

/// Actions on the kinds that Warren reads.
#[derive(Debug, Subcommand)]
pub(crate) enum CrdsAction {
    /// Create those that the cluster lacks; what exists, Istio's above all, is not touched.
    Install(ApiArgs),
}

/// A cluster.
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// How to reach the API server [default: $KUBECONFIG, or ~/.kube/config, or as a pod is told by kubelet].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// `warren uninstall`
#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Namespace of Warren's own objects.
    #[arg(long, default_value = "warren-system")]
    pub(crate) namespace: String,
    /// Delete the certificate authority's keys, the namespace and Warren's own CRD as well. Without it a later install
    /// goes on with the same roots.
    #[arg(long)]
    pub(crate) purge: bool,
    /// How long the agents may take to clean their nodes.
    #[arg(long, default_value = "3m", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,
}

/// `warren doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Namespace of Warren's own objects.
    #[arg(long, default_value = "warren-system")]
    pub(crate) namespace: String,
    /// Check the cluster only, not the machine that this runs on.
    #[arg(long, conflicts_with_all = ["node_only", "clean_node"])]
    pub(crate) cluster_only: bool,
    /// Check this machine only, as a node.
    #[arg(long)]
    pub(crate) node_only: bool,
    /// Remove what an agent left on this node, which must not run: kernel objects, rules, the CNI plugin, decisions.
    #[arg(long, requires = "node")]
    pub(crate) clean_node: bool,
    /// Name of this node.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
