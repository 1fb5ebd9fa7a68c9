//! The tables on the terminal.

use super::super::path::Path;
use super::super::results::{Entry, Results};
use super::super::selfcheck::Check;
use super::super::targets::{Line, Verdict};
use super::figure;

/// Every shown value: row by row, path by path.
pub(crate) fn print_results(results: &Results) {
    let mut last = None;
    for entry in results.sorted().into_iter().filter(|entry| entry.metric.shown) {
        let row = (&entry.run, entry.metric.name);
        if last != Some(row) {
            let more = if entry.metric.more_is_better { "more" } else { "less" };
            println!("\n{}: {} in {} ({more} is better) [{}]", entry.title, row.1, entry.metric.unit, entry.run);
            println!(
                "  {:<18}{:>12}{:>22}{:>20}{:>9}{:>10}{:>8}",
                "path", "median", "low – high", "CPU", "× plain", "× ztunnel", "× Envoy"
            );
            last = Some(row);
        }
        println!("{}", line(results, entry));
    }
}

fn line(results: &Results, entry: &Entry) -> String {
    let Some(summary) = entry.values.summary() else { return format!("  {:<18} nothing", entry.path.id()) };
    let cpu = match (entry.cpu.summary(), entry.cpu_unit) {
        (Some(cpu), Some(unit)) => format!("{} {unit}", figure(cpu.median)),
        _ => String::new(),
    };
    let ratio = |path: Option<Path>| {
        path.and_then(|path| results.ratio(entry, path)).map(|ratio| format!("{ratio:.2}")).unwrap_or_default()
    };
    let peer = |peer: Path| ratio(Some(peer).filter(|peer| entry.path.peers().contains(peer)));
    let spread = format!("{} – {}", figure(summary.low), figure(summary.high));
    let notes = if entry.notes.is_empty() { String::new() } else { format!("  {}", entry.notes.join("; ")) };
    format!(
        "  {:<18}{:>12}{:>22}{:>20}{:>9}{:>10}{:>8}{notes}",
        entry.path.id(),
        figure(summary.median),
        spread,
        cpu,
        ratio(entry.path.control()),
        peer(Path::Ztunnel),
        peer(Path::Envoy)
    )
}

/// The load generator alone beside the fastest path of each row.
pub(crate) fn print_self_checks(checks: &[Check]) {
    if checks.is_empty() {
        return;
    }
    println!("\nThe load generator alone (both ends on loopback of one namespace), and the fastest path:");
    for Check { run, unit, alone, path, fastest, share } in checks {
        println!("  {run:<18}{:>12} {unit:<8}{:>12} on {path:<18}{share:.2} of it", figure(*alone), figure(*fastest));
    }
}

/// The goals.
pub(crate) fn print_targets(lines: &[Line]) {
    println!("\nTargets, by this run's rows:");
    for line in lines {
        let figure = line.verdict.figure().map(|figure| format!("{figure:.2}")).unwrap_or_default();
        let detail = if line.detail.is_empty() { String::new() } else { format!("  ({})", line.detail) };
        let mark = if matches!(line.verdict, Verdict::NotMet(_)) { "✗" } else { " " };
        println!("{mark} {:<72}{:<26}{:>8}  {}{detail}", line.what, line.goal, figure, line.verdict);
    }
}
