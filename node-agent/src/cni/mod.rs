//! Pods in before their first process: the CNI plugin that a container runtime runs, the agent's side of it, the file
//! that decides while the agent is away, and the installer of the plugin's configuration.
//!
//! ```text
//! runtime ─ stdin, environment ─▶ plugin ─ POST /v1/cni/… ─▶ service ─ Call ─▶ control thread: keeper, capture
//!                                   └─ nobody answers ─▶ decisions, as the agent last wrote them
//! ```

mod ask;
mod call;
mod config;
mod decisions;
mod decisions_writer;
mod error;
pub(crate) mod install;
mod plugin;
mod protocol;
mod request;
mod service;

pub(crate) use call::{Call, Place, Taken};
pub(crate) use decisions_writer::DecisionsWriter;
pub(crate) use plugin::run_plugin;
pub(crate) use service::{CniService, bind};

use std::path::{Path, PathBuf};

/// The name the plugin goes by, in configurations and in the runtime's folder of plugins.
pub(crate) const PLUGIN: &str = "warren-cni";

/// The plugin's socket in a run directory.
pub(crate) fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Where a node's decisions are kept if nothing else is said: a place that survives reboots.
pub(crate) fn default_decisions(node: &str) -> PathBuf {
    Path::new("/var/lib/warren").join(node).join("decisions")
}
