//! Removing everything an agent left, when no agent of that node runs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::CaptureError;
use super::near;
use super::pins::Pins;
use super::state::{Record, State};
use crate::sys::netns::NetNs;
use crate::sys::sock_diag;

/// What is to be cleaned up.
#[derive(Debug, Clone)]
pub(crate) struct CleanupConfig {
    /// The node.
    pub(crate) node: String,
    /// Where the bpf file system is mounted.
    pub(crate) bpffs: PathBuf,
    /// The run directory of the node's agent.
    pub(crate) run_dir: PathBuf,
}

/// What a cleanup did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CleanupReport {
    /// What was removed.
    pub(crate) removed: Vec<String>,
    /// What could not be, and why.
    pub(crate) left: Vec<String>,
}

/// Removes pins, with them links and maps, and in every pod's network namespace rules, routes and settings.
pub(crate) fn cleanup(config: &CleanupConfig) -> Result<CleanupReport, CaptureError> {
    let mut report = CleanupReport::default();
    let mut state = State::open(&config.run_dir, &config.node)?;
    let pins = Pins::new(&config.bpffs, &config.node);
    if let Err(error) = end_near(&pins, &state) {
        report.left.push(format!("connections within the node: {error}"));
    }
    // Programs first: what is captured after its rules are gone would hang.
    match pins.remove_all() {
        Ok(pins) => report.removed.extend(pins.iter().map(|pin| pin.display().to_string())),
        Err(error) => report.left.push(error.to_string()),
    }
    let pods = state.pods().clone();
    for (cookie, record) in pods {
        match restore(cookie, &record) {
            Ok(()) => {
                report.removed.push(format!("rules and routes of pod {} in {}", record.uid, record.netns.display()));
                state.remove(cookie)?;
            }
            Err(error) => report.left.push(error.to_string()),
        }
    }
    if report.left.is_empty() {
        state.delete()?;
        // The agent's other files may be there.
        let _ = fs::remove_dir(&config.run_dir);
    }
    Ok(report)
}

/// Ends connections that took the kernel path: without the programs they would go on in clear, by the shared network.
fn end_near(pins: &Pins, state: &State) -> Result<(), CaptureError> {
    let Some(ways) = near::pinned_ways(pins)? else { return Ok(()) };
    for (cookie, record) in state.pods() {
        let Some(netns) = find(*cookie, &record.netns) else { continue };
        let ended = netns.enter(|| {
            for connection in sock_diag::tcp_connections()? {
                if ways.contains(&near::leaving(connection.local, connection.remote)) {
                    sock_diag::destroy(&connection)?;
                }
            }
            Ok(())
        });
        ended.and_then(|result| result).map_err(CaptureError::file(&record.netns))?;
    }
    Ok(())
}

/// Makes a pod's network namespace what it was. One that is gone needs nothing.
pub(super) fn restore(cookie: u64, record: &Record) -> Result<(), CaptureError> {
    let Some(netns) = find(cookie, &record.netns) else { return Ok(()) };
    let undone = netns.enter(|| record.plumbing.undo()).and_then(|result| result);
    undone.map_err(|source| CaptureError::Plumbing { path: netns.path().to_owned(), source })
}

/// The namespace with this cookie: at its path, or, if that is gone or leads elsewhere, that of any process.
fn find(cookie: u64, path: &Path) -> Option<NetNs> {
    let is_it = |path: &Path| NetNs::open(path).ok().filter(|netns| netns.cookie() == cookie);
    if let Some(netns) = is_it(path) {
        return Some(netns);
    }
    let mut seen = BTreeSet::new();
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    processes
        .chain(named)
        .filter(|path| fs::metadata(path).is_ok_and(|meta| seen.insert(meta.ino())))
        .find_map(|path| is_it(&path))
}
