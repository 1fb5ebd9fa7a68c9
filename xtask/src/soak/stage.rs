//! What the soak builds and takes down again: its directory, namespaces,
//! agents, pods' programs, and what the agents put into the kernel.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::agents::{Agents, Setting};
use super::board::Board;
use super::lab::{NODES, Node, PODS, PREFIX, Pod};
use super::load::{Programs, Shared};
use super::world::World;
use crate::netlab::{lock, network};

const DIRECTORY: &str = "/run/warren-soak";
const LOCK: &str = "warren-soak";
/// As long as a short one takes.
const LOCK_LIMIT: Duration = Duration::from_secs(180);
/// Where the agents pin what outlives them.
const PINS: &str = "/sys/fs/bpf/warren";

/// The built world. Dropping it takes everything down.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) agents: Agents,
    pub(super) board: Arc<Board>,
    /// The pods' programs, by the pods' places.
    programs: [Option<Programs>; PODS.len()],
    pub(super) shared: Shared,
    warren: PathBuf,
    down: bool,
    _alone: UnixListener,
}

impl Stage {
    /// Removes what an earlier run left and builds everything; no agent runs yet.
    pub(super) fn build(warren: &Path, logs: &Path, leaf_ttl: Duration, shared: Shared) -> Result<Self> {
        let alone = lock(LOCK, LOCK_LIMIT)?;
        let left = take_down(warren);
        if !left.is_empty() {
            bail!("an earlier run left things that cannot be removed: {}", left.join(", "));
        }
        let directory = PathBuf::from(DIRECTORY);
        for path in [&directory, logs] {
            fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        }
        clear(logs)?;
        let world = World::new(directory.join("mesh.yaml"));
        let board = Arc::new(Board::default());
        let setting = Setting {
            warren: warren.to_owned(),
            directory,
            logs: logs.to_owned(),
            world: world.path().to_owned(),
            leaf_ttl,
        };
        let agents = Agents::new(setting, Arc::clone(&board))?;
        let programs = [const { None }; PODS.len()];
        let stage =
            Self { world, agents, board, programs, shared, warren: warren.to_owned(), down: false, _alone: alone };
        network::build(&NODES.map(Node::net), &PODS.map(Pod::net))?;
        stage.world.write()?;
        Ok(stage)
    }

    /// Starts agents and pods.
    pub(super) fn start(&mut self) -> Result<()> {
        NODES.into_iter().try_for_each(|node| self.agents.start(node))?;
        (0..PODS.len()).try_for_each(|pod| self.start_pod(pod))
    }

    /// Starts the programs of a pod that is enrolled.
    pub(super) fn start_pod(&mut self, pod: usize) -> Result<()> {
        let programs = Programs::start(pod, &self.shared)?;
        self.board.pod(pod, Some(programs.task()));
        self.programs[pod] = Some(programs);
        Ok(())
    }

    /// Ends the programs of a pod.
    pub(super) fn end_pod(&mut self, pod: usize) {
        self.board.pod(pod, None);
        self.programs[pod] = None;
    }

    /// Ends all programs and both agents, in their order.
    pub(super) fn end_programs(&mut self) {
        (0..PODS.len()).for_each(|pod| self.end_pod(pod));
        self.agents.end_all();
    }

    /// Removes everything; says what could not be removed.
    pub(super) fn end(&mut self) -> Vec<String> {
        self.down = true;
        self.end_programs();
        take_down(&self.warren)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.down {
            for left in self.end() {
                eprintln!("warning: left behind: {left}");
            }
        }
    }
}

/// Logs of an earlier run.
fn clear(logs: &Path) -> Result<()> {
    for entry in fs::read_dir(logs)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "log" || end == "jsonl") {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Removes everything of the soak, whoever started it. Processes in its
/// namespaces are its own: nobody else enters them.
fn take_down(warren: &Path) -> Vec<String> {
    let mut left = network::end_processes(PREFIX);
    for node in NODES.into_iter().filter(|node| has_traces(node.name)) {
        if let Err(error) = Agents::clean_up(warren, Path::new(DIRECTORY), node.name) {
            left.push(format!("{error:#}"));
        }
    }
    left.extend(network::remove(PREFIX).into_iter().map(|name| format!("network namespace {name}")));
    let pins = NODES.into_iter().map(|node| pins(node.name)).filter(|path| path.exists());
    left.extend(pins.map(|path| path.display().to_string()));
    if let Err(error) = fs::remove_dir_all(DIRECTORY)
        && error.kind() != ErrorKind::NotFound
    {
        left.push(format!("{DIRECTORY}: {error}"));
    }
    left
}

fn has_traces(node: &str) -> bool {
    pins(node).exists() || Path::new(DIRECTORY).join(node).exists()
}

/// The directory of a node's pins.
pub(super) fn pins(node: &str) -> PathBuf {
    Path::new(PINS).join(node)
}
