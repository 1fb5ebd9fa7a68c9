//! `build-ebpf`: the kernel programs, built by whichever of two toolchains this
//! machine offers, copied to `target/ebpf/` for the daemon to embed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::process;
use crate::programs;
use crate::workspace::Workspace;

const TARGET: &str = "bpfel-unknown-none";
/// Debian's clippy, which fits Debian's compiler.
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
/// Debian's compiler; rustup's shim of the same name stands earlier in PATH.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "bpf-linker";
/// The kernel wants BTF for maps with spin locks and socket storage, and it
/// makes verifier messages name source lines.
const RUSTFLAGS: [&str; 6] = ["-C", "linker=bpf-linker", "-C", "debuginfo=2", "-C", "link-arg=--btf"];

/// `cargo xtask build-ebpf`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take this toolchain rather than the first one that is there.
    #[arg(long)]
    toolchain: Option<Kind>,
}

impl Args {
    /// Whichever toolchain is there.
    pub(crate) fn any() -> Self {
        Self { toolchain: None }
    }
}

/// The ways to get `core` for the kernel's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's rustc-web with its precompiled `core`.
    Debian,
    /// A rustup nightly with rust-src, which compiles `core` itself.
    Nightly,
}

/// A compiler for the kernel's target that is installed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// Path of Debian's compiler.
    Debian(PathBuf),
    /// Name of rustup's toolchain.
    Nightly(String),
}

impl Toolchain {
    /// The first that is installed, or the first of the asked kind.
    pub(crate) fn find(kind: Option<Kind>) -> Option<Self> {
        let debian = || debian_rustc().map(Self::Debian);
        let nightly = || nightly_with_source().map(Self::Nightly);
        match kind {
            Some(Kind::Debian) => debian(),
            Some(Kind::Nightly) => nightly(),
            None => debian().or_else(nightly),
        }
    }

    fn build(&self, workspace: &Workspace) -> Command {
        self.cargo(workspace, "cargo", "build")
    }

    /// `cargo clippy` for the kernel's target, where there is one that fits the compiler.
    pub(crate) fn clippy(&self, workspace: &Workspace) -> Option<Command> {
        match self {
            Self::Debian(_) => Some(self.cargo(workspace, Self::debian_clippy()?, "clippy")),
            Self::Nightly(name) => {
                let probe =
                    process::succeeds(process::command("cargo").args([&format!("+{name}"), "clippy", "--version"]));
                probe.then(|| self.cargo(workspace, "cargo", "clippy"))
            }
        }
    }

    /// A cargo command for the kernel's target, in the programs' directory.
    fn cargo(&self, workspace: &Workspace, program: &str, subcommand: &str) -> Command {
        let mut command = process::command(program);
        if let Self::Nightly(name) = self {
            command.arg(format!("+{name}"));
        }
        command.current_dir(workspace.path("ebpf/programs"));
        command.args([subcommand, "--release", "--target", TARGET, "--target-dir"]).arg(self.target_dir(workspace));
        // The objects carry their sources' names, and are to be the same wherever they are built.
        let flags: Vec<String> = RUSTFLAGS.map(str::to_owned).into_iter().chain(workspace.path_flags()).collect();
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        match self {
            Self::Debian(rustc) => command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
            Self::Nightly(_) => command.args(["-Z", "build-std=core"]),
        };
        command
    }

    /// One directory per toolchain: artefacts of the two do not mix.
    fn target_dir(&self, workspace: &Workspace) -> PathBuf {
        workspace.target().join(match self {
            Self::Debian(_) => "ebpf-build-debian",
            Self::Nightly(_) => "ebpf-build-nightly",
        })
    }

    /// Debian's clippy, if it is installed.
    pub(crate) fn debian_clippy() -> Option<&'static str> {
        Path::new(DEBIAN_CLIPPY).is_file().then_some(DEBIAN_CLIPPY)
    }

    /// What is said of it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Debian(rustc) => {
                let version = process::output(process::command(rustc).arg("--version")).unwrap_or_default();
                format!("{} ({}, precompiled core for {TARGET})", rustc.display(), version.trim())
            }
            Self::Nightly(name) => format!("rustup {name} (rust-src, -Z build-std=core)"),
        }
    }
}

fn debian_rustc() -> Option<PathBuf> {
    let sysroot = process::output(process::command(DEBIAN_RUSTC).args(["--print", "sysroot"])).ok()?;
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib");
    let has_core = fs::read_dir(libraries).ok()?.flatten().any(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.starts_with("libcore-") && name.ends_with(".rlib"))
    });
    has_core.then(|| PathBuf::from(DEBIAN_RUSTC))
}

fn nightly_with_source() -> Option<String> {
    rustup_toolchains().into_iter().filter(|name| name.starts_with("nightly")).find(|name| {
        process::output(process::command("rustup").args(["run", name, "rustc", "--print", "sysroot"]))
            .is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
    })
}

/// The names of rustup's installed toolchains.
pub(crate) fn rustup_toolchains() -> Vec<String> {
    let listed = process::output(process::command("rustup").args(["toolchain", "list"])).unwrap_or_default();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Builds the kernel programs; does nothing but look when sources are unchanged.
pub(crate) fn build(workspace: &Workspace, args: &Args) -> Result<()> {
    let Some(toolchain) = Toolchain::find(args.toolchain) else {
        bail!("no compiler for {TARGET} here; `cargo xtask setup` installs one");
    };
    if programs::find(LINKER).is_none() {
        bail!("{LINKER} is not installed; `cargo xtask setup` installs it");
    }
    eprintln!("eBPF: building with {}", toolchain.describe());
    let mut cargo = toolchain.build(workspace);
    process::run(cargo.arg("--bins"))?;
    let built = toolchain.target_dir(workspace).join(TARGET).join("release");
    publish(&built, &binaries(workspace)?, &workspace.ebpf_out())
}

/// The programs' binaries, as cargo knows them.
fn binaries(workspace: &Workspace) -> Result<Vec<String>> {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.path("ebpf/programs")).args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&process::output(&mut cargo)?)?;
    let targets = metadata["packages"][0]["targets"].as_array().context("cargo metadata names no targets")?;
    let is_bin =
        |target: &&serde_json::Value| target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"bin".into()));
    Ok(targets.iter().filter(is_bin).filter_map(|target| target["name"].as_str()).map(str::to_owned).collect())
}

/// Copies each binary to `NAME.o`, leaving an unchanged one alone so that the
/// daemon is not rebuilt for it.
fn publish(built: &Path, names: &[String], out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    for name in names {
        let from = built.join(name);
        let to = out.join(format!("{name}.o"));
        let object = fs::read(&from).with_context(|| from.display().to_string())?;
        if !object.starts_with(b"\x7fELF") {
            bail!("{} is not an ELF object", from.display());
        }
        let fresh = fs::read(&to).is_ok_and(|old| old == object);
        if !fresh {
            fs::write(&to, &object).with_context(|| to.display().to_string())?;
        }
        eprintln!("eBPF: {} ({} bytes{})", to.display(), object.len(), if fresh { ", unchanged" } else { "" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_objects_keep_their_time() {
        let dir = std::env::temp_dir().join(format!("warren-xtask-publish-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("one"), b"\x7fELF object").unwrap();
        let out = dir.join("out");
        publish(&dir, &["one".into()], &out).unwrap();
        let first = fs::metadata(out.join("one.o")).unwrap().modified().unwrap();
        publish(&dir, &["one".into()], &out).unwrap();
        assert_eq!(fs::metadata(out.join("one.o")).unwrap().modified().unwrap(), first);
        fs::write(dir.join("one"), b"text").unwrap();
        assert!(publish(&dir, &["one".into()], &out).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
