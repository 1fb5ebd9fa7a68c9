//! A picture: for each row one bar for each path, as long as its value
//! compared with the row's largest.

use super::super::path::Path;
use super::super::results::{Entry, Results};
use super::figure;

const WIDTH: f64 = 960.0;
const LABELS: f64 = 150.0;
const BAR: f64 = 15.0;
const HEAD: f64 = 24.0;
const GAP: f64 = 14.0;
/// Room for the figure behind the longest bar.
const FIGURES: f64 = 190.0;

/// All shown values.
pub(super) fn draw(results: &Results) -> String {
    let (mut body, mut y) = (String::new(), GAP);
    for rows in grouped(results) {
        let Some(first) = rows.first() else { continue };
        let more = if first.metric.more_is_better { "more" } else { "less" };
        let title = format!("{}: {}, {} ({more} is better)", first.title, first.metric.name, first.metric.unit);
        body +=
            &format!("<text x=\"0\" y=\"{:.0}\" class=\"title\">{}</text>\n", y + 14.0, super::html::escaped(&title));
        y += HEAD;
        let largest =
            rows.iter().filter_map(|entry| Some(entry.values.summary()?.high)).fold(f64::MIN_POSITIVE, f64::max);
        for entry in rows {
            body += &bar(entry, y, largest);
            y += BAR + 3.0;
        }
        y += GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {y:.0}\" width=\"{WIDTH:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<style>.title {{font-weight: bold}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// The entries of each value of each row.
fn grouped(results: &Results) -> Vec<Vec<&Entry>> {
    let mut groups: Vec<Vec<&Entry>> = Vec::new();
    for entry in results.sorted().into_iter().filter(|entry| entry.metric.shown) {
        match groups.last_mut() {
            Some(group) if group[0].run == entry.run && group[0].metric == entry.metric => group.push(entry),
            _ => groups.push(vec![entry]),
        }
    }
    groups
}

/// The bar ends at the median; the line in it goes from the lowest to the highest sample.
fn bar(entry: &Entry, y: f64, largest: f64) -> String {
    let Some(summary) = entry.values.summary() else { return String::new() };
    let at = |value: f64| LABELS + (WIDTH - LABELS - FIGURES) * (value / largest).clamp(0.0, 1.0);
    let (end, low, high) = (at(summary.median), at(summary.low), at(summary.high));
    let (middle, text) = (y + BAR / 2.0, y + BAR - 3.0);
    format!(
        "<text x=\"0\" y=\"{text:.1}\">{}</text><rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" \
         fill=\"{}\"/><line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"black\"/>\
         <text x=\"{:.1}\" y=\"{text:.1}\">{}</text>\n",
        entry.path.id(),
        (end - LABELS).max(0.5),
        colour(entry.path),
        high.max(end) + 6.0,
        figure(summary.median)
    )
}

fn colour(path: Path) -> &'static str {
    match path {
        Path::Loopback => "#dddddd",
        Path::Plain | Path::PlainSameNode => "#9aa5b1",
        Path::Warren => "#2f7d4f",
        Path::SameNode => "#5aa978",
        Path::SameNodeSplice => "#93d1aa",
        Path::Ztunnel => "#466fb3",
        Path::Envoy => "#b0599e",
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::results::tests::results;
    use super::*;

    #[test]
    fn every_path_has_its_bar() {
        let results =
            results(&[("rr-64-16", "rate", Path::Plain, &[100.0]), ("rr-64-16", "rate", Path::Warren, &[50.0])]);
        let picture = draw(&results);
        let full = WIDTH - LABELS - FIGURES;
        assert!(picture.contains(&format!("width=\"{full:.1}\"")), "the longest: {picture}");
        assert!(picture.contains(&format!("width=\"{:.1}\"", full / 2.0)), "half of it: {picture}");
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
