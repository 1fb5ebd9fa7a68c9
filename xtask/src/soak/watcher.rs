//! Looks at everything every few seconds while the load runs, and says how it goes.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::agents::Setting;
use super::board::Board;
use super::lab::NODES;
use super::ledger::Ledger;
use super::rotation::Rotations;
use super::sample::{Sample, Sampler};

/// An audit log that is longer is emptied: a soak may last for hours.
const LONGEST_AUDIT_LOG: u64 = 256 << 20;
/// Between two progress lines that go to a file rather than a terminal.
const SAY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) samples: Vec<Sample>,
    pub(super) rotations: Rotations,
    pub(super) sampler: Sampler,
}

/// Whom to look at, and how often.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) board: Arc<Board>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) setting: Setting,
    pub(super) every: Duration,
}

/// A thread that looks. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to look.
    pub(super) fn start(watched: Watched) -> Result<Self> {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::Builder::new().name("watcher".into());
        let thread = thread.spawn(move || look_until(&stopped, &watched, &shared))?;
        Ok(Self { stop, seen, thread: Some(thread) })
    }

    /// What it saw so far.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Ends it, and gives what it saw.
    pub(super) fn stop(mut self) -> Result<Seen> {
        self.end();
        let seen = std::mem::take(&mut *lock(&self.seen));
        if seen.samples.is_empty() { Err(anyhow!("no sample was taken")) } else { Ok(seen) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_until(stop: &AtomicBool, watched: &Watched, seen: &Mutex<Seen>) {
    let mut progress = Progress::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let running = watched.board.running();
        {
            let mut seen = lock(seen);
            let sample = seen.sampler.take(&running, &watched.ledger);
            progress.say(&sample, seen.samples.last());
            seen.samples.push(sample);
            seen.rotations.look(&running, &watched.setting);
        }
        for node in NODES {
            shorten(&watched.setting.audit_log(node));
        }
        while began.elapsed() < watched.every && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(POLL);
        }
    }
    progress.end();
}

/// The agent appends: it goes on at the new end.
fn shorten(log: &Path) {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LONGEST_AUDIT_LOG)
        && let Ok(file) = OpenOptions::new().write(true).open(log)
    {
        let _ = file.set_len(0);
    }
}

struct Progress {
    terminal: bool,
    said: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), said: None }
    }

    fn say(&mut self, sample: &Sample, before: Option<&Sample>) {
        let due = self.said.is_none_or(|said| said.elapsed() >= SAY);
        if !self.terminal && !due {
            return;
        }
        self.said = Some(Instant::now());
        let (start, end) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        eprint!("{start}  {}{end}", line(sample, before));
        let _ = io::stderr().flush();
    }

    fn end(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(sample: &Sample, before: Option<&Sample>) -> String {
    let rate = before.map_or(0.0, |before| {
        let seconds = (sample.at - before.at).max(0.001);
        (sample.shorts - before.shorts) as f32 / seconds
    });
    let rss = sample.agents.each_ref().map(|held| held.as_ref().map_or("away".into(), |held| mib(held.rss)));
    format!(
        "{:>5.0} s  {} short connections ({rate:.0}/s), {} open, RSS {} MiB, faults {}",
        sample.at,
        sample.shorts,
        sample.open,
        rss.join(" and "),
        sample.faults
    )
}

/// Bytes in MiB.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
