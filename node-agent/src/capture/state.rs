//! What a later agent, or a cleanup, has to know: a small file in the run directory, written before each change.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use warren_ebpf_abi::ABI_VERSION;

use super::error::CaptureError;
use super::plumbing::Plumbing;

/// Number of this file's form.
const VERSION: u32 = 2;
/// The oldest form that is read: it differs by what it does not say.
const OLDEST: u32 = 1;
const FILE: &str = "capture.json";
const LOCK: &str = "capture.lock";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A pod as it was enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uid: String,
    pub(super) netns: PathBuf,
    pub(super) plumbing: Plumbing,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    abi: u32,
    /// Cookies are unique within one run of the kernel only.
    boot: String,
    /// By cookie of the network namespace.
    pods: BTreeMap<u64, Record>,
}

/// The state file of a node, held by one process at a time.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    pods: BTreeMap<u64, Record>,
    boot: String,
    _lock: Flock<File>,
}

impl State {
    /// Reads the file, if there is one, and keeps others away from it.
    pub(super) fn open(run_dir: &Path, node: &str) -> Result<Self, CaptureError> {
        super::pins::make_dir(run_dir)?;
        let lock = lock(&run_dir.join(LOCK), node)?;
        let path = run_dir.join(FILE);
        let boot = fs::read_to_string(BOOT_ID).map_err(CaptureError::file(BOOT_ID))?.trim().to_owned();
        let pods = read(&path, &boot)?;
        Ok(Self { path, pods, boot, _lock: lock })
    }

    /// Pods that were written down, by cookie.
    pub(super) fn pods(&self) -> &BTreeMap<u64, Record> {
        &self.pods
    }

    /// Writes a pod down.
    pub(super) fn insert(&mut self, cookie: u64, record: Record) -> Result<(), CaptureError> {
        if self.pods.get(&cookie) == Some(&record) {
            return Ok(());
        }
        self.pods.insert(cookie, record);
        self.save()
    }

    /// Strikes a pod out.
    pub(super) fn remove(&mut self, cookie: u64) -> Result<(), CaptureError> {
        if self.pods.remove(&cookie).is_none() {
            return Ok(());
        }
        self.save()
    }

    /// Removes the file and the lock.
    pub(super) fn delete(self) -> Result<(), CaptureError> {
        for path in [self.path.clone(), self.path.with_file_name(LOCK)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(CaptureError::file(path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Replaces the file in one step, so that a crash leaves the old one or the new one.
    fn save(&self) -> Result<(), CaptureError> {
        let content = Content { version: VERSION, abi: ABI_VERSION, boot: self.boot.clone(), pods: self.pods.clone() };
        let fresh = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            fs::write(&fresh, serde_json::to_vec(&content)?)?;
            fs::rename(&fresh, &self.path)
        };
        write().map_err(CaptureError::file(&self.path))
    }
}

/// Makes sure that nobody holds the node. Nothing is made where nothing is.
pub(crate) fn must_be_free(run_dir: &Path, node: &str) -> Result<(), CaptureError> {
    if run_dir.is_dir() { lock(&run_dir.join(LOCK), node).map(drop) } else { Ok(()) }
}

fn lock(path: &Path, node: &str) -> Result<Flock<File>, CaptureError> {
    let file = File::create(path).map_err(CaptureError::file(path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| CaptureError::Busy { node: node.to_owned(), lock: path.to_owned() })
}

fn read(path: &Path, boot: &str) -> Result<BTreeMap<u64, Record>, CaptureError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.map_err(CaptureError::file(path))?,
    };
    let content: Content = serde_json::from_slice(&text).map_err(|error| CaptureError::file(path)(error.into()))?;
    if (OLDEST..=VERSION).contains(&content.version) {
        return Ok(if content.boot == boot { content.pods } else { BTreeMap::new() });
    }
    let reason = format!("form {} is not known to this version, which writes {VERSION}", content.version);
    Err(CaptureError::file(path)(io::Error::new(io::ErrorKind::InvalidData, reason)))
}
