//! `warren agent cleanup`: removes what an agent left in the kernel.

use std::path::Path;

use crate::capture::{CleanupConfig, cleanup};
use crate::cli::CleanupArgs;
use crate::config::{check_node, default_run_dir};
use crate::exit::{Exit, Fatal};

/// Removes everything, and says what.
pub(crate) fn run(args: &CleanupArgs) -> Result<(), Fatal> {
    check_node(&args.node).map_err(|error| Fatal::new(Exit::Usage, "configuration", &error))?;
    let config = CleanupConfig {
        node: args.node.clone(),
        bpffs: Path::new("/sys/fs/bpf").to_owned(),
        run_dir: args.run_dir.clone().unwrap_or_else(|| default_run_dir(&args.node)),
    };
    let report = cleanup(&config).map_err(|error| Fatal::new(Exit::CleanupIncomplete, "cleanup", &error))?;
    for removed in &report.removed {
        println!("removed {removed}");
    }
    if report.left.is_empty() {
        println!("warren: nothing of node {} is left", args.node);
        return Ok(());
    }
    Err(Fatal { exit: Exit::CleanupIncomplete, message: format!("not removed: {}", report.left.join("; ")) })
}
