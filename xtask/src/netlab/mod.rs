//! Simulated nodes and pods: network namespaces joined by links, and programs
//! in them. The demo and the benchmark say who lives there.

pub(crate) mod network;
pub(crate) mod process;

use std::path::{Path, PathBuf};

/// Where a named network namespace is.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}
