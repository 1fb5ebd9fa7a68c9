//! Installing Debian packages without questions and without leaving services
//! running.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::{CANNOT_INSTALL, Coded};
use crate::process;
use crate::programs;
use crate::workspace::Workspace;

/// Debian's package scripts ask this program before they start a service.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";
const SERVICE_POLICY_TEXT: &str = "#!/bin/sh\n# cargo xtask setup: installed services stay stopped\nexit 101\n";

/// Whether this is Debian or a child of it, with its package manager.
pub(crate) fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    names_debian(&release) && programs::find("apt-get").is_some()
}

fn names_debian(release: &str) -> bool {
    release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .any(|value| value.trim_matches('"').split(' ').any(|id| id == "debian"))
}

/// Updates the lists and installs the packages.
pub(crate) fn install(workspace: &Workspace, names: &[&str]) -> Result<()> {
    let logs = workspace.logs();
    process::step("apt-get update", &logs.join("apt-update.log"), apt().arg("update"))?;
    let unknown: Vec<&str> = names.iter().copied().filter(|name| !has_candidate(name)).collect();
    if !unknown.is_empty() {
        return Err(Coded { code: CANNOT_INSTALL, message: unknown_packages(&unknown) }.into());
    }
    let _policy = StoppedServices::begin()?;
    let mut command = apt();
    // A package that conflicts with one that is installed is refused rather than replaces it.
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]);
    command.args(["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]);
    eprintln!("  packages: {}", names.join(" "));
    let title = format!("apt-get install ({} packages and what they need)", names.len());
    process::step(&title, &logs.join("apt-install.log"), command.args(names))
}

fn apt() -> std::process::Command {
    let mut command = process::command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn has_candidate(name: &str) -> bool {
    process::output(process::command("apt-cache").args(["policy", name]))
        .is_ok_and(|policy| policy.lines().any(|line| line.contains("Candidate:") && !line.contains("(none)")))
}

fn unknown_packages(names: &[&str]) -> String {
    format!(
        "this release of Debian has no package {}. For the eBPF build, a nightly with rust-src and bpf-linker do as well:\n  \
         rustup toolchain install nightly --component rust-src\n  cargo install bpf-linker",
        names.join(", ")
    )
}

/// While it lives, installed services are not started.
struct StoppedServices {
    written: Option<PathBuf>,
}

impl StoppedServices {
    /// A policy of the machine's own stays in force; one that an interrupted
    /// run of ours left is taken over.
    fn begin() -> Result<Self> {
        Self::at(Path::new(SERVICE_POLICY))
    }

    fn at(path: &Path) -> Result<Self> {
        let foreign = match fs::read_to_string(path) {
            Ok(text) => text != SERVICE_POLICY_TEXT,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if foreign {
            eprintln!("  {} of this machine decides which services start", path.display());
            return Ok(Self { written: None });
        }
        fs::write(path, SERVICE_POLICY_TEXT).with_context(|| path.display().to_string())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { written: Some(path.to_owned()) })
    }
}

impl Drop for StoppedServices {
    fn drop(&mut self) {
        if let Some(path) = &self.written
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("warning: {}: {error}; remove it by hand", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_known() {
        assert!(names_debian("PRETTY_NAME=\"Debian\"\nID=debian\n"));
        assert!(names_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(names_debian("ID=pop\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!names_debian("ID=fedora\n"));
    }

    #[test]
    fn the_service_policy_goes_when_the_installation_ends() {
        let path = std::env::temp_dir().join(format!("warren-xtask-policy-{}", std::process::id()));
        let policy = StoppedServices::at(&path).unwrap();
        assert!(path.exists());
        drop(policy);
        assert!(!path.exists());
        fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
        drop(StoppedServices::at(&path).unwrap());
        assert!(path.exists(), "a policy that is not ours stays");
        fs::remove_file(&path).unwrap();
    }
}
