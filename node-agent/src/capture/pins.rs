//! The directory of pins: where each map and link of a node is, and how it is replaced and removed.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::links::{FdLink, PinnedLink};
use warren_ebpf_abi::{ABI_VERSION, map};

use super::bpf::{self, BpfError};
use super::error::CaptureError;
use super::object::Link;

/// `f_type` of the bpf file system.
const BPF_FS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0xcafe_4a11);

/// The pins of one node.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    node: PathBuf,
}

impl Pins {
    pub(super) fn new(bpffs: &Path, node: &str) -> Self {
        Self { node: bpffs.join("warren").join(file_name(node)) }
    }

    /// The directory of this version of the contract.
    pub(super) fn version(&self) -> PathBuf {
        self.node.join(format!("v{ABI_VERSION}"))
    }

    /// Where one of the node's maps is.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.version().join("maps").join(name)
    }

    /// Where the link of one of the node's programs is.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.version().join("links").join(program)
    }

    /// The directory of a pod's maps and links.
    pub(super) fn pod(&self, cookie: u64) -> PathBuf {
        pod_in(&self.version(), cookie)
    }

    /// The directory of the links of programs on pods' links.
    pub(super) fn wires(&self) -> PathBuf {
        self.version().join("wires")
    }

    /// Makes the directories, for root alone; mounts the bpf file system if it is not.
    pub(super) fn prepare(&self, bpffs: &Path) -> Result<(), CaptureError> {
        mount(bpffs)?;
        for part in ["maps", "links", "pods", "wires"] {
            make_dir(&self.version().join(part))?;
        }
        Ok(())
    }

    /// Cookies of the pods that have pins.
    pub(super) fn pods(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.version().join("pods")) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes the pins of a pod; links first, so that no program runs without its maps being known.
    pub(super) fn remove_pod(&self, cookie: u64) -> Result<(), CaptureError> {
        remove_tree(&self.pod(cookie)).map(drop)
    }

    /// Removes the pins of other versions of the contract; returns what was removed.
    pub(super) fn remove_other_versions(&self) -> Result<Vec<PathBuf>, CaptureError> {
        let mut removed = Vec::new();
        for version in self.other_versions() {
            removed.extend(remove_tree(&version)?);
        }
        Ok(removed)
    }

    /// Whether an agent of another version of the contract captures a pod.
    pub(super) fn has_pod_elsewhere(&self, cookie: u64) -> bool {
        self.other_versions().iter().any(|version| pod_in(version, cookie).exists())
    }

    /// Makes other versions' programs let go of a pod that ours capture: they would hold or refuse its connections.
    pub(super) fn take_pod_over(&self, cookie: u64) -> Result<(), CaptureError> {
        for version in self.other_versions() {
            // Every version keys this map by the cookie; what the values are is its own affair.
            if let Ok(pods) = MapData::from_pin(version.join("maps").join(map::PODS)) {
                bpf::delete(pods.fd().as_fd(), &cookie).map_err(BpfError::map_io(map::PODS))?;
            }
            remove_tree(&pod_in(&version, cookie))?;
        }
        Ok(())
    }

    fn other_versions(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.node) else { return Vec::new() };
        let current = self.version();
        entries.flatten().map(|entry| entry.path()).filter(|path| *path != current).collect()
    }

    /// Removes everything of the node; returns what was removed.
    pub(super) fn remove_all(&self) -> Result<Vec<PathBuf>, CaptureError> {
        let removed = remove_tree(&self.node)?;
        if let Some(parent) = self.node.parent() {
            // Other nodes may have pins there.
            let _ = fs::remove_dir(parent);
        }
        Ok(removed)
    }
}

fn pod_in(version: &Path, cookie: u64) -> PathBuf {
    version.join("pods").join(cookie.to_string())
}

/// A directory for root alone.
pub(super) fn make_dir(path: &Path) -> Result<(), CaptureError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(CaptureError::file(path))
}

/// Pins a link in the place of an earlier one, which is detached by that, without a moment in which there is none.
pub(super) fn replace_link(link: Link, path: &Path, program: &'static str) -> Result<(), CaptureError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("-new");
    let fresh = PathBuf::from(fresh);
    remove_file(&fresh)?;
    let wrap = |reason: String| CaptureError::Bpf(BpfError::Link { program, reason });
    link.pin(&fresh).map_err(wrap)?;
    fs::rename(&fresh, path).map_err(CaptureError::file(path))
}

/// Id of the program behind a pinned link.
pub(super) fn linked_program(path: &Path, program: &'static str) -> Result<u32, CaptureError> {
    let wrap = |error: aya::programs::links::LinkError| {
        CaptureError::Bpf(BpfError::Link { program, reason: error.to_string() })
    };
    if !path.exists() {
        return Err(CaptureError::NotAttached { program });
    }
    let link = FdLink::from(PinnedLink::from_pin(path).map_err(wrap)?);
    Ok(link.info().map_err(wrap)?.program_id())
}

fn mount(bpffs: &Path) -> Result<(), CaptureError> {
    let wrap = |source: io::Error| CaptureError::NoBpfFs { path: bpffs.to_owned(), source };
    let there = nix::sys::statfs::statfs(bpffs).map_err(|error| wrap(error.into()))?;
    if there.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("bpf"), bpffs, Some("bpf"), flags, None::<&str>).map_err(|error| wrap(error.into()))
}

/// The name of a node as a file name: the bpf file system takes no dots.
fn file_name(node: &str) -> String {
    let mut name = String::with_capacity(node.len());
    for byte in node.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            other => name.push_str(&format!("_{other:02x}")),
        }
    }
    name
}

/// Removes a pin, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<(), CaptureError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CaptureError::file(path)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let mut removed = Vec::new();
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        other => other.map_err(CaptureError::file(path))?,
    };
    let (mut directories, mut files) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory { directories.push(entry.path()) } else { files.push(entry.path()) }
    }
    // "links" before "maps", and links, in lower case, before maps, in upper case.
    directories.sort();
    files.sort();
    for directory in directories {
        removed.extend(remove_tree(&directory)?);
    }
    for file in files.into_iter().rev() {
        remove_file(&file)?;
        removed.push(file);
    }
    fs::remove_dir(path).map_err(CaptureError::file(path))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_become_file_names_without_dots_that_stay_different() {
        assert_eq!(file_name("node-1"), "node-1");
        assert_eq!(file_name("a.b"), "a_2eb");
        assert_ne!(file_name("a.b"), file_name("a_2eb"));
        assert!(!file_name("../x").contains(['.', '/']));
    }
}
