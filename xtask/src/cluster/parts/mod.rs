//! The lab's Kubernetes: programs built from Go modules into a cache outside
//! of the tree, once per version.

mod build;
mod go;
mod list;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::go::Go;
use self::list::List;
use crate::netlab;
use crate::workspace::Workspace;

/// Names the cache; else it is in the user's.
const CACHE: &str = "WARREN_PARTS_CACHE";
/// Longer than everything takes to build.
const LOCK_LIMIT: Duration = Duration::from_secs(3600);

/// A folder that has the programs.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    bin: PathBuf,
}

impl Parts {
    /// Builds what is missing of the programs named, or of all.
    pub(crate) fn ensure(workspace: &Workspace, names: &[String]) -> Result<Self> {
        let list = List::pinned()?;
        for name in names {
            if !list.programs.iter().any(|program| program.name == *name) {
                let known: Vec<&str> = list.programs.iter().map(|program| program.name.as_str()).collect();
                bail!("{name} is none of the parts: {}", known.join(", "));
            }
        }
        let cache = cache()?;
        let bin = cache.join(list.folder());
        let wanted = list.programs.iter().filter(|program| names.is_empty() || names.contains(&program.name));
        let missing = || wanted.clone().filter(|program| !bin.join(&program.name).is_file());
        if missing().next().is_none() {
            return Ok(Self { bin });
        }
        fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;
        let _alone = netlab::lock("warren-parts", LOCK_LIMIT)?;
        let go = Go::ensure(workspace, &list.go, &cache)?;
        for program in missing() {
            build::program(workspace, &go, &list, program, &cache, &bin)?;
        }
        Ok(Self { bin })
    }

    /// Whether a Go that is new enough is there.
    pub(crate) fn have_go() -> bool {
        List::pinned().and_then(|list| Go::find(&list.go, &cache()?)).is_ok_and(|found| found.is_some())
    }

    /// Where the programs are, whether or not they are built.
    pub(crate) fn place() -> Result<Self> {
        Ok(Self { bin: cache()?.join(List::pinned()?.folder()) })
    }

    /// The folder.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    /// One program's path.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

fn cache() -> Result<PathBuf> {
    if let Some(named) = env::var_os(CACHE) {
        return std::path::absolute(named).context(CACHE);
    }
    let user = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("neither {CACHE} nor HOME says where to keep what is built of Kubernetes"),
    };
    Ok(user.join("warren/parts"))
}
