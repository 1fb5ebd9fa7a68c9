//! The audit sink: JSON lines through a bounded queue and a thread of its own.
//!
//! The data path never waits for a disk. What does not fit is dropped, counted
//! and said; a full disk or a vanished file is tried again with every event.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::metrics::Metrics;

/// Where audit events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTarget {
    /// A file, appended to, mode 0600; opened again when it was rotated away.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Nowhere.
    None,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The sending end of the audit stream; usable from all threads.
pub struct AuditSink {
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
}

impl AuditSink {
    /// Opens the target and starts the writer. A file that cannot be opened at
    /// the start is an error: an operator who asked for evidence must know.
    pub(super) fn open(target: &AuditTarget, queue: usize, metrics: Arc<Metrics>) -> io::Result<Self> {
        let output = match target {
            AuditTarget::None => return Ok(Self { queue: None, writer: None, metrics }),
            AuditTarget::Stdout => Output::Stdout,
            AuditTarget::File(path) => Output::File(AuditFile::open(path)?),
        };
        let (tx, rx) = sync_channel(queue.max(1));
        let counted = Arc::clone(&metrics);
        let writer = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || Writer { output, metrics: counted, failing: false }.run(&rx))?;
        Ok(Self { queue: Some(tx), writer: Some(writer), metrics })
    }

    /// Queues one event. Never blocks; a full queue drops it and counts it.
    pub fn write<T: Serialize>(&self, event: &T) {
        let Some(queue) = &self.queue else { return };
        let Ok(mut line) = serde_json::to_vec(event) else {
            self.metrics.audit_dropped("unserialisable");
            return;
        };
        line.push(b'\n');
        match queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.metrics.audit_dropped("queue_full"),
            Err(TrySendError::Disconnected(_)) => self.metrics.audit_dropped("writer_gone"),
        }
    }

    /// Waits until everything queued so far is written, at most `limit`. False
    /// if it did not get done. Blocks the thread: for the end of the process.
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(queue) = &self.queue else { return true };
        let (done, waiting) = sync_channel(1);
        queue.send(Message::Flush(done)).is_ok() && waiting.recv_timeout(limit).is_ok()
    }
}

impl Drop for AuditSink {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Bytes of audit events that are written in one step.
const MOST_AT_ONCE: usize = 64 * 1024;

/// How long an event waits for others before they are written.
const GATHER: Duration = Duration::from_millis(2);

enum Output {
    Stdout,
    File(AuditFile),
}

struct Writer {
    output: Output,
    metrics: Arc<Metrics>,
    failing: bool,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Message>) {
        while let Ok(message) = queue.recv() {
            match message {
                Message::Line(line) => self.write_with_followers(line, queue),
                Message::Flush(done) => {
                    let _ = done.try_send(());
                }
            }
        }
    }

    /// Writes a line, and at once those that wait behind it: a write each costs more than making the event.
    fn write_with_followers(&mut self, mut lines: Vec<u8>, queue: &Receiver<Message>) {
        // While this thread sleeps for a while, workers that leave it something need not wake it.
        std::thread::sleep(GATHER);
        let mut count = 1;
        while lines.len() < MOST_AT_ONCE {
            match queue.try_recv() {
                Ok(Message::Line(line)) => {
                    lines.extend_from_slice(&line);
                    count += 1;
                }
                Ok(Message::Flush(done)) => {
                    self.write(&lines, count);
                    let _ = done.try_send(());
                    return;
                }
                Err(_) => break,
            }
        }
        self.write(&lines, count);
    }

    fn write(&mut self, lines: &[u8], count: u64) {
        let written = match &mut self.output {
            Output::Stdout => io::stdout().lock().write_all(lines),
            Output::File(file) => file.append(lines),
        };
        match written {
            Ok(()) => {
                self.metrics.audit_written(count);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("audit events are written again");
                }
            }
            Err(error) => {
                (0..count).for_each(|_| self.metrics.audit_dropped("write_failed"));
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "audit events cannot be written and are dropped");
                }
            }
        }
    }
}

struct AuditFile {
    path: PathBuf,
    file: Option<File>,
    /// The last write ended somewhere inside a line.
    torn: bool,
}

impl AuditFile {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), file: Some(open_append(path)?), torn: false })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.is_current() {
            self.file = None;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open_append(&self.path)?,
        };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        // A failed write drops the handle: the next event opens the file anew.
        self.torn = true;
        file.write_all(line)?;
        self.torn = false;
        self.file = Some(file);
        Ok(())
    }

    /// Whether the open file still is the one under the path.
    fn is_current(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        match (file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(open), Ok(named)) => same(open, named),
            _ => false,
        }
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
