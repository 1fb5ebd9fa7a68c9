//! The loads under which the programs' time is accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use super::super::lab::Lab;
use super::super::lab::net::PORT;
use super::super::report::figure;
use super::super::rows::Rows;
use super::inventory::{self, Inventory};

/// A load, and what is one operation of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) heading: &'static str,
    operation: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Connect { mapped: bool },
    RoundTrips,
    Stream,
}

/// All of them.
pub(super) const LOADS: [Load; 4] = [
    Load {
        name: "connect",
        heading: "Connections over IPv4: connect, one round trip, close",
        operation: "connection",
        kind: Kind::Connect { mapped: false },
    },
    Load {
        name: "connect6",
        heading: "Connections of IPv6 sockets (to IPv4 addresses in IPv6 form)",
        operation: "connection",
        kind: Kind::Connect { mapped: true },
    },
    Load {
        name: "rr-64-16",
        heading: "Round trips of 64 bytes on 16 connections",
        operation: "round trip",
        kind: Kind::RoundTrips,
    },
    Load { name: "stream-1-up", heading: "One stream, client to server", operation: "GB", kind: Kind::Stream },
];

/// Programs that take less of the sum than this are in the file only.
const LEAST_SHARE: f64 = 0.01;

impl Load {
    /// Applies it, and adds what each program took.
    pub(super) fn account(&self, lab: &Lab, quick: bool, round: usize, rows: &mut Rows) -> Result<()> {
        let before = inventory::counters()?;
        let operations = self.apply(lab, quick)?;
        ensure!(operations > 0.0, "nothing was done");
        let path = lab.path().to_string();
        let mut sum = 0.0;
        for ((node, name), (time, runs)) in spent(&before, &Inventory::take(&[])?) {
            sum += time;
            let (row, title) = (self.row(node, &name), format!("{name} of node {node}"));
            let mut put = |what: &str, title: String, unit, value: f64| {
                rows.add((&format!("{row}.{what}"), &title), &path, unit, round, value);
            };
            put("time", format!("{title}: one run"), "ns", time / runs);
            put("runs", format!("{title}: runs of one {}", self.operation), "runs", runs / operations);
            put("cost", format!("{title}: its time of one {}", self.operation), "ns", time / operations);
        }
        let title = format!("all programs: their time of one {}", self.operation);
        rows.add((&self.sum(), &title), &path, "ns", round, sum / operations);
        Ok(())
    }

    fn row(&self, node: char, program: &str) -> String {
        format!("kernel.{}.{program}.{node}", self.name)
    }

    fn sum(&self) -> String {
        format!("kernel.{}.sum", self.name)
    }

    /// Prints a table of each path.
    pub(super) fn print(&self, rows: &Rows) {
        let sum = self.sum();
        for (path, total) in
            rows.iter().filter(|row| row.row == sum).filter_map(|row| Some((&row.path, row.values.summary()?)))
        {
            println!("\n{}, {path}", self.heading);
            let of = |what: &str| format!("{what} of one {}", self.operation);
            println!(
                "  {:<14}{:<6}{:>10}{:>20}{:>24}{:>24}",
                "program",
                "node",
                "ns a run",
                "low – high",
                of("runs"),
                of("ns")
            );
            for (node, program) in self.programs(rows, path) {
                let row = self.row(node, &program);
                let of = |what: &str| rows.summary(&format!("{row}.{what}"), path);
                let (Some(time), Some(runs), Some(cost)) = (of("time"), of("runs"), of("cost")) else { continue };
                if cost.median < total.median * LEAST_SHARE {
                    continue;
                }
                let spread = format!("{} – {}", figure(time.low), figure(time.high));
                let [time, runs, cost] = [time, runs, cost].map(|value| figure(value.median));
                println!("  {program:<14}{node:<6}{time:>10}{spread:>20}{runs:>24}{cost:>24}");
            }
            let spread = format!("{} – {}", figure(total.low), figure(total.high));
            println!("  {:<20}{:>10}{:>20}{:>24}{:>24}", "all", "", "", spread, figure(total.median));
        }
    }

    /// Node and name of every program that has a row.
    fn programs(&self, rows: &Rows, path: &str) -> BTreeSet<(char, String)> {
        let prefix = format!("kernel.{}.", self.name);
        let of_row = |row: &str| {
            let (program, node) = row.strip_prefix(&prefix)?.strip_suffix(".cost")?.rsplit_once('.')?;
            Some((node.chars().next()?, program.to_owned()))
        };
        rows.iter().filter(|row| row.path == *path).filter_map(|row| of_row(&row.row)).collect()
    }

    fn apply(&self, lab: &Lab, quick: bool) -> Result<f64> {
        let count = if quick { "500" } else { "3000" };
        let seconds = if quick { "0.4" } else { "1.5" };
        let report = match self.kind {
            Kind::Connect { mapped } => {
                let ip = match lab.target().ip() {
                    IpAddr::V4(ip) if mapped => ip.to_ipv6_mapped().into(),
                    ip => ip,
                };
                let to = SocketAddr::new(ip, PORT).to_string();
                lab.run(&["connect", "--at-once", "4", "--count", count, "--warmup", "0", "--to", &to])?
            }
            Kind::RoundTrips => lab.run(&["rr", "--connections", "16", "--seconds", seconds, "--warmup", "0"])?,
            Kind::Stream => {
                lab.run(&["stream", "--streams", "1", "--direction", "up", "--seconds", seconds, "--warmup", "0"])?
            }
        };
        Ok(match self.kind {
            Kind::Stream => report.bytes as f64 / 1e9,
            _ => report.operations as f64,
        })
    }
}

/// Time and runs since then by node and name: the pods of a node have a program of the same name each.
fn spent(before: &BTreeMap<u64, (u64, u64)>, now: &Inventory) -> BTreeMap<(char, String), (f64, f64)> {
    let mut spent = BTreeMap::new();
    for program in &now.programs {
        let (time, runs) = before.get(&program.id).copied().unwrap_or((0, 0));
        let node = if program.node == 0 { 'a' } else { 'b' };
        let entry = spent.entry((node, program.short().to_owned())).or_insert((0.0, 0.0));
        entry.0 += program.run_time.saturating_sub(time) as f64;
        entry.1 += program.runs.saturating_sub(runs) as f64;
    }
    spent
}
