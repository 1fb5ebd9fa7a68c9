//! The goals, each held against this run's own rows.

use std::fmt;

use super::path::Path;
use super::results::{Entry, Results};
use super::run::RTT;

/// Whether a goal was reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    Met(f64),
    NotMet(f64),
    NotMeasured,
}

/// A goal and what this run says of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) goal: String,
    pub(crate) verdict: Verdict,
    /// Rows that fell short, or what the figure is made of.
    pub(crate) detail: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Met(_) => f.write_str("met"),
            Self::NotMet(_) => f.write_str("NOT MET"),
            Self::NotMeasured => f.write_str("not measured"),
        }
    }
}

impl Verdict {
    /// The figure behind it.
    pub(crate) fn figure(self) -> Option<f64> {
        match self {
            Self::Met(figure) | Self::NotMet(figure) => Some(figure),
            Self::NotMeasured => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn verdict(self, figure: Option<f64>) -> Verdict {
        match (self, figure) {
            (_, None) => Verdict::NotMeasured,
            (Self::AtLeast(goal), Some(figure)) if figure >= goal => Verdict::Met(figure),
            (Self::AtMost(goal), Some(figure)) if figure <= goal => Verdict::Met(figure),
            (_, Some(figure)) => Verdict::NotMet(figure),
        }
    }

    /// Of several figures the one that is farthest from the goal.
    fn worst(self, figures: impl Iterator<Item = f64>) -> Option<f64> {
        match self {
            Self::AtLeast(_) => figures.min_by(f64::total_cmp),
            Self::AtMost(_) => figures.max_by(f64::total_cmp),
        }
    }
}

/// All goals, in their order.
pub(crate) fn lines(results: &Results) -> Vec<Line> {
    let streams = ["stream-1-up", "stream-1-down", "stream-8-up", "stream-8-down"];
    let mut lines = vec![
        against_ztunnel(results, "between nodes, 1 and 8 streams: throughput", &streams, "throughput", 2.0),
        processor_time(results, &streams),
        overhead(results),
        against_ztunnel(results, "round trips/s, 64 B, 16 connections", &["rr-64-16"], "rate", 2.0),
        against_ztunnel(results, "new connections/s, 16 at a time, warm tunnel", &["connect-16"], "rate", 2.0),
        first_byte(results),
        same_node(results),
    ];
    lines.extend(splice(results));
    lines.push(memory(results));
    lines.push(policy(results));
    lines.push(enrolment(results));
    lines
}

fn line(what: &str, goal: &str, kind: Goal, figure: Option<f64>, detail: String) -> Line {
    Line { what: what.to_owned(), goal: goal.to_owned(), verdict: kind.verdict(figure), detail }
}

fn warren<'a>(results: &'a Results, run: &str, metric: &str) -> Option<&'a Entry> {
    results.find(run, metric, Path::Warren)
}

/// Each of the rows against ztunnel; the worst counts, and each must be there.
fn against_ztunnel(results: &Results, what: &str, runs: &[&str], metric: &str, goal: f64) -> Line {
    let ratio = |run: &&str| results.ratio(warren(results, run, metric)?, Path::Ztunnel);
    of_rows(what, &format!("≥ {goal:.1} × ztunnel"), Goal::AtLeast(goal), runs, ratio)
}

fn processor_time(results: &Results, runs: &[&str]) -> Line {
    let ratio = |run: &&str| results.cpu_ratio(warren(results, run, "throughput")?, Path::Ztunnel);
    of_rows("between nodes: CPU s/GB", "≤ 0.5 × ztunnel", Goal::AtMost(0.5), runs, ratio)
}

fn of_rows(what: &str, words: &str, goal: Goal, runs: &[&str], ratio: impl Fn(&&str) -> Option<f64>) -> Line {
    let found: Vec<(&str, f64)> = runs.iter().filter_map(|run| Some((*run, ratio(run)?))).collect();
    let complete = found.len() == runs.len();
    let worst = goal.worst(found.iter().map(|(_, ratio)| *ratio));
    // A part of the rows can show that a goal is not reached, never that it is.
    let figure = worst.filter(|worst| complete || matches!(goal.verdict(Some(*worst)), Verdict::NotMet(_)));
    let detail: Vec<String> = found.iter().map(|(run, ratio)| format!("{run} {ratio:.2}")).collect();
    line(what, words, goal, figure, detail.join(", "))
}

/// What a path adds to plain TCP's round trip, against what ztunnel adds.
fn overhead(results: &Results) -> Line {
    let p50 = |path| results.find("rr-64-1", "p50", path).map(|entry| &entry.values);
    let added = |path| Some(p50(path)?.pairwise(p50(Path::Plain)?, |value, plain| value - plain));
    let median = |path| Some(added(path)?.summary()?.median);
    let figure = added(Path::Warren).zip(added(Path::Ztunnel)).and_then(|(ours, theirs)| ours.ratio(&theirs));
    let detail = match (median(Path::Warren), median(Path::Ztunnel)) {
        (Some(ours), Some(theirs)) => format!("+{ours:.1} µs against +{theirs:.1} µs"),
        _ => String::new(),
    };
    let what = "between nodes: round-trip overhead over plain TCP, 64 B, 1 connection";
    line(what, "≤ 0.4 × ztunnel's", Goal::AtMost(0.4), figure, detail)
}

/// In round trips of the link; a tenth of one is the measurement's own.
fn first_byte(results: &Results) -> Line {
    let figure = |path| {
        let [ours, plain] =
            [path, Path::Plain].map(|path| results.find("first-byte", "p50", path).map(|entry| &entry.values));
        Some(ours?.pairwise(plain?, |value, plain| (value - plain) / (RTT as f64 * 1000.0)).summary()?.median)
    };
    let theirs = figure(Path::Ztunnel).map(|theirs| format!("ztunnel {theirs:+.2} RTT")).unwrap_or_default();
    let what = "first byte of a new connection at 10 ms RTT, warm tunnel";
    line(what, "plain TCP's + 0 RTT", Goal::AtMost(0.1), figure(Path::Warren), theirs)
}

fn same_node(results: &Results) -> Line {
    const RUNS: [&str; 12] = [
        "rr-64-1",
        "rr-64-16",
        "rr-64-256",
        "rr-16k-1",
        "rr-16k-16",
        "rr-16k-256",
        "connect-1",
        "connect-16",
        "stream-1-up",
        "stream-1-down",
        "stream-8-up",
        "stream-8-down",
    ];
    let ratio = |run: &&str| {
        let metric = if run.starts_with("stream") { "throughput" } else { "rate" };
        results.ratio(results.find(run, metric, Path::SameNode)?, Path::PlainSameNode)
    };
    of_rows("same node, no splice, every row", "≥ 0.95 × plain TCP", Goal::AtLeast(0.95), &RUNS, ratio)
}

fn splice(results: &Results) -> [Line; 2] {
    let ratio =
        |run: &str, metric| results.ratio(results.find(run, metric, Path::SameNodeSplice)?, Path::PlainSameNode);
    let throughput = |run: &&str| ratio(run, "throughput");
    let rate = |run: &&str| ratio(run, "rate");
    let streams = ["stream-1-up", "stream-8-up"];
    [
        of_rows("same node, splice: throughput", "≥ 3 × plain TCP", Goal::AtLeast(3.0), &streams, throughput),
        of_rows("same node, splice: round trips/s at 16", "≥ 1.7 × plain TCP", Goal::AtLeast(1.7), &["rr-64-16"], rate),
    ]
}

fn memory(results: &Results) -> Line {
    let ratio = |run: &&str| results.ratio(warren(results, run, "rss")?, Path::Ztunnel);
    let what = "memory for idle tunnelled connections";
    let mut line = of_rows(what, "≤ 0.5 × ztunnel's growth", Goal::AtMost(0.5), &["idle"], ratio);
    let held = |path| Some(results.find("idle", "held", path)?.values.summary()?.low);
    if let (Some(ours), Some(theirs)) = (held(Path::Warren), held(Path::Ztunnel)) {
        line.detail = format!("{ours:.0} connections held against {theirs:.0}");
    }
    line
}

/// The figure is the largest deviation; an allocation spoils it whatever it is.
fn policy(results: &Results) -> Line {
    let median = |metric| Some(warren(results, "policy", metric)?.values.summary()?.median);
    let (deviation, allocations) = (median("deviation"), median("allocations"));
    let goal = Goal::AtMost(0.2);
    let mut line =
        line("policy decision, 10 → 100,000 policies", "± 20 %, no allocation", goal, deviation, String::new());
    if let (Some(deviation), Some(allocations)) = (deviation, allocations) {
        line.detail = format!("{allocations:.2} allocations a decision");
        if allocations > 0.0 {
            line.verdict = Verdict::NotMet(deviation);
        }
    }
    line
}

fn enrolment(results: &Results) -> Line {
    let time = warren(results, "enrol", "time").and_then(|entry| entry.values.summary());
    line("enrolling a pod, ms", "< 5 ms", Goal::AtMost(5.0), time.map(|time| time.median), String::new())
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    fn verdict(results: &Results, word: &str) -> Verdict {
        lines(results).into_iter().find(|line| line.what.contains(word)).unwrap().verdict
    }

    #[test]
    fn nothing_measured_is_nothing_met() {
        assert!(lines(&Results::default()).iter().all(|line| line.verdict == Verdict::NotMeasured));
    }

    #[test]
    fn a_ratio_decides() {
        let with = |ours: f64| {
            results(&[("rr-64-16", "rate", Path::Warren, &[ours]), ("rr-64-16", "rate", Path::Ztunnel, &[10.0])])
        };
        assert_eq!(verdict(&with(25.0), "round trips/s, 64 B"), Verdict::Met(2.5));
        assert_eq!(verdict(&with(19.0), "round trips/s, 64 B"), Verdict::NotMet(1.9));
    }

    #[test]
    fn the_overhead_is_what_is_added_to_plain() {
        let results = results(&[
            ("rr-64-1", "p50", Path::Plain, &[50.0, 60.0]),
            ("rr-64-1", "p50", Path::Warren, &[60.0, 70.0]),
            ("rr-64-1", "p50", Path::Ztunnel, &[90.0, 100.0]),
        ]);
        assert_eq!(verdict(&results, "round-trip overhead"), Verdict::Met(0.25));
    }

    #[test]
    fn some_of_the_rows_can_refuse_a_goal_but_not_grant_it() {
        let with = |ours: f64| {
            results(&[
                ("stream-1-up", "throughput", Path::Warren, &[ours]),
                ("stream-1-up", "throughput", Path::Ztunnel, &[10.0]),
            ])
        };
        assert_eq!(verdict(&with(30.0), "streams: throughput"), Verdict::NotMeasured);
        assert_eq!(verdict(&with(11.0), "streams: throughput"), Verdict::NotMet(1.1));
    }
}
