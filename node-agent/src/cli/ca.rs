//! `warren ca`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::controller::state::What;

/// `warren ca …`
#[derive(Debug, Args)]
pub(crate) struct CaCommand {
    #[command(subcommand)]
    pub(crate) action: CaAction,
}

/// Actions on the controllers' authority in a cluster, and on a CA directory.
#[derive(Debug, Subcommand)]
pub(crate) enum CaAction {
    /// Cluster: show the trusted roots, who signs, and how far a rotation is.
    Status(CaStatusArgs),
    /// Cluster: replace the root or the intermediate, step by step, as all nodes follow.
    Rotate(CaRotateArgs),
    /// Cluster: write all keys and certificates to a file, which must then be kept as safe as they are.
    Backup(CaBackupArgs),
    /// Cluster: put the keys and certificates of a backup back.
    Restore(CaRestoreArgs),
    /// Make a directory with a first root.
    Init(CaInitArgs),
    /// Add a second root: trusted by every agent at once, not signing yet.
    AddRoot(CaDirArgs),
    /// Let a root sign from now on.
    Activate(CaRootArgs),
    /// Trust a root no longer; refused for the signing one.
    RemoveRoot(CaRootArgs),
    /// List the roots, their expiry, and which one signs.
    List(CaDirArgs),
}

/// A CA directory.
#[derive(Debug, Args)]
pub(crate) struct CaDirArgs {
    /// The CA directory.
    #[arg(long)]
    pub(crate) ca_dir: PathBuf,
}

/// A CA directory to be made.
#[derive(Debug, Args)]
pub(crate) struct CaInitArgs {
    /// The CA directory.
    #[arg(long)]
    pub(crate) ca_dir: PathBuf,
    /// SPIFFE trust domain the root is for.
    #[arg(long)]
    pub(crate) trust_domain: String,
}

/// One root of a CA directory.
#[derive(Debug, Args)]
pub(crate) struct CaRootArgs {
    /// The CA directory.
    #[arg(long)]
    pub(crate) ca_dir: PathBuf,
    /// Name of the root, as `warren ca list` shows it.
    pub(crate) root: String,
}

/// A cluster.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// How to reach the API server [default: $KUBECONFIG, or ~/.kube/config, or as a pod is told by kubelet].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespace of Warren's own objects.
    #[arg(long, default_value = "warren-system")]
    pub(crate) namespace: String,
    /// SPIFFE trust domain of the mesh.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) trust_domain: String,
}

/// `warren ca status`
#[derive(Debug, Args)]
pub(crate) struct CaStatusArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `warren ca rotate`
#[derive(Debug, Args)]
pub(crate) struct CaRotateArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// What is replaced.
    #[arg(value_enum, default_value = "root", conflicts_with = "force")]
    pub(crate) what: What,
    /// Do not wait for the nodes that the rotation under way waits for: their pods are cut off until their agents
    /// follow.
    #[arg(long)]
    pub(crate) force: bool,
    /// Return at once instead of when all nodes have followed.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `warren ca backup`
#[derive(Debug, Args)]
pub(crate) struct CaBackupArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// File to write, readable by its owner only; `-` is standard output, for a program that encrypts it.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// `warren ca restore`
#[derive(Debug, Args)]
pub(crate) struct CaRestoreArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// A file that `backup` wrote; `-` is standard input.
    pub(crate) file: PathBuf,
    /// Replace keys that are there.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Restore although pods have SVIDs of roots that are not in the backup: they are cut off until they are renewed.
    #[arg(long)]
    pub(crate) force: bool,
}
