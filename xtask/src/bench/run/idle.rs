//! What many idle connections cost in memory.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value as Json;
use warren_load::report::Report;

use super::super::lab::Lab;
use super::super::options::Options;
use super::super::path::Path;
use super::{Metric, Sample, Value};

const PROXIES: Metric = Metric { name: "rss", unit: "B/connection", more_is_better: false, shown: true };
const KERNEL: Metric = Metric { name: "kernel", unit: "B/connection", more_is_better: false, shown: true };
const HELD: Metric = Metric { name: "held", unit: "connections", more_is_better: true, shown: true };
const PAGE: u64 = 4096;
/// Descriptors of an Envoy that are no connections'.
const SPARE: usize = 512;

/// Memory at one time.
#[derive(Debug, Clone, Copy)]
struct Memory {
    proxies: u64,
    kernel: u64,
}

/// Opens them, looks, proves each once more, and looks whether all still stand.
pub(super) fn measure(lab: &mut Lab, options: &Options) -> Result<Sample> {
    let before = Memory::now(lab)?;
    let count = asked(lab.path(), options.idle)?.to_string();
    let patience = (options.patience().as_secs_f64() / 3.0).to_string();
    let mut client = lab.start(&["idle", "--connections", &count, "--patience", &patience, "--as-many-as-possible"])?;
    let ready: Json = client.line().context("idle connections")?;
    let held = ready["ready"].as_u64().with_context(|| format!("idle connections: {ready}"))?;
    let after = Memory::now(lab)?;
    client.tell("prove")?;
    let proved: Json = client.line().context("idle connections, proved once more")?;
    let proved = proved["proved"].as_u64().with_context(|| format!("idle connections: {proved}"))?;
    let report: Report = client.finish()?;
    anyhow::ensure!(proved == held && report.operations == held, "{held} were held, {proved} still answer");
    let note = (held < options.idle as u64).then(|| format!("{held} of {} were reached", options.idle));
    let each = |before: u64, after: u64| (after as f64 - before as f64) / held as f64;
    let values = vec![
        Value { metric: PROXIES, value: each(before.proxies, after.proxies) },
        Value { metric: KERNEL, value: each(before.kernel, after.kernel) },
        Value { metric: HELD, value: held as f64 },
    ];
    Ok(Sample { values, cpu: None, note })
}

/// An Envoy dies of descriptors that it cannot have: it gets as many connections as leave it some.
fn asked(path: Path, wanted: usize) -> Result<usize> {
    let limit = usize::try_from(warren_load::raise_open_files()?).unwrap_or(usize::MAX);
    let room = limit.saturating_sub(SPARE) / 2;
    Ok(if path == Path::Envoy { wanted.min(room) } else { wanted })
}

impl Memory {
    fn now(lab: &mut Lab) -> Result<Self> {
        let mut proxies = 0;
        for daemon in lab.proxies() {
            let status = fs::read_to_string(format!("/proc/{}/status", daemon.id()))?;
            proxies += field(&status, "VmRSS:").with_context(|| format!("{} has ended", daemon.name()))? * 1024;
        }
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let slab = field(&meminfo, "Slab:").context("/proc/meminfo has no Slab")? * 1024;
        let sockstat = fs::read_to_string("/proc/net/sockstat")?;
        let pages = tcp_pages(&sockstat).context("/proc/net/sockstat has no TCP mem")?;
        Ok(Self { proxies, kernel: slab + pages * PAGE })
    }
}

/// A field of kilobytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").trim().parse().ok()
}

/// Pages of buffers of all TCP sockets of the machine.
fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_once(" mem ")?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_understood() {
        assert_eq!(field("Name:\twarren\nVmRSS:\t   19876 kB\n", "VmRSS:"), Some(19_876));
        assert_eq!(field("MemTotal:  1 kB\n", "Slab:"), None);
        let sockstat = "sockets: used 20\nTCP: inuse 1 orphan 0 tw 0 alloc 2 mem 17\nUDP: inuse 0 mem 0\n";
        assert_eq!(tcp_pages(sockstat), Some(17));
    }
}
