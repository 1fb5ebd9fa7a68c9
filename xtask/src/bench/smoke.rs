//! The benchmark as a test suite: two rows on two paths, quickly, and a look
//! at what it writes. Figures of such a run say nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::options::Options;
use super::{lab, ladder};
use crate::interrupt;
use crate::outcome::{Outcome, Totals};
use crate::process;
use crate::schema::Schema;
use crate::workspace::Workspace;

/// Values that two rows give on two paths: five of round trips, one of a stream.
const OBJECTS: usize = 2 * (5 + 1);

/// Runs it with the debug build.
pub(crate) fn check(workspace: &Workspace) -> Totals {
    let mut totals = Totals::default();
    let out = workspace.target().join("bench-smoke");
    let mut count = |name: &str, outcome: Outcome| {
        outcome.print(name);
        totals.count(&outcome);
    };
    let ran = measure(workspace, &out);
    let well = ran.is_ok();
    count("two rows on plain TCP and Warren are measured, and no byte is wrong", Outcome::of(ran));
    if well {
        count("every row fits its JSON Schema and has its ratio", Outcome::of(rows_are_well(workspace, &out)));
        count("a picture and a page are there", Outcome::of(files_are_there(&out)));
    }
    count("nothing is left behind", Outcome::of_findings(&lab::leftovers()));
    totals
}

fn measure(workspace: &Workspace, out: &Path) -> Result<()> {
    interrupt::arm()?;
    let mut cargo = process::command("cargo");
    process::run(cargo.current_dir(workspace.root()).args(["build", "--package", "warren-load"]))?;
    let debug = workspace.target().join("debug");
    let options = Options::smoke(&debug, out.to_owned());
    ladder::run(workspace, &options, &ladder::programs(workspace, &options)?)
}

fn rows_are_well(workspace: &Workspace, out: &Path) -> Result<()> {
    let schema = Schema::load(&workspace.path("xtask/src/bench/row.schema.json"))?;
    let rows: Vec<Value> = serde_json::from_str(&fs::read_to_string(out.join("results.json"))?)?;
    ensure!(rows.len() == OBJECTS, "{} objects instead of {OBJECTS}", rows.len());
    for row in &rows {
        let faults = schema.faults(row);
        ensure!(faults.is_empty(), "{}: {row}", faults.join(", "));
        let samples = row["samples"].as_array().context("samples")?;
        ensure!(samples.len() == 2 && samples.iter().all(|sample| sample.as_f64() > Some(0.0)), "samples of {row}");
        ensure!(row["path"] == "plain" || row["ratio_to_plain"].as_f64() > Some(0.0), "no ratio: {row}");
    }
    Ok(())
}

fn files_are_there(out: &Path) -> Result<()> {
    for (name, mark) in [("results.svg", "</svg>"), ("report.html", "</table>")] {
        let text = fs::read_to_string(out.join(name)).with_context(|| name.to_owned())?;
        ensure!(text.contains(mark), "{name} is not complete");
    }
    Ok(())
}
