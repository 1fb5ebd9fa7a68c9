//! Installing the plugin: a copy of this binary where the runtime looks for plugins, and a configuration of our own that
//! sorts before all others and embeds the primary plugin's.
//!
//! The primary's file is read and never written, so that removing ours leaves everything as it was.

mod chain;
mod files;
mod paths;
mod watch;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub(crate) use files::{copy_binary, remove_binary};
pub(crate) use paths::{Distribution, Support, detect};
pub(crate) use watch::keep;

use files::{OURS, config_files};

/// What the plugin's configuration says.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The agent's socket.
    pub(crate) socket: PathBuf,
    /// The file of decisions.
    pub(crate) decisions: PathBuf,
    /// Namespaces that are never enrolled, beside the fixed ones.
    pub(crate) never_enrol: Vec<String>,
}

impl Settings {
    fn plugin(&self) -> Value {
        serde_json::json!({
            "type": super::PLUGIN,
            "socket": self.socket,
            "decisions": self.decisions,
            "neverEnrol": self.never_enrol,
        })
    }
}

/// Why the plugin cannot be installed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// A file or folder.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is nothing to chain behind.
    #[error("{}: no configuration of a primary plugin (.conflist, .conf or .json): install the cluster's network first", .0.display())]
    NoPrimary(PathBuf),
    /// The primary's configuration makes no sense.
    #[error("{}: {what}", path.display())]
    Primary {
        /// The primary's file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody else wants to be first as well.
    #[error("{}: sorts before every name of ours, and the runtime takes the first file: rename it", .0.display())]
    NotFirst(PathBuf),
}

impl InstallError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { path, error }
    }
}

/// What one look at the folder led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Installed {
    /// Our configuration is as it should be already.
    Unchanged,
    /// It was written, embedding this file.
    Embeds(PathBuf),
}

/// Writes our configuration if it is not what it should be.
pub(crate) fn install(conf_dir: &Path, settings: &Settings) -> Result<Installed, InstallError> {
    let files = config_files(conf_dir)?;
    let Some(primary) = files.iter().find(|path| !files::is_ours(path)) else {
        return Err(InstallError::NoPrimary(conf_dir.to_owned()));
    };
    let text = std::fs::read(primary).map_err(InstallError::file(primary))?;
    let chained = chain::chained(&text, &settings.plugin())
        .map_err(|what| InstallError::Primary { path: primary.clone(), what })?;
    let before = |name: &&&str| Some(**name) < primary.file_name().and_then(|name| name.to_str());
    let name = OURS.iter().find(|name| before(name)).ok_or_else(|| InstallError::NotFirst(primary.clone()))?;
    let path = conf_dir.join(name);
    let mut written = Installed::Unchanged;
    if std::fs::read(&path).ok().as_deref() != Some(&chained) {
        files::replace(&path, &chained, primary)?;
        written = Installed::Embeds(primary.clone());
    }
    // One of ours under another name, from when the primary had another: it must not be taken for the first.
    for other in files.iter().filter(|file| files::is_ours(file) && **file != path) {
        files::remove(other)?;
    }
    Ok(written)
}

/// Removes our configuration; whether there was one.
pub(crate) fn uninstall(conf_dir: &Path) -> Result<bool, InstallError> {
    let mut removed = false;
    for path in config_files(conf_dir)?.iter().filter(|path| files::is_ours(path)) {
        files::remove(path)?;
        removed = true;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
