//! The world source of standalone mode: Kubernetes manifests in a file or a directory, read again when they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use warren_core::world::manifest::SourceText;

/// Why the manifests could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorldFileError {
    /// A file or the directory could not be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The directory holds no manifest.
    #[error("{}: no .yaml, .yml or .json file in this directory", .0.display())]
    Empty(PathBuf),
}

/// What identifies one state of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// A file or directory of manifests, watched by comparing stamps.
///
/// A change is reported once two polls in a row saw the same new stamps: a file that is being rewritten in place is
/// not read half-way, which would look like objects having been deleted.
#[derive(Debug)]
pub(crate) struct WorldFile {
    path: PathBuf,
    loaded: Vec<Stamp>,
    candidate: Vec<Stamp>,
}

impl WorldFile {
    /// Reads everything for the first time.
    pub(crate) fn open(path: PathBuf) -> Result<(Self, Vec<SourceText>), WorldFileError> {
        let stamps = stamps(&path)?;
        let texts = read(&stamps)?;
        Ok((Self { path, candidate: stamps.clone(), loaded: stamps }, texts))
    }

    /// Forgets what was returned, so that the same texts are returned once more.
    pub(crate) fn again(&mut self) {
        self.loaded.clear();
    }

    /// The new texts, if the files changed since they were last returned and have settled.
    pub(crate) fn poll(&mut self) -> Result<Option<Vec<SourceText>>, WorldFileError> {
        let seen = stamps(&self.path)?;
        let settled = seen == self.candidate;
        self.candidate.clone_from(&seen);
        if seen == self.loaded || !settled {
            return Ok(None);
        }
        let texts = read(&seen)?;
        if stamps(&self.path)? != seen {
            return Ok(None);
        }
        self.loaded = seen;
        Ok(Some(texts))
    }
}

fn stamps(path: &Path) -> Result<Vec<Stamp>, WorldFileError> {
    let wrap = |path: &Path| {
        let path = path.to_owned();
        move |error| WorldFileError::Read { path, error }
    };
    if !fs::metadata(path).map_err(wrap(path))?.is_dir() {
        return Ok(vec![stamp(path).map_err(wrap(path))?]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(wrap(path))? {
        let file = entry.map_err(wrap(path))?.path();
        if is_manifest(&file) {
            found.push(stamp(&file).map_err(wrap(&file))?);
        }
    }
    if found.is_empty() {
        return Err(WorldFileError::Empty(path.to_owned()));
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn is_manifest(file: &Path) -> bool {
    let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = file.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
    known && !hidden
}

fn stamp(file: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(file)?;
    Ok(Stamp { path: file.to_owned(), modified: meta.modified().ok(), length: meta.len(), inode: meta.ino() })
}

fn read(stamps: &[Stamp]) -> Result<Vec<SourceText>, WorldFileError> {
    stamps
        .iter()
        .map(|stamp| {
            let text = fs::read_to_string(&stamp.path)
                .map_err(|error| WorldFileError::Read { path: stamp.path.clone(), error })?;
            Ok(SourceText { file: stamp.path.display().to_string(), text })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("warren-world-file-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn reads_manifests_of_a_directory_in_order_and_leaves_other_files() {
        let dir = scratch("order");
        fs::write(dir.join("b.yaml"), "b").unwrap();
        fs::write(dir.join("a.yml"), "a").unwrap();
        fs::write(dir.join("notes.txt"), "no").unwrap();
        fs::write(dir.join(".a.yaml.swp.yaml"), "no").unwrap();
        let (_, texts) = WorldFile::open(dir.clone()).unwrap();
        assert_eq!(texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_change_is_reported_once_and_only_when_settled() {
        let dir = scratch("settle");
        let file = dir.join("mesh.yaml");
        fs::write(&file, "one").unwrap();
        let (mut world, _) = WorldFile::open(file.clone()).unwrap();
        assert!(world.poll().unwrap().is_none());
        fs::write(&file, "").unwrap();
        assert!(world.poll().unwrap().is_none(), "seen once: may be half-written");
        fs::write(&file, "second").unwrap();
        assert!(world.poll().unwrap().is_none(), "changed again");
        let texts = world.poll().unwrap().expect("settled");
        assert_eq!(texts[0].text, "second");
        assert!(world.poll().unwrap().is_none());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn texts_that_could_not_be_applied_are_returned_again() {
        let dir = scratch("again");
        let file = dir.join("mesh.yaml");
        fs::write(&file, "one").unwrap();
        let (mut world, _) = WorldFile::open(file).unwrap();
        world.again();
        assert_eq!(world.poll().unwrap().expect("returned again")[0].text, "one");
        assert!(world.poll().unwrap().is_none());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = WorldFile::open(PathBuf::from("/nonexistent/mesh.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/mesh.yaml"));
    }
}
