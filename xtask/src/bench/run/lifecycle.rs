//! Pods that are taken in, agents that come back.

use std::time::Instant;

use anyhow::{Context, Result};
use warren_load::report::Report;

use super::super::lab::Lab;
use super::super::lab::net::NODES;
use super::super::options::Options;
use super::{Metric, Sample, Value};

const TIME: Metric = Metric { name: "time", unit: "ms", more_is_better: false, shown: true };

/// The agent's own report of the last pod that it took in when it started.
pub(super) fn enrolment(lab: &Lab) -> Result<Sample> {
    let log = lab.agents()?.log_text(NODES[0]);
    let line = log.lines().rfind(|line| line.contains("pod enrolled")).context("the agent reports no enrolment")?;
    let took = plain(line).split("took=").nth(1).and_then(milliseconds).with_context(|| format!("in {line:?}"))?;
    Ok(Sample { values: vec![Value { metric: TIME, value: took }], cpu: None, note: None })
}

/// Kills the agent of the client's node, starts it again at once, and
/// connects meanwhile: how long until that connection is answered.
pub(super) fn restart(lab: &mut Lab, options: &Options) -> Result<Sample> {
    let patience = options.patience().as_secs_f64().to_string();
    let agents = lab.agents()?.clone();
    let daemon = lab.proxies().first_mut().context("no agent")?;
    daemon.kill();
    let killed = Instant::now();
    *daemon = agents.launch(NODES[0])?;
    let client = lab.start(&["connect", "--count", "1", "--warmup", "0", "--patience", &patience])?;
    let report: Report = client.finish()?;
    let took = killed.elapsed().as_secs_f64() * 1000.0;
    if let Some(error) = report.error {
        anyhow::bail!("a connection during the restart failed: {error}");
    }
    let daemon = lab.proxies().first_mut().context("no agent")?;
    agents.wait_until_ready(NODES[0], daemon)?;
    Ok(Sample { values: vec![Value { metric: TIME, value: took }], cpu: None, note: None })
}

/// Without a terminal's colours.
fn plain(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
}

/// A duration as Rust prints it.
fn milliseconds(text: &str) -> Option<f64> {
    let text = text.split_whitespace().next()?;
    let number = |unit: &str| text.strip_suffix(unit)?.parse::<f64>().ok();
    number("ms")
        .or_else(|| number("µs").map(|micros| micros / 1000.0))
        .or_else(|| number("ns").map(|nanos| nanos / 1e6))
        .or_else(|| number("s").map(|seconds| seconds * 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_report_is_understood() {
        let line = "\u{1b}[2m2026\u{1b}[0m INFO pod enrolled pod=a/b \u{1b}[3mtook\u{1b}[0m\u{1b}[2m=\u{1b}[0m15.2ms adopted=0";
        assert_eq!(plain(line).split("took=").nth(1).and_then(milliseconds), Some(15.2));
        assert_eq!(milliseconds("812.5µs x"), Some(0.8125));
        assert_eq!(milliseconds("1.5s"), Some(1500.0));
        assert_eq!(milliseconds("soon"), None);
    }
}
