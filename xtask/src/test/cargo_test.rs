//! `cargo test`, shown as it runs and counted.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::outcome::Totals;
use crate::process;
use crate::workspace::Workspace;

/// Runs `cargo test` with these arguments; those behind `--` go to the tests.
pub(super) fn run(workspace: &Workspace, arguments: &[&str], filter: Option<&str>) -> Totals {
    match stream(workspace, arguments, filter) {
        Ok(totals) => totals,
        Err(error) => {
            println!("FAILED   {error:#}");
            Totals { failed: 1, ..Totals::default() }
        }
    }
}

fn stream(workspace: &Workspace, arguments: &[&str], filter: Option<&str>) -> Result<Totals> {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.root()).args(["test", "--no-fail-fast"]);
    let (for_cargo, for_tests) = split(arguments);
    // Tests of the cluster make it by this program.
    cargo.env("WARREN_XTASK", std::env::current_exe().context("own program")?);
    cargo.args(for_cargo).arg("--").args(for_tests).args(filter);
    let mut child = cargo.stdout(Stdio::piped()).spawn().with_context(|| process::shown(&cargo))?;
    let mut totals = Totals::default();
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let line = line?;
        println!("{line}");
        if let Some(sum) = result_line(&line) {
            totals += sum;
        }
    }
    let status = child.wait()?;
    // A crate that does not compile, or a test process that died, has no result line.
    if !status.success() && totals.failed == 0 {
        println!("FAILED   {}: {status}", process::shown(&cargo));
        totals.failed = 1;
    }
    Ok(totals)
}

fn split<'a, 'b>(arguments: &'a [&'b str]) -> (&'a [&'b str], &'a [&'b str]) {
    match arguments.iter().position(|argument| *argument == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (arguments, &[]),
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn result_line(line: &str) -> Option<Totals> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| {
        counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse::<usize>().ok()).unwrap_or_default()
    };
    Some(Totals { passed: count("passed"), failed: count("failed"), skipped: count("ignored") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some(Totals { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(result_line("test a::b ... ok"), None);
    }

    #[test]
    fn arguments_of_the_tests_stand_behind_the_dashes() {
        assert_eq!(split(&["-p", "x", "--", "--nocapture"]), (&["-p", "x"][..], &["--nocapture"][..]));
        assert_eq!(split(&["-p", "x"]), (&["-p", "x"][..], &[][..]));
    }
}
