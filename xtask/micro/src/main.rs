//! Measures, and prints one JSON object a line: the rows.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use warren_micro::measure::{Row, Timing};
use warren_micro::{codec, policy};

/// Micro-benchmarks of policy and codec.
#[derive(Debug, Parser)]
struct Args {
    /// How often each case is measured, in turn with the others it is held against.
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Milliseconds of one measurement.
    #[arg(long, default_value_t = 5)]
    milliseconds: u64,
    /// Numbers of policies.
    #[arg(long, value_delimiter = ',', default_values_t = policy::SIZES)]
    policies: Vec<usize>,
    /// Only rows whose name contains this.
    #[arg(long)]
    rows: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let timing = Timing { rounds: args.rounds.max(1), slice: Duration::from_millis(args.milliseconds) };
    let is_wanted = |row: &str| args.rows.as_ref().is_none_or(|part| row.contains(part.as_str()));
    for kind in policy::Kind::ALL.into_iter().filter(|kind| is_wanted(kind.row())) {
        print(&policy::measure(kind, &args.policies, timing)?)?;
    }
    if is_wanted(codec::ROW) {
        print(&codec::measure(timing)?)?;
    }
    Ok(())
}

fn print(rows: &[Row]) -> Result<()> {
    for row in rows {
        println!("{}", serde_json::to_string(row)?);
    }
    Ok(())
}
