//! Whether the load generator itself could have been what limited a row.

use super::path::Path;
use super::results::{Entry, Results};

/// A row's best path beside what the generator does with nothing between its ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    pub(crate) run: String,
    pub(crate) unit: &'static str,
    /// The generator alone.
    pub(crate) alone: f64,
    pub(crate) path: Path,
    /// The fastest of the paths that cross a wire or a proxy, and its ratio to the generator alone.
    pub(crate) fastest: f64,
    pub(crate) share: f64,
}

/// The one value of a row that says how much was done.
const AMOUNTS: [&str; 2] = ["rate", "throughput"];

/// One check for each row that was measured on the loopback path too.
pub(crate) fn checks(results: &Results) -> Vec<Check> {
    let alone = |entry: &&Entry| entry.path == Path::Loopback && AMOUNTS.contains(&entry.metric.name);
    results.sorted().into_iter().filter(alone).filter_map(|entry| check(results, entry)).collect()
}

fn check(results: &Results, alone: &Entry) -> Option<Check> {
    let others = results
        .sorted()
        .into_iter()
        .filter(|entry| entry.run == alone.run && entry.metric == alone.metric && entry.path != Path::Loopback);
    let median = |entry: &Entry| Some(entry.values.summary()?.median);
    let fastest = others.max_by(|a, b| median(a).unwrap_or(0.0).total_cmp(&median(b).unwrap_or(0.0)))?;
    Some(Check {
        run: alone.run.clone(),
        unit: alone.metric.unit,
        alone: median(alone)?,
        path: fastest.path,
        fastest: median(fastest)?,
        share: results.ratio(fastest, Path::Loopback)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn the_fastest_path_is_held_against_the_generator_alone() {
        let results = results(&[
            ("rr-64-16", "rate", Path::Loopback, &[200.0]),
            ("rr-64-16", "rate", Path::Plain, &[100.0]),
            ("rr-64-16", "rate", Path::Warren, &[50.0]),
            ("rr-64-16", "p50", Path::Loopback, &[1.0]),
            ("rr-64-1", "rate", Path::Plain, &[1.0]),
        ]);
        let checks = checks(&results);
        assert_eq!(checks.len(), 1, "{checks:?}");
        assert_eq!((checks[0].path, checks[0].share, checks[0].alone), (Path::Plain, 0.5, 200.0));
    }
}
