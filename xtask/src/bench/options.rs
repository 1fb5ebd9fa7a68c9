//! What the ladder is asked for.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::path::Path;

/// Options of the ladder.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Two minutes: fewer rows, fewer and shorter rounds.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only rows whose name contains one of these (separated by commas).
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
    /// Only these paths (separated by commas).
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) paths: Vec<Path>,
    /// A peer: `ztunnel=BIN`, `envoy=BIN`; `ztunnel` and `envoy` alone look where they are likely to be. Repeatable.
    #[arg(long = "peer", value_name = "NAME[=BIN]")]
    pub(crate) peers: Vec<String>,
    /// ztunnel's source tree (default: WARREN_ZTUNNEL_SOURCE, else found beside its binary).
    #[arg(long, value_name = "DIR")]
    pub(crate) peer_dir: Option<PathBuf>,
    /// This agent rather than the one built from this tree.
    #[arg(long, value_name = "PATH")]
    pub(crate) warren_bin: Option<PathBuf>,
    /// A flag for the agents, as `--agent-flag=--workers=1`. Repeatable.
    #[arg(long = "agent-flag", value_name = "FLAG")]
    pub(crate) agent_flags: Vec<String>,
    /// This load generator rather than the one built from this tree.
    #[arg(skip)]
    pub(crate) load_bin: Option<PathBuf>,
    /// How often each path is measured, in turn with the others [default: 5; quick: 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement [default: 2; quick: 0.4].
    #[arg(long)]
    seconds: Option<f64>,
    /// Connections that the idle row holds.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) idle: usize,
    /// Where the reports go [default: target/bench].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Take the binaries as they are.
    #[arg(long)]
    pub(crate) no_build: bool,
}

impl Options {
    /// What the smoke test runs: two rows, two paths, the built binaries of the tests.
    pub(crate) fn smoke(binaries: &std::path::Path, out: PathBuf) -> Self {
        Self {
            quick: true,
            rows: vec!["rr-64-16".into(), "stream-1-up".into()],
            paths: vec![Path::Plain, Path::Warren],
            peers: Vec::new(),
            peer_dir: None,
            agent_flags: Vec::new(),
            warren_bin: Some(binaries.join("warren")),
            load_bin: Some(binaries.join("warren-load")),
            rounds: Some(2),
            seconds: Some(0.3),
            idle: 100,
            out: Some(out),
            no_build: true,
        }
    }

    /// How often each path is measured.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    /// How long a measurement takes.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.4 } else { 2.0 })
    }

    /// How long the load runs before that.
    pub(crate) fn warmup(&self) -> f64 {
        (self.seconds() / 5.0).clamp(0.1, 0.5)
    }

    /// How long nothing may happen.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(15)
    }

    /// Whether a row was asked for by name.
    pub(crate) fn names_row(&self, id: &str) -> bool {
        self.rows.iter().any(|part| id.contains(part.trim()))
    }

    /// The paths that were asked for, in the order of reports. Peers and splice
    /// are taken where they are there.
    pub(crate) fn paths(&self, available: impl Fn(Path) -> bool) -> Vec<Path> {
        let asked = |path: &Path| self.paths.is_empty() || self.paths.contains(path);
        Path::value_variants().iter().copied().filter(|path| asked(path) && available(*path)).collect()
    }
}
