//! Warren's chores, one module each: `cargo xtask help` lists them.
//!
//! Exit codes: 0 done; 1 something failed or differed from what was expected;
//! 2 usage; 3 something is missing that `setup` cannot install by itself (the
//! commands are printed); 130 interrupted.
#![forbid(unsafe_code)]

mod bench;
mod cluster;
mod crds;
mod demo;
mod ebpf;
mod exit;
mod image;
mod interrupt;
mod lint;
mod netlab;
mod outcome;
mod process;
mod programs;
mod schema;
mod setup;
mod soak;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Warren's chores")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find what this machine lacks and install it.
    Setup(setup::Args),
    /// Build the kernel programs into target/ebpf/.
    BuildEbpf(ebpf::Args),
    /// Run the regulatory lab on two simulated nodes, with real programs.
    Demo(demo::Args),
    /// Measure Warren beside plain TCP and its peers.
    Bench(Box<bench::Args>),
    /// Run mixed load while everything changes; then all must be back where it was.
    Soak(soak::Args),
    /// Run a real Kubernetes cluster on this machine.
    Cluster(cluster::Args),
    /// Pack Warren as a container image.
    Image(image::Args),
    /// Run the tests, all or by suite, and print the totals.
    Test(test::Args),
    /// Write the CustomResourceDefinitions of deploy/crds.
    Crds(crds::Args),
    /// Check formats, lints, licences and the direction of dependencies.
    Lint,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    if let Command::Cluster(args) = &command
        && let Some(step) = cluster::step(args)
    {
        return step;
    }
    let workspace = Workspace::find()?;
    match command {
        Command::Setup(args) => setup::run(&workspace, &args),
        Command::BuildEbpf(args) => ebpf::build(&workspace, &args),
        Command::Demo(args) => demo::run(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Soak(args) => soak::run(&workspace, &args),
        Command::Cluster(args) => cluster::run(&workspace, &args),
        Command::Image(args) => image::run(&workspace, &args),
        Command::Test(args) => test::run(&workspace, &args),
        Command::Crds(args) => crds::run(&workspace, &args),
        Command::Lint => lint::run(&workspace),
    }
}
