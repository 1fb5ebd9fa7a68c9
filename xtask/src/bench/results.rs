//! What was measured: a series for each value of each row on each path, and
//! what follows from them.

use serde_json::{Map, Value as Json, json};

use super::path::Path;
use super::run::{Metric, Run, Sample};
use super::stats::{Series, Summary};

/// One value of a row on one path, over the rounds.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The row's name.
    pub(crate) run: String,
    pub(crate) title: String,
    pub(crate) metric: Metric,
    pub(crate) path: Path,
    pub(crate) values: Series,
    pub(crate) cpu: Series,
    pub(crate) cpu_unit: Option<&'static str>,
    pub(crate) notes: Vec<String>,
}

/// Everything of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Results {
    entries: Vec<Entry>,
}

impl Results {
    /// Adds what a measurement gave.
    pub(crate) fn add(&mut self, run: &Run, path: Path, round: usize, sample: Sample) {
        for value in sample.values {
            let entry = self.entry(run, path, value.metric);
            entry.values.push(round, value.value);
            if let Some(cpu) = sample.cpu {
                entry.cpu.push(round, cpu.value);
                entry.cpu_unit = Some(cpu.unit);
            }
            entry.notes.extend(sample.note.clone().filter(|note| !entry.notes.contains(note)));
        }
    }

    fn entry(&mut self, run: &Run, path: Path, metric: Metric) -> &mut Entry {
        let same = |entry: &Entry| entry.run == run.id && entry.path == path && entry.metric == metric;
        let at = self.entries.iter().position(same).unwrap_or_else(|| {
            self.entries.push(Entry {
                run: run.id.clone(),
                title: run.title.clone(),
                metric,
                path,
                values: Series::default(),
                cpu: Series::default(),
                cpu_unit: None,
                notes: Vec::new(),
            });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    /// All, row by row, then value by value, then path by path.
    pub(crate) fn sorted(&self) -> Vec<&Entry> {
        let mut order: Vec<(&str, &str)> = Vec::new();
        for entry in &self.entries {
            let key = (entry.run.as_str(), entry.metric.name);
            if !order.contains(&key) {
                // Values of a row stand together, in the order in which they came.
                let after = order.iter().rposition(|(run, _)| *run == entry.run).map_or(order.len(), |at| at + 1);
                order.insert(after, key);
            }
        }
        let place = |entry: &&Entry| order.iter().position(|key| *key == (entry.run.as_str(), entry.metric.name));
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| (place(entry), entry.path));
        entries
    }

    /// One series.
    pub(crate) fn find(&self, run: &str, metric: &str, path: Path) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.run == run && entry.metric.name == metric && entry.path == path)
    }

    /// The same value on another path.
    fn beside(&self, entry: &Entry, path: Path) -> Option<&Entry> {
        self.find(&entry.run, entry.metric.name, path)
    }

    /// An entry's value divided by the same on another path.
    pub(crate) fn ratio(&self, entry: &Entry, path: Path) -> Option<f64> {
        entry.values.ratio(&self.beside(entry, path).filter(|_| path != entry.path)?.values)
    }

    /// An entry's processor time divided by the same on another path.
    pub(crate) fn cpu_ratio(&self, entry: &Entry, path: Path) -> Option<f64> {
        entry.cpu.ratio(&self.beside(entry, path).filter(|_| path != entry.path)?.cpu)
    }

    /// One JSON object for each value of each row on each path.
    pub(crate) fn json(&self) -> Vec<Json> {
        self.sorted().into_iter().filter_map(|entry| self.object(entry)).collect()
    }

    fn object(&self, entry: &Entry) -> Option<Json> {
        let Summary { median, low, high } = entry.values.summary()?;
        let mut object = Map::new();
        let mut put = |key: &str, value: Json| object.insert(key.to_owned(), value);
        put("row", json!(format!("{}.{}", entry.run, entry.metric.name)));
        put("title", json!(entry.title));
        put("path", json!(entry.path.id()));
        put("unit", json!(entry.metric.unit));
        put("better", json!(if entry.metric.more_is_better { "more" } else { "less" }));
        put("median", json!(median));
        put("low", json!(low));
        put("high", json!(high));
        put("samples", json!(entry.values.values()));
        put("cpu", json!(entry.cpu.summary().map(|summary| summary.median)));
        put("cpu_unit", json!(entry.cpu_unit));
        let against = entry.path.control().map(|path| ("plain", path)).into_iter();
        for (name, path) in against.chain(entry.path.peers().iter().map(|peer| (peer.id(), *peer))) {
            put(&format!("ratio_to_{name}"), json!(self.ratio(entry, path)));
            put(&format!("cpu_ratio_to_{name}"), json!(self.cpu_ratio(entry, path)));
        }
        if !entry.notes.is_empty() {
            put("notes", json!(entry.notes));
        }
        Some(Json::Object(object))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::options::Options;
    use super::super::run::{Cpu, Kind, Value, catalogue};
    use super::*;

    /// Results of `RUN.METRIC` on paths, with processor time equal to ten times the value.
    pub(in crate::bench) fn results(rows: &[(&str, &'static str, Path, &[f64])]) -> Results {
        let mut results = Results::default();
        for (id, name, path, samples) in rows {
            let run = run(id);
            for (round, value) in samples.iter().enumerate() {
                let metric = Metric { name, unit: "1/s", more_is_better: true, shown: true };
                let values = vec![Value { metric, value: *value }];
                let cpu = Some(Cpu { unit: "µs/request", value: value * 10.0 });
                results.add(&run, *path, round, Sample { values, cpu, note: None });
            }
        }
        results
    }

    fn run(id: &str) -> Run {
        let mut options = Options::smoke(std::path::Path::new("bin"), "out".into());
        options.rows = vec![id.to_owned()];
        let found = catalogue(&options, true).into_iter().flatten().find(|run| run.id == id);
        found.unwrap_or_else(|| panic!("no row {id}"))
    }

    #[test]
    fn a_row_has_its_ratios() {
        let results = results(&[
            ("rr-64-16", "rate", Path::Plain, &[100.0, 200.0, 100.0]),
            ("rr-64-16", "rate", Path::Warren, &[50.0, 100.0, 50.0]),
            ("rr-64-16", "rate", Path::Ztunnel, &[20.0, 50.0, 25.0]),
        ]);
        let json = results.json();
        assert_eq!(json.len(), 3);
        let warren = json.iter().find(|row| row["path"] == "warren").unwrap();
        assert_eq!(warren["row"], "rr-64-16.rate");
        assert_eq!((&warren["median"], &warren["low"], &warren["high"]), (&json!(50.0), &json!(50.0), &json!(100.0)));
        assert_eq!((&warren["ratio_to_plain"], &warren["ratio_to_ztunnel"]), (&json!(0.5), &json!(2.0)));
        assert_eq!((&warren["cpu"], &warren["unit"]), (&json!(500.0), &json!("1/s")));
        assert_eq!(warren["ratio_to_envoy"], Json::Null, "not measured");
        let plain = json.iter().find(|row| row["path"] == "plain").unwrap();
        assert_eq!(plain["ratio_to_plain"], Json::Null, "nothing is held against itself");
    }

    #[test]
    fn same_node_is_held_against_plain_on_the_same_node() {
        let results = results(&[
            ("rr-64-16", "rate", Path::Plain, &[1.0]),
            ("rr-64-16", "rate", Path::PlainSameNode, &[100.0]),
            ("rr-64-16", "rate", Path::SameNode, &[95.0]),
        ]);
        let json = results.json();
        let same = json.iter().find(|row| row["path"] == "same-node").unwrap();
        assert_eq!(same["ratio_to_plain"], json!(0.95));
        assert!(same.get("ratio_to_ztunnel").is_none());
    }

    #[test]
    fn rows_keep_their_order_and_paths_theirs() {
        let results = results(&[
            ("stream-1-up", "throughput", Path::Warren, &[1.0]),
            ("stream-1-up", "throughput", Path::Plain, &[1.0]),
            ("rr-64-1", "p50", Path::Plain, &[1.0]),
        ]);
        let names: Vec<(String, Path)> =
            results.sorted().into_iter().map(|entry| (entry.run.clone(), entry.path)).collect();
        assert_eq!(names[0], ("stream-1-up".into(), Path::Plain));
        assert_eq!(names[1], ("stream-1-up".into(), Path::Warren));
        assert!(matches!(run("rr-64-1").kind, Kind::RoundTrips { size: 64, connections: 1 }));
    }
}
