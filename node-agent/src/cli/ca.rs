//! `warren ca`

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `warren ca …`
#[derive(Debug, Args)]
pub(crate) struct CaCommand {
    #[command(subcommand)]
    pub(crate) action: CaAction,
}

/// Actions on a CA directory.
#[derive(Debug, Subcommand)]
pub(crate) enum CaAction {
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
