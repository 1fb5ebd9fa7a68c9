//! `bench micro`: policy decisions and HTTP/2 without I/O, measured in a
//! process of their own that is built to be fast.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value as Json;

use super::ladder::{LOCK_LIMIT, MICRO};
use super::report::figure;
use super::rows;
use crate::workspace::Workspace;
use crate::{netlab, process};

/// A decision with the most policies may take so much more or less than with the fewest.
const TOLERANCE: f64 = 0.2;
/// How rows begin that are held against it. Those of `policy-spread` show what the processor's caches do not hold.
const HELD: &str = "policy-";
const SPREAD: &str = "policy-spread";

/// Options of `bench micro`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Only rows whose name contains this.
    #[arg(long, value_name = "PATTERN")]
    rows: Option<String>,
    /// Where the JSON goes [default: target/bench].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Take the binary as it is.
    #[arg(long)]
    no_build: bool,
}

/// Builds, measures, prints, writes.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !options.no_build {
        let mut cargo = process::command("cargo");
        cargo.current_dir(workspace.root()).args(["build", "--release", "--package", MICRO]);
        process::run(&mut cargo)?;
    }
    let _alone = netlab::lock("warren-bench", LOCK_LIMIT)?;
    let mut command = process::command(workspace.target().join("release").join(MICRO));
    if options.quick {
        command.args(["--rounds", "5", "--milliseconds", "5"]);
    }
    command.args(options.rows.iter().flat_map(|pattern| ["--rows", pattern.as_str()]));
    let text = process::output(&mut command)?;
    let rows: Vec<Json> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("what {MICRO} says"))?;
    print(&rows);
    let out = options.out.clone().unwrap_or_else(|| workspace.target().join("bench"));
    println!("\n{}", rows::write(&out, "micro.json", &rows)?.display());
    Ok(())
}

fn print(rows: &[Json]) {
    println!("  {:<36}{:>10}{:>20}{:>14}{:>12}", "row", "ns", "low – high", "× the first", "allocations");
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "  {:<36}{:>10}{:>20}{:>14.2}{:>12}",
            row["row"].as_str().unwrap_or_default(),
            figure(number("median")),
            format!("{} – {}", figure(number("low")), figure(number("high"))),
            number("ratio_to_first"),
            figure(number("allocations"))
        );
    }
    if let Some(verdict) = verdict(rows) {
        println!("\npolicy decision, fewest to most policies: {verdict}");
    }
}

/// Whether decisions cost the same whatever the number of policies, and allocate nothing.
fn verdict(rows: &[Json]) -> Option<String> {
    let is_held =
        |row: &&Json| row["row"].as_str().is_some_and(|row| row.starts_with(HELD) && !row.starts_with(SPREAD));
    let held: Vec<&Json> = rows.iter().filter(is_held).collect();
    let ratios = held.iter().filter_map(|row| row["ratio_to_first"].as_f64());
    let worst = ratios.max_by(|a, b| (a - 1.0).abs().total_cmp(&(b - 1.0).abs()))?;
    let allocations: f64 = held.iter().filter_map(|row| row["allocations"].as_f64()).sum();
    let met = (worst - 1.0).abs() <= TOLERANCE && allocations == 0.0;
    let goal = format!("within ± {:.0} %, no allocation", TOLERANCE * 100.0);
    let found = format!("× {worst:.2} at most, {} allocations", figure(allocations));
    Some(format!("{} ({goal}: {found})", if met { "met" } else { "not met" }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_decision_is_held_against_the_one_with_the_fewest_policies() {
        let row = |row: &str, ratio: f64, allocations: f64| json!({"row": row, "ratio_to_first": ratio, "allocations": allocations});
        let told = |rows: &[Json]| verdict(rows).unwrap_or_default();
        let fine = row("policy-port-allowed-100", 0.85, 0.0);
        assert!(told(&[fine.clone(), row("policy-spread-allowed-100", 3.0, 0.0)]).starts_with("met"));
        assert!(told(&[fine.clone(), row("policy-port-allowed-1000", 1.3, 0.0)]).starts_with("not met"));
        assert!(told(&[fine, row("policy-port-denied-10", 1.0, 1.0)]).starts_with("not met"));
        assert_eq!(verdict(&[row("codec-data-64", 1.0, 0.0)]), None);
    }
}
