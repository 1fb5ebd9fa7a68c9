//! What the ladder leaves: a table, JSON, a picture, a page.

mod html;
mod svg;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use self::table::{print_results, print_self_checks, print_targets};
use super::results::Results;
use super::targets::Line;

/// Where and with what a run was made.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// Programs and their versions, the machine.
    pub(crate) facts: Vec<(String, String)>,
    /// What went wrong.
    pub(crate) faults: Vec<String>,
}

/// Writes the files; gives their paths.
pub(crate) fn write(out: &Path, about: &About, results: &Results, targets: &[Line]) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let picture = svg::draw(results);
    let files = [
        ("results.json", serde_json::to_string_pretty(&results.json())? + "\n"),
        ("results.svg", picture.clone()),
        ("report.html", html::page(about, results, targets, &picture)),
    ];
    let mut written = Vec::new();
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        written.push(path);
    }
    Ok(written)
}

/// A number with as many digits as are worth reading.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => grouped(value),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_or_more() {
        assert_eq!(
            [0.123, 12.345, 123.4, 1234.5, -1_234_567.0].map(figure),
            ["0.12", "12.3", "123", "1,234", "-1,234,567"]
        );
    }
}
