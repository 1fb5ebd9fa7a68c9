//! `image`: Warren as a container image, without Docker, and the means to pack
//! one: the lab's own images are made by the same.

mod archive;
mod binary;
mod libraries;
mod rootfs;

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

pub(crate) use self::archive::{Image, name_in};
pub(crate) use self::rootfs::Rootfs;
use crate::setup::{self, Group};
use crate::workspace::Workspace;
use crate::{ebpf, interrupt, process};

/// The time of the files in an image, in seconds since 1970; else they are of 1970.
const TIME: &str = "SOURCE_DATE_EPOCH";

/// `cargo xtask image`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which machines; this one's kind if not said. Repeatable.
    #[arg(long = "arch", value_name = "ARCH")]
    archs: Vec<Arch>,
    /// The image's name and tag [default: warren.dev/warren:VERSION].
    #[arg(long)]
    name: Option<String>,
    /// Where the archives go [default: target/image].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// An architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86_64.
    Amd64,
    /// aarch64.
    Arm64,
}

impl Arch {
    /// What this program runs on.
    pub(crate) fn of_this_machine() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }

    /// As image configurations name it.
    fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As GNU compilers are named.
    fn gnu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }
}

/// Builds and packs; prints where the archives are.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    interrupt::arm()?;
    setup::ensure(workspace, Group::Build)?;
    let own = [Arch::of_this_machine()];
    let archs = if args.archs.is_empty() { &own[..] } else { &args.archs };
    for arch in archs {
        println!("{}", make(workspace, *arch, args)?.display());
    }
    Ok(())
}

/// Makes this machine's own, with the name it has by default.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    make(workspace, Arch::of_this_machine(), &Args { archs: Vec::new(), name: None, out: None })
}

/// One archive.
fn make(workspace: &Workspace, arch: Arch, args: &Args) -> Result<PathBuf> {
    ebpf::build(workspace, &ebpf::Args::any())?;
    let binary = binary::build(workspace, arch)?;
    let version = env!("CARGO_PKG_VERSION");
    let name = args.name.clone().unwrap_or_else(|| format!("warren.dev/warren:{version}"));
    let mut root = Rootfs::default();
    root.file("warren", &binary);
    let image = Image::new(&name, root)
        .arch(arch)
        .entrypoint(&["/warren"])
        .path("/")
        .time(time()?)
        .label("org.opencontainers.image.title", "warren")
        .label("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE"))
        .label("org.opencontainers.image.version", version)
        .label("org.opencontainers.image.revision", &revision(workspace));
    let out = args.out.clone().unwrap_or_else(|| workspace.target().join("image"));
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let archive = out.join(format!("warren-{version}-{}.tar", arch.oci()));
    image.write(&archive)?;
    Ok(archive)
}

fn time() -> Result<u64> {
    match env::var(TIME) {
        Ok(text) => text.parse().with_context(|| format!("{TIME}={text} is no number of seconds since 1970")),
        Err(_) => Ok(0),
    }
}

/// The commit; `-dirty` if the tree differs from it.
fn revision(workspace: &Workspace) -> String {
    let git = |words: &[&str]| process::output(process::command("git").current_dir(workspace.root()).args(words));
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain"])) {
        (Ok(commit), Ok(changes)) if changes.trim().is_empty() => commit.trim().to_owned(),
        (Ok(commit), Ok(_)) => format!("{}-dirty", commit.trim()),
        _ => "unknown".into(),
    }
}
