//! The page: what was run, the goals, the picture, every value.

use super::super::path::Path;
use super::super::results::{Entry, Results};
use super::super::selfcheck;
use super::super::targets::{Line, Verdict};
use super::{About, figure};

const STYLE: &str = "body{font:15px/1.45 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;font-size:13px}td,th{padding:2px 10px;border-bottom:1px solid #ddd;text-align:right}\
td:first-child,th:first-child,.left{text-align:left}.met{color:#2f7d4f}.not{color:#b3261e;font-weight:bold}";

/// All of it, in one file without anything from elsewhere.
pub(super) fn page(about: &About, results: &Results, targets: &[Line], picture: &str) -> String {
    let facts: String = about
        .facts
        .iter()
        .map(|(name, value)| format!("<tr><td>{}<td class=left>{}\n", escaped(name), escaped(value)))
        .collect();
    let faults: String = about.faults.iter().map(|fault| format!("<p class=not>{}\n", escaped(fault))).collect();
    let checks: String = selfcheck::checks(results)
        .iter()
        .map(|check| {
            let (alone, fastest) = (figure(check.alone), figure(check.fastest));
            format!(
                "<tr><td>{}<td>{alone}<td>{}<td>{fastest}<td>{}<td>{:.2}\n",
                check.run, check.unit, check.path, check.share
            )
        })
        .collect();
    let targets: String = targets.iter().map(target).collect();
    let rows: String = results.sorted().into_iter().map(|entry| row(results, entry)).collect();
    format!(
        "<!doctype html><meta charset=utf-8><title>Warren: benchmark</title><style>{STYLE}</style>\n\
         <h1>Warren beside its peers</h1>\n<table>{facts}</table>\n{faults}\
         <p>Medians of rounds in which every path is measured in turn; ratios are made within a round. CPU is the whole \
         system's: kernel, interrupts, load generator and applications included.\n\
         <h2>Targets</h2><table><tr><th>what<th>goal<th>figure<th>verdict<th class=left>made of\n{targets}</table>\n\
         <h2>Picture</h2>\n{picture}\n\
         <h2>The load generator alone</h2><p>Both its ends on loopback of one namespace, beside each row's fastest path.\n\
         <table><tr><th>row<th>alone<th>unit<th>fastest<th>path<th>of it\n{checks}</table>\n\
         <h2>Every value</h2><table><tr><th>row<th>path<th>median<th>low<th>high<th>unit<th>CPU<th>× plain<th>× ztunnel\
         <th>× Envoy<th>CPU × ztunnel\n{rows}</table>\n"
    )
}

fn target(line: &Line) -> String {
    let class = match line.verdict {
        Verdict::Met(_) => "met",
        Verdict::NotMet(_) => "not",
        Verdict::NotMeasured => "",
    };
    let number = line.verdict.figure().map(|figure| format!("{figure:.2}")).unwrap_or_default();
    format!(
        "<tr><td>{}<td>{}<td>{number}<td class=\"{class}\">{}<td class=left>{}\n",
        escaped(&line.what),
        escaped(&line.goal),
        line.verdict,
        escaped(&line.detail)
    )
}

fn row(results: &Results, entry: &Entry) -> String {
    let Some(summary) = entry.values.summary() else { return String::new() };
    let shown = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
    let of_peer = |peer| shown(entry.path.peers().contains(&peer).then(|| results.ratio(entry, peer)).flatten());
    let plain = shown(entry.path.control().and_then(|control| results.ratio(entry, control)));
    let cpu = match (entry.cpu.summary(), entry.cpu_unit) {
        (Some(cpu), Some(unit)) => format!("{} {unit}", figure(cpu.median)),
        _ => String::new(),
    };
    let cpu_ratio = entry.path.peers().contains(&Path::Ztunnel).then(|| results.cpu_ratio(entry, Path::Ztunnel));
    format!(
        "<tr><td>{}: {}<td class=left>{}<td>{}<td>{}<td>{}<td class=left>{}<td>{cpu}<td>{plain}<td>{}<td>{}<td>{}\n",
        escaped(&entry.title),
        entry.metric.name,
        entry.path.id(),
        figure(summary.median),
        figure(summary.low),
        figure(summary.high),
        entry.metric.unit,
        of_peer(Path::Ztunnel),
        of_peer(Path::Envoy),
        shown(cpu_ratio.flatten())
    )
}

/// Text as HTML and SVG want it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::super::results::tests::results;
    use super::super::super::targets;
    use super::*;

    #[test]
    fn the_page_says_what_was_found() {
        let results = results(&[("rr-64-16", "rate", Path::Plain, &[123.0])]);
        let about = About { facts: vec![("agent".into(), "warren <1>".into())], faults: vec!["a & b".into()] };
        let page = page(&about, &results, &targets::lines(&results), "<svg></svg>");
        for words in ["warren &lt;1&gt;", "a &amp; b", "not measured", "<td>123<td>", "<svg></svg>"] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }
}
