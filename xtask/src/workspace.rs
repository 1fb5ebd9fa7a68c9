//! Where things are in the source tree.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::programs;

/// The source tree this xtask belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the tree: cargo names the package's directory; without cargo the
    /// nearest parent that holds the kernel programs is taken.
    pub(crate) fn find() -> Result<Self> {
        if let Some(root) = env::var_os("CARGO_MANIFEST_DIR").and_then(|dir| Some(Path::new(&dir).parent()?.to_owned()))
        {
            return Ok(Self { root });
        }
        let here = env::current_dir().context("current directory")?;
        let root = here
            .ancestors()
            .find(|dir| dir.join("ebpf/programs/Cargo.toml").is_file())
            .context("not inside Warren's source tree")?;
        Ok(Self { root: root.to_owned() })
    }

    /// The directory of the workspace's Cargo.toml.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path of the tree, given relative to its root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Cargo's target directory of the user-space workspace.
    pub(crate) fn target(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// Flags by which a compiler names sources alike on every machine.
    pub(crate) fn path_flags(&self) -> Vec<String> {
        let cargo_home = programs::cargo_bin().and_then(|bin| Some(bin.parent()?.to_owned()));
        let places = [(Some(self.root.clone()), "/warren"), (cargo_home, "/cargo")];
        let flags = places.into_iter().filter_map(|(from, to)| Some((from?, to)));
        flags.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
    }

    /// Where the kernel objects are put for the daemon's build to embed.
    pub(crate) fn ebpf_out(&self) -> PathBuf {
        self.root.join("target/ebpf")
    }

    /// Where logs of long steps go.
    pub(crate) fn logs(&self) -> PathBuf {
        self.target().join("xtask-logs")
    }
}
