//! `soak`: mixed load between two simulated nodes while policies change, SVIDs
//! rotate, pods come and go and agents are restarted; then everything has to
//! be back where it was, and no byte may have been wrong or in clear.

mod agents;
mod board;
mod calendar;
mod changes;
mod lab;
mod ledger;
mod load;
mod quiet;
mod recorder;
mod rotation;
mod run;
mod sample;
mod stage;
mod verdict;
mod watcher;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use self::run::Plan;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::outcome::{Outcome, Totals};
use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;
use crate::{ebpf, interrupt, test};

/// Of the suite in `cargo xtask test`.
const SHORT: Duration = Duration::from_secs(36);

/// `cargo xtask soak`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the load runs, after a warm-up.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// Go on until so many short connections were made, however long it takes.
    #[arg(long, value_name = "N")]
    connections: Option<u64>,
    /// Draws the load and the changes; printed when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Lifetime of SVIDs in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(4..))]
    leaf_ttl: u64,
    /// Seconds between two samples.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    every: f64,
    /// Soak the debug build, as the test suite does.
    #[arg(long)]
    debug: bool,
    /// Soak this `warren` instead of building one.
    #[arg(long, value_name = "FILE", conflicts_with = "debug")]
    warren: Option<PathBuf>,
}

/// The command line's entry: everything that is missing is installed and built first.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        let message = "the soak makes network namespaces and loads eBPF programs: please run it as root".into();
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    }
    interrupt::arm()?;
    let warren = program(workspace, args)?;
    let plan = Plan {
        warren,
        output: workspace.target().join("soak"),
        time: Duration::try_from_secs_f64(args.minutes * 60.0)?,
        connections: args.connections,
        seed: args.seed.unwrap_or_else(rand::random),
        leaf_ttl: Duration::from_secs(args.leaf_ttl),
        every: Duration::try_from_secs_f64(args.every)?,
    };
    let checks = run::play(&plan)?;
    let totals = checks.totals();
    println!("\n{totals}");
    if totals.failed > 0 {
        bail!("soak: not as expected; the samples are in {}", plan.samples().display());
    }
    println!("soak: everything as expected; the samples are in {}", plan.samples().display());
    Ok(())
}

fn program(workspace: &Workspace, args: &Args) -> Result<PathBuf> {
    if let Some(warren) = &args.warren {
        return Ok(warren.canonicalize()?);
    }
    setup::ensure(workspace, Group::Test)?;
    ebpf::build(workspace, &ebpf::Args::any())?;
    if args.debug {
        test::build_warren(workspace)?;
        return Ok(workspace.target().join("debug/warren"));
    }
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.root()).args(["build", "--release", "--package", "warren-agent", "--bin", "warren"]);
    process::run(&mut cargo)?;
    Ok(workspace.target().join("release/warren"))
}

/// A short soak as a test suite: its checks counted.
pub(crate) fn check(workspace: &Workspace) -> Totals {
    let plan = Plan {
        warren: workspace.target().join("debug/warren"),
        output: workspace.target().join("soak"),
        time: SHORT,
        connections: None,
        seed: rand::random(),
        leaf_ttl: Duration::from_secs(10),
        every: Duration::from_secs(1),
    };
    match interrupt::arm().and_then(|()| run::play(&plan)) {
        Ok(checks) => checks.totals(),
        Err(error) => {
            let outcome = Outcome::of(Err(error));
            outcome.print("the soak runs to its end");
            let mut totals = Totals::default();
            totals.count(&outcome);
            totals
        }
    }
}
