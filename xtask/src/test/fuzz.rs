//! A smoke of every fuzz target: it builds, and some seconds find nothing.

use std::process::Command;

use anyhow::Result;

use crate::ebpf;
use crate::outcome::{Outcome, Totals};
use crate::process;
use crate::workspace::Workspace;

const SECONDS_PER_TARGET: u32 = 5;

/// Runs each target; a machine without a nightly skips them as one.
pub(super) fn smoke(workspace: &Workspace) -> Totals {
    let mut totals = Totals::default();
    let mut say = |name: &str, outcome: &Outcome| {
        outcome.print(name);
        totals.count(outcome);
    };
    let Some(nightly) = ebpf::rustup_toolchains().into_iter().find(|name| name.starts_with("nightly")) else {
        let reason = "libFuzzer's instrumentation wants a nightly compiler (rustup toolchain install nightly)";
        say("fuzz targets", &Outcome::Skipped(reason.into()));
        return totals;
    };
    match targets(workspace, &nightly) {
        Ok(targets) => {
            for target in &targets {
                say(&format!("fuzz {target}"), &Outcome::of(run(workspace, &nightly, target)));
            }
        }
        Err(error) => say("fuzz targets", &Outcome::Failed(format!("{error:#}"))),
    }
    totals
}

fn cargo_fuzz(workspace: &Workspace, nightly: &str, subcommand: &str) -> Command {
    let mut cargo = process::command("cargo");
    cargo.arg(format!("+{nightly}")).args(["fuzz", subcommand, "--fuzz-dir"]);
    cargo.arg(workspace.path("tests/fuzz")).current_dir(workspace.root());
    cargo
}

fn targets(workspace: &Workspace, nightly: &str) -> Result<Vec<String>> {
    let listed = process::output(&mut cargo_fuzz(workspace, nightly, "list"))?;
    Ok(listed.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn run(workspace: &Workspace, nightly: &str, target: &str) -> Result<()> {
    let mut cargo = cargo_fuzz(workspace, nightly, "run");
    cargo.args([target, "--", &format!("-max_total_time={SECONDS_PER_TARGET}")]);
    process::step(&format!("fuzz {target}"), &workspace.logs().join(format!("fuzz-{target}.log")), &mut cargo)
}
