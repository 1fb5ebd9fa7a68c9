//! Policy decisions with few and with many policies, without any network: a
//! program of its own measures them and prints one JSON object a line.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

use super::super::options::Options;
use super::{Metric, Sample, Value};
use crate::process;

const DEVIATION: Metric =
    Metric { name: "deviation", unit: "of the fewest's time", more_is_better: false, shown: true };
const ALLOCATIONS: Metric = Metric { name: "allocations", unit: "a decision", more_is_better: false, shown: true };
/// How rows begin that are held against the one with the fewest policies. The
/// others show what the processor's caches do not hold.
const HELD: &str = "policy-";
const SPREAD: &str = "policy-spread";

/// Runs the program.
pub(super) fn measure(program: &Path, options: &Options) -> Result<Sample> {
    let mut command = process::command(program);
    command.args(["--rows", HELD]);
    if options.quick {
        command.args(["--rounds", "5", "--milliseconds", "5"]);
    }
    let text = process::output(&mut command)?;
    let rows = text.lines().map(serde_json::from_str).collect::<Result<Vec<Json>, _>>();
    sample(&rows.with_context(|| format!("what {} says", program.display()))?)
}

/// The largest deviation of all sizes, and what all of them allocated.
fn sample(rows: &[Json]) -> Result<Sample> {
    let name = |row: &Json| row["row"].as_str().unwrap_or_default().to_owned();
    let held: Vec<&Json> =
        rows.iter().filter(|row| name(row).starts_with(HELD) && !name(row).starts_with(SPREAD)).collect();
    ensure!(!held.is_empty(), "no row of policies");
    let number = |key: &str| held.iter().filter_map(|row| row[key].as_f64()).collect::<Vec<f64>>();
    let deviation = number("ratio_to_first").into_iter().map(|ratio| (ratio - 1.0).abs()).fold(0.0, f64::max);
    let allocations = number("allocations").into_iter().sum();
    let values = vec![Value { metric: DEVIATION, value: deviation }, Value { metric: ALLOCATIONS, value: allocations }];
    Ok(Sample { values, cpu: None, note: None })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_size_counts_either_way() {
        let row = |row: &str, ratio: f64| json!({"row": row, "ratio_to_first": ratio, "allocations": 0.0});
        let rows = [row("policy-port-10", 1.0), row("policy-port-1000", 0.75), row("policy-spread-1000", 4.0)];
        let values: Vec<f64> = sample(&rows).unwrap().values.iter().map(|value| value.value).collect();
        assert_eq!(values, [0.25, 0.0]);
        assert!(sample(&[row("codec-1", 1.0)]).is_err());
    }
}
