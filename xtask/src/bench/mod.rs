//! `bench`: Warren measured beside plain TCP and its peers, on one machine, in
//! one run. Prints a table, and writes JSON, a picture and a page.

mod kernel;
mod lab;
mod ladder;
mod micro;
mod options;
mod path;
mod report;
mod results;
mod rows;
mod run;
mod selfcheck;
mod smoke;
mod stats;
mod targets;

use anyhow::Result;
use clap::Subcommand;
use nix::unistd::geteuid;

use self::options::Options;
pub(crate) use self::smoke::check;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::setup::{self, Group};
use crate::workspace::Workspace;
use crate::{ebpf, interrupt, process};

/// `cargo xtask bench`
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    ladder: Options,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Paths between pods, row by row (the default).
    Ladder(Options),
    /// What the kernel programs themselves cost: time, instructions, memory.
    Kernel(kernel::Options),
    /// Policy decisions and HTTP/2, without I/O.
    Micro(micro::Options),
}

/// The command line's entry: everything that is missing is installed and built first.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        let message = "the benchmark makes network namespaces and loads eBPF programs: please run it as root".into();
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    }
    interrupt::arm()?;
    match &args.what {
        Some(What::Ladder(options)) => run_ladder(workspace, options),
        Some(What::Kernel(options)) => run_kernel(workspace, options),
        Some(What::Micro(options)) => micro::run(workspace, options),
        None => run_ladder(workspace, &args.ladder),
    }
}

fn run_ladder(workspace: &Workspace, options: &Options) -> Result<()> {
    let programs = ladder::programs(workspace, options)?;
    if !options.no_build {
        setup::ensure(workspace, if options.peers.is_empty() { Group::Lab } else { Group::Peers })?;
        build(workspace, options.warren_bin.is_none())?;
    }
    ladder::run(workspace, options, &programs)
}

fn run_kernel(workspace: &Workspace, options: &kernel::Options) -> Result<()> {
    if !options.no_build {
        // The tests' tools have bpftool among them.
        setup::ensure(workspace, Group::Test)?;
        build(workspace, options.warren_bin.is_none())?;
    }
    kernel::run(workspace, options)
}

/// Release builds of the load generator and, unless another one is given, the agent.
fn build(workspace: &Workspace, agent: bool) -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.root()).args(["build", "--release", "--bins", "--package", "warren-load"]);
    if agent {
        ebpf::build(workspace, &ebpf::Args::any())?;
        cargo.args(["--package", "warren-agent"]);
    }
    if workspace.path("xtask/micro/Cargo.toml").is_file() {
        cargo.args(["--package", ladder::MICRO]);
    }
    process::run(&mut cargo)
}
