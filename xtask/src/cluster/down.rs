//! Taking a cluster down, whatever state it is in and whoever started it.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::cgroups::{self, Hierarchy};
use super::names::{ClusterName, Member, Node};
use super::state::State;
use crate::netlab::network;
use crate::workspace::Workspace;

/// Removes everything of a cluster; an error names what stays.
pub(crate) fn take_down(state: &State) -> Result<()> {
    let left = remove(state)?;
    if left.is_empty() { Ok(()) } else { bail!("left behind: {}", left.join(", ")) }
}

fn remove(state: &State) -> Result<Vec<String>> {
    let prefix = state.name().prefix();
    let hierarchies = Hierarchy::all()?;
    let mut left = Vec::new();
    for name in cgroups::existing(&hierarchies, &prefix) {
        left.extend(cgroups::end(&hierarchies, &name));
    }
    // What was started in its networks from outside: a kubectl that still waits.
    left.extend(network::end_processes(&prefix));
    left.extend(network::remove(&prefix).into_iter().map(|name| format!("network namespace {name}")));
    left.extend(state.remove());
    Ok(left)
}

/// Whether anything of a cluster is there.
pub(crate) fn has_traces(name: &ClusterName, state: &State) -> Result<bool> {
    let hierarchies = Hierarchy::all()?;
    let prefix = name.prefix();
    Ok(state.exists() || !cgroups::existing(&hierarchies, &prefix).is_empty() || !network::existing(&prefix).is_empty())
}

/// Keeps the logs of a cluster that did not come up; returns where.
pub(crate) fn save_logs(workspace: &Workspace, state: &State, nodes: &[Node]) -> Option<String> {
    let to = workspace.logs().join(format!("cluster-{}", state.name()));
    fs::remove_dir_all(&to).ok();
    fs::create_dir_all(&to).ok()?;
    for member in [Member::ControlPlane].into_iter().chain(nodes.iter().map(|node| Member::Node(*node))) {
        for folder in [state.logs(member), state.member(member)] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                save(&entry.path(), &to, member);
            }
        }
    }
    Some(to.display().to_string())
}

fn save(file: &Path, to: &Path, member: Member) {
    if file.extension().is_some_and(|extension| extension == "log")
        && let Some(name) = file.file_name()
    {
        let _ = fs::copy(file, to.join(format!("{member}-{}", name.to_string_lossy())));
    }
}
