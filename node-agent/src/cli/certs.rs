//! `warren certs`

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

/// `warren certs …`
#[derive(Debug, Args)]
pub(crate) struct CertsCommand {
    #[command(subcommand)]
    pub(crate) action: CertsAction,
}

/// Actions on SVIDs.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsAction {
    /// Have a pod's SVID made anew, with a new key, and wait until it is in use.
    Renew(RenewArgs),
}

/// `warren certs renew`
#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// The pod, which runs on the agent's node.
    #[arg(value_name = "NAMESPACE/POD")]
    pub(crate) pod: String,
    /// How long the new SVID may take to come.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,
    /// Node whose agent is asked, by its default run directory.
    #[arg(long, conflicts_with = "socket")]
    pub(crate) node: Option<String>,
    /// The agent's status socket.
    #[arg(long)]
    pub(crate) socket: Option<PathBuf>,
}
