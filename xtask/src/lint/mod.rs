//! `lint`: formats, compilers' lints, licences, and the sentences of
//! ARCHITECTURE.md about what may depend on what.

mod dependencies;
mod sources;

use std::path::Path;

use anyhow::Result;

use crate::crds;
use crate::ebpf::{self, Toolchain};
use crate::exit;
use crate::outcome::{Outcome, Totals};
use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;

/// Crates with a lock file of their own, outside the workspace.
const SEPARATE: [&str; 2] = ["ebpf/programs", "tests/fuzz"];

type Check = fn(&Workspace) -> Outcome;

const CHECKS: [(&str, Check); 13] = [
    ("format of user space", |ws| format(ws, ".")),
    ("format of the kernel programs", |ws| format(ws, "ebpf/programs")),
    ("format of the fuzz targets", |ws| format(ws, "tests/fuzz")),
    ("dependencies point one way", dependencies::edges),
    ("core is pure: no runtime, no sockets, no kernel library among its dependencies", dependencies::core_is_pure),
    ("every crate takes the workspace's lints", dependencies::lints_are_inherited),
    ("core is pure: no clock, no sockets, no files, no environment in its source", sources::core_is_pure),
    ("only capture uses aya", sources::aya_is_fenced),
    ("unsafe stands only in sys, capture and ebpf", sources::unsafe_is_fenced),
    ("deploy/crds is what its table says", crds::fresh),
    ("no path of one machine in the text", sources::no_machine_paths),
    ("clippy of user space", |ws| Outcome::of(clippy(ws))),
    ("clippy of the kernel programs", ebpf_clippy),
];

/// `cargo xtask lint`: every check, then the totals.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, Group::Test)?;
    // The daemon embeds the kernel programs: without them it does not compile.
    ebpf::build(workspace, &ebpf::Args::any())?;
    let totals = check(workspace);
    println!("{totals}");
    if totals.failed > 0 { Err(exit::told()) } else { Ok(()) }
}

/// Every check, each counted as one.
pub(crate) fn check(workspace: &Workspace) -> Totals {
    let mut totals = Totals::default();
    let mut say = |name: &str, outcome: &Outcome| {
        outcome.print(name);
        totals.count(outcome);
    };
    for (name, check) in CHECKS {
        say(name, &check(workspace));
    }
    for directory in [".", SEPARATE[0], SEPARATE[1]] {
        say(&format!("licences, bans and sources of dependencies in {directory}"), &deny(workspace, directory));
    }
    say("advisories against dependencies", &advisories(workspace));
    totals
}

/// Names the files that are not formatted. `--all` would follow a separate
/// crate's path dependencies back into the workspace.
fn format(workspace: &Workspace, directory: &str) -> Outcome {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.path(directory)).arg("fmt");
    if directory == "." {
        cargo.arg("--all");
    }
    match cargo.args(["--", "--check", "-l"]).output() {
        Ok(output) if output.status.success() => Outcome::Passed,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            let files: Vec<String> = said.lines().map(|file| relative(workspace, file)).collect();
            Outcome::Failed(format!("`cargo fmt` in {directory} would change:\n{}", files.join("\n")))
        }
        Err(error) => Outcome::Failed(format!("cargo fmt: {error}")),
    }
}

fn relative(workspace: &Workspace, file: &str) -> String {
    Path::new(file).strip_prefix(workspace.root()).map_or(file.to_owned(), |path| path.display().to_string())
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.root()).args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    process::run(cargo.args(["--", "-D", "warnings"]))
}

fn ebpf_clippy(workspace: &Workspace) -> Outcome {
    let Some(toolchain) = Toolchain::find(None) else {
        return Outcome::Failed("no compiler for the kernel's target; `cargo xtask setup` installs one".into());
    };
    match toolchain.clippy(workspace) {
        Some(mut cargo) => Outcome::of(process::run(cargo.args(["--quiet", "--bins", "--", "-D", "warnings"]))),
        None => Outcome::Skipped("there is no clippy that fits the compiler of the kernel's target".into()),
    }
}

fn cargo_deny(workspace: &Workspace, directory: &str) -> std::process::Command {
    let mut deny = process::command("cargo-deny");
    deny.arg("--manifest-path").arg(workspace.path(directory).join("Cargo.toml"));
    deny.arg("--config").arg(workspace.path("deny.toml"));
    deny.args(["--log-level", "error", "--all-features"]);
    deny.current_dir(workspace.root());
    deny
}

fn deny(workspace: &Workspace, directory: &str) -> Outcome {
    let mut deny = cargo_deny(workspace, directory);
    Outcome::of(process::run(deny.args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"])))
}

/// The advisory database comes from a place that not every machine reaches.
fn advisories(workspace: &Workspace) -> Outcome {
    let mut fetch = cargo_deny(workspace, ".");
    if let Err(error) = process::output(fetch.args(["fetch", "db"])) {
        let said = format!("{error:#}");
        // Behind time and level; what follows the first colon is the transport's own story.
        let cause = said.split("[ERROR] ").nth(1).unwrap_or(&said).split(':').next().unwrap_or_default();
        return Outcome::Skipped(format!("the advisory database cannot be fetched here ({cause})"));
    }
    let results = [".", SEPARATE[0], SEPARATE[1]].map(|directory| {
        let mut deny = cargo_deny(workspace, directory);
        process::run(deny.args(["check", "--disable-fetch", "advisories"]))
    });
    Outcome::of(results.into_iter().collect())
}
