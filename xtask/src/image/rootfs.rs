//! The files of an image, collected by their places and packed as one layer.
//! The same files make the same bytes: entries are sorted, nobody owns them,
//! and all are of one time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use super::libraries;
use crate::programs;

/// Files by their places, without a leading slash.
#[derive(Debug, Default)]
pub(crate) struct Rootfs {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory { mode: u32 },
    File { from: PathBuf, mode: u32 },
    Text(String),
    Link(String),
}

impl Rootfs {
    /// A directory.
    pub(crate) fn directory(&mut self, at: &str, mode: u32) -> &mut Self {
        self.insert(at, Entry::Directory { mode })
    }

    /// A file of this machine, executable if it is here.
    pub(crate) fn file(&mut self, at: &str, from: &Path) -> &mut Self {
        let executable = from.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
        self.insert(at, Entry::File { from: from.to_owned(), mode: if executable { 0o755 } else { 0o644 } })
    }

    /// A file of given text.
    pub(crate) fn text(&mut self, at: &str, text: &str) -> &mut Self {
        self.insert(at, Entry::Text(text.to_owned()))
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, at: &str, target: &str) -> &mut Self {
        self.insert(at, Entry::Link(target.to_owned()))
    }

    /// An installed program with the libraries that it loads, where they are here.
    pub(crate) fn program(&mut self, name: &str) -> Result<&mut Self> {
        let path = programs::find(name).with_context(|| format!("{name} is not installed"))?;
        self.program_at(&path)
    }

    /// The same by path. A link to a program is followed, and keeps its name.
    pub(crate) fn program_at(&mut self, path: &Path) -> Result<&mut Self> {
        self.program_as(&place(path), path)
    }

    /// The same at another place.
    pub(crate) fn program_as(&mut self, at: &str, path: &Path) -> Result<&mut Self> {
        let real = fs::canonicalize(path).with_context(|| path.display().to_string())?;
        self.file(at, &real);
        self.libraries_of(&real)?;
        Ok(self)
    }

    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        for library in libraries::of(program)? {
            let real = fs::canonicalize(&library).with_context(|| library.display().to_string())?;
            self.file(&place(&library), &real);
        }
        Ok(())
    }

    /// What the C library loads by itself to look names up.
    pub(crate) fn name_service(&mut self) -> Result<()> {
        for name in ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"] {
            if let Some(library) = libraries::find(name) {
                let real = fs::canonicalize(&library).with_context(|| library.display().to_string())?;
                self.file(&place(&library), &real);
            }
        }
        Ok(())
    }

    /// A directory of this machine with all below it, less what has one of
    /// these names, and the libraries that its modules load.
    pub(crate) fn tree(&mut self, from: &Path, without: &[&str]) -> Result<()> {
        let entries = fs::read_dir(from).with_context(|| from.display().to_string())?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if without.iter().any(|left_out| name == *left_out) {
                continue;
            }
            if path.is_dir() {
                self.tree(&path, without)?;
            } else if path.is_file() {
                let real = fs::canonicalize(&path).with_context(|| path.display().to_string())?;
                self.file(&place(&path), &real);
                if name.ends_with(".so") {
                    self.libraries_of(&real)?;
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, at: &str, entry: Entry) -> &mut Self {
        let mut parent = at;
        while let Some((above, _)) = parent.rsplit_once('/') {
            self.entries.entry(above.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
            parent = above;
        }
        self.entries.insert(at.to_owned(), entry);
        self
    }

    /// The layer: an uncompressed tar file, every entry of that time (seconds since 1970).
    pub(crate) fn layer(&self, time: u64) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (at, entry) in &self.entries {
            let (kind, mode) = match entry {
                Entry::Directory { mode } => (EntryType::Directory, *mode),
                Entry::File { mode, .. } => (EntryType::Regular, *mode),
                Entry::Text(_) => (EntryType::Regular, 0o644),
                Entry::Link(_) => (EntryType::Symlink, 0o777),
            };
            let mut header = header(kind, mode, time);
            match entry {
                Entry::Directory { .. } => append(&mut archive, &mut header, &format!("{at}/"), &[]),
                Entry::Text(text) => append(&mut archive, &mut header, at, text.as_bytes()),
                Entry::File { from, .. } => {
                    let bytes = fs::read(from).with_context(|| from.display().to_string())?;
                    append(&mut archive, &mut header, at, &bytes)
                }
                Entry::Link(target) => {
                    header.set_size(0);
                    archive.append_link(&mut header, at, target)
                }
            }
            .with_context(|| at.clone())?;
        }
        archive.into_inner().context("layer")
    }
}

/// Adds one entry; its size is that of its bytes.
pub(super) fn append(
    archive: &mut Builder<Vec<u8>>,
    header: &mut Header,
    at: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    header.set_size(bytes.len() as u64);
    archive.append_data(header, at, bytes)
}

/// A header that says nothing of who packed, or when.
pub(super) fn header(kind: EntryType, mode: u32, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn place(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn packed() -> Vec<u8> {
        let mut root = Rootfs::default();
        root.text("etc/b", "two").text("etc/a", "one").link("bin/sh", "busybox").directory("tmp", 0o1777);
        root.layer(7).unwrap()
    }

    #[test]
    fn the_same_files_are_the_same_bytes() {
        assert_eq!(packed(), packed());
    }

    #[test]
    fn entries_are_sorted_behind_their_directories_and_owned_by_nobody() {
        let bytes = packed();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (7, 0, 0));
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().display().to_string(), text, header.mode().unwrap()));
        }
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["bin/", "bin/sh", "etc/", "etc/a", "etc/b", "tmp/"]);
        assert_eq!((found[3].1.as_str(), found[5].2), ("one", 0o1777));
    }

    #[test]
    fn a_program_brings_its_libraries() {
        let mut root = Rootfs::default();
        root.program("sh").unwrap();
        assert!(root.entries.keys().any(|at| at.contains("libc.so")), "{:?}", root.entries.keys());
        assert!(root.program("no-such-program-of-warren").is_err());
    }
}
