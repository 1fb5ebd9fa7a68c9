//! The agent's side of the file of decisions: written when they change, and anew from time to time, so that its age says
//! how long the agent has been away.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use warren_core::world::World;

use super::decisions::Decisions;

/// How often the agent says that it stands by what it wrote.
const REFRESH: Duration = Duration::from_secs(60);

/// Keeps the file in step with the world.
pub(crate) struct DecisionsWriter {
    path: PathBuf,
    node: String,
    written: Option<(Decisions, Instant)>,
    /// The last attempt failed; said once.
    failing: bool,
}

impl DecisionsWriter {
    /// A writer that has written nothing yet.
    pub(crate) fn new(path: PathBuf, node: String) -> Self {
        Self { path, node, written: None, failing: false }
    }

    /// Writes the file if it says something else than this world, or is about to look old. `current` is whether the
    /// world's source can be read: decisions that may be outdated are not made to look young.
    pub(crate) fn keep(&mut self, world: &World, current: bool) {
        let mut fresh = Decisions::of(world, &self.node);
        if let Some((last, at)) = &self.written {
            let same = last.namespaces == fresh.namespaces && last.pods == fresh.pods;
            if same && (!current || at.elapsed() < REFRESH) {
                return;
            }
        }
        fresh.written = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match fresh.write(&self.path) {
            Ok(()) => {
                self.written = Some((fresh, Instant::now()));
                self.failing = false;
            }
            Err(error) if !self.failing => {
                self.failing = true;
                let path = self.path.display();
                tracing::error!(%error, %path, "decisions not written: without the agent, pods will not start by them");
            }
            Err(_) => {}
        }
    }
}
