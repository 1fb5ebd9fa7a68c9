//! Rows of benchmarks that have nothing to be held against: a table, and JSON
//! in the ladder's form.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value as Json, json};

use super::report::figure;
use super::stats::{Series, Summary};

/// One value over the rounds.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) row: String,
    pub(crate) title: String,
    pub(crate) path: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Series,
}

/// Rows in the order in which they first came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    /// Adds a sample to a row, which is made when it is new.
    pub(crate) fn add(&mut self, key: (&str, &str), path: &str, unit: &'static str, round: usize, value: f64) {
        let (row, title) = key;
        let at = self.0.iter().position(|known| known.row == row && known.path == path).unwrap_or_else(|| {
            let (row, title, path) = (row.to_owned(), title.to_owned(), path.to_owned());
            self.0.push(Row { row, title, path, unit, values: Series::default() });
            self.0.len() - 1
        });
        self.0[at].values.push(round, value);
    }

    /// What became of a row.
    pub(crate) fn summary(&self, row: &str, path: &str) -> Option<Summary> {
        self.0.iter().find(|known| known.row == row && known.path == path)?.values.summary()
    }

    /// The rows.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.0.iter()
    }

    /// One JSON object for each row.
    pub(crate) fn json(&self) -> Vec<Json> {
        self.0.iter().filter_map(Row::object).collect()
    }

    /// Prints those that `shown` takes, under one heading.
    pub(crate) fn print(&self, heading: &str, shown: impl Fn(&Row) -> bool) {
        let rows: Vec<_> =
            self.0.iter().filter(|row| shown(row)).filter_map(|row| Some((row, row.values.summary()?))).collect();
        if rows.is_empty() {
            return;
        }
        println!("\n{heading}");
        println!("  {:<58}{:<18}{:>12}{:>22}  unit", "what", "path", "median", "low – high");
        for (row, Summary { median, low, high }) in rows {
            let spread = if low < high { format!("{} – {}", figure(low), figure(high)) } else { String::new() };
            println!("  {:<58}{:<18}{:>12}{spread:>22}  {}", row.title, row.path, figure(median), row.unit);
        }
    }
}

impl Row {
    fn object(&self) -> Option<Json> {
        let Summary { median, low, high } = self.values.summary()?;
        let mut object = Map::new();
        let facts = [
            ("row", json!(self.row)),
            ("title", json!(self.title)),
            ("path", json!(self.path)),
            ("unit", json!(self.unit)),
            ("better", json!("less")),
            ("median", json!(median)),
            ("low", json!(low)),
            ("high", json!(high)),
            ("samples", json!(self.values.values())),
        ];
        object.extend(facts.map(|(key, value)| (key.to_owned(), value)));
        Some(Json::Object(object))
    }
}

/// Writes objects to a file; gives its path.
pub(crate) fn write(out: &Path, name: &str, objects: &[Json]) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let path = out.join(name);
    let text = serde_json::to_string_pretty(objects)? + "\n";
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_row_come_together() {
        let mut rows = Rows::default();
        for (round, value) in [3.0, 1.0, 2.0].into_iter().enumerate() {
            rows.add(("a", "A"), "warren", "ns", round, value);
            rows.add(("a", "A"), "same-node", "ns", round, value * 2.0);
        }
        rows.add(("empty", "E"), "warren", "ns", 0, f64::NAN);
        let json = rows.json();
        assert_eq!(json.len(), 2);
        let same = &json[1];
        assert_eq!((&same["row"], &same["path"]), (&json!("a"), &json!("same-node")));
        assert_eq!((&same["median"], &same["low"], &same["high"]), (&json!(4.0), &json!(2.0), &json!(6.0)));
    }
}
