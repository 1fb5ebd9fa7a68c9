//! The runtime's folders: which files count, and replacing them in one step.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::InstallError;
use crate::cni::PLUGIN;

/// Names of our configuration: the first one that sorts before the primary's is taken.
pub(super) const OURS: [&str; 2] = ["00-warren.conflist", "0-warren.conflist"];

/// Whether a file is our configuration.
pub(super) fn is_ours(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| OURS.contains(&name))
}

/// The files that a runtime would consider, in its order.
pub(super) fn config_files(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(InstallError::file(dir))? {
        let path = entry.map_err(InstallError::file(dir))?.path();
        let counts = path.extension().is_some_and(|kind| kind == "conflist" || kind == "conf" || kind == "json");
        if counts && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Replaces `path` in one step; it may be read by whoever may read `like`, since it holds the same.
pub(super) fn replace(path: &Path, text: &[u8], like: &Path) -> Result<(), InstallError> {
    let mode = fs::metadata(like).map_err(InstallError::file(like))?.mode() & 0o644;
    let write = |fresh: &Path| -> io::Result<()> {
        let mut file = File::create(fresh)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text)?;
        file.sync_all()
    };
    in_one_step(path, write).map_err(InstallError::file(path))
}

pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(InstallError::file(path)(error)),
        _ => Ok(()),
    }
}

/// Copies the plugin to the runtime's folder of plugins, unless the same is there already.
pub(crate) fn copy_binary(binary: &Path, bin_dir: &Path) -> Result<PathBuf, InstallError> {
    let path = bin_dir.join(PLUGIN);
    if is_same(binary, &path) {
        return Ok(path);
    }
    let write = |fresh: &Path| -> io::Result<()> {
        fs::copy(binary, fresh)?;
        let file = File::open(fresh)?;
        file.set_permissions(Permissions::from_mode(0o755))?;
        file.sync_all()
    };
    in_one_step(&path, write).map_err(InstallError::file(&path))?;
    Ok(path)
}

/// Removes the plugin from the runtime's folder.
pub(crate) fn remove_binary(bin_dir: &Path) -> Result<(), InstallError> {
    remove(&bin_dir.join(PLUGIN))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let lengths = (fs::metadata(one).map(|meta| meta.len()).ok(), fs::metadata(other).map(|meta| meta.len()).ok());
    lengths.0.is_some() && lengths.0 == lengths.1 && fs::read(one).ok() == fs::read(other).ok()
}

/// Lets `write` fill a file that no runtime looks at, and gives it its name.
fn in_one_step(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.new"));
    let done = write(&fresh).and_then(|()| fs::rename(&fresh, path));
    if done.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    done?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
