//! The rows.

use super::super::options::Options;
use super::super::path::Path;
use super::{Kind, RTT};

/// A row of the benchmark: one measurement on each path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its name in options and results.
    pub(crate) id: String,
    /// Its name for people.
    pub(crate) title: String,
    pub(crate) kind: Kind,
    group: Group,
    quick: bool,
    loopback: bool,
}

/// Rows that are measured in one and the same lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    RoundTrips,
    /// Fresh namespaces for each.
    Connects,
    Streams,
    Handshakes,
    FirstByte,
    Idle,
    Lifecycle,
}

impl Run {
    /// Whether it is measured on a path.
    pub(crate) fn fits(&self, path: Path) -> bool {
        self.kind.fits(path) && (path != Path::Loopback || self.loopback)
    }
}

/// All rows, in the order of reports.
fn all(options: &Options, micro: bool) -> Vec<Run> {
    let row = |id: String, title: String, kind, group| Run { id, title, kind, group, quick: false, loopback: false };
    let mut rows = Vec::new();
    for (size, word, title) in [(64, "64", "64 B"), (16_384, "16k", "16 KiB")] {
        for connections in [1, 16, 256] {
            let quick = size == 64 && connections < 256;
            let title = format!("round trips, {title}, {}", counted(connections, "connection"));
            let kind = Kind::RoundTrips { size, connections };
            let run = row(format!("rr-{word}-{connections}"), title, kind, Group::RoundTrips);
            rows.push(Run { quick, loopback: quick, ..run });
        }
    }
    for at_once in [1, 16] {
        let title = format!("connect and one round trip, {at_once} at a time");
        let run = row(format!("connect-{at_once}"), title, Kind::Connects { at_once }, Group::Connects);
        rows.push(Run { quick: true, loopback: true, ..run });
    }
    for streams in [1, 8] {
        for direction in ["up", "down"] {
            let title = format!("{}, {direction}", counted(streams, "stream"));
            let kind = Kind::Streams { streams, direction };
            let run = row(format!("stream-{streams}-{direction}"), title, kind, Group::Streams);
            rows.push(Run { quick: direction == "up", loopback: direction == "up", ..run });
        }
    }
    rows.push(row("handshakes".into(), "full TLS handshakes".into(), Kind::Handshakes, Group::Handshakes));
    let first = format!("first byte of the answer on a new connection at {RTT} ms RTT, warm tunnel");
    rows.push(Run { quick: true, ..row("first-byte".into(), first, Kind::FirstByte, Group::FirstByte) });
    rows.push(row("idle".into(), format!("{} idle connections", options.idle), Kind::Idle, Group::Idle));
    let enrol = row("enrol".into(), "enrolment of a pod".into(), Kind::Enrolment, Group::Lifecycle);
    rows.push(Run { quick: true, ..enrol });
    let restart = "kill -9 of the client's agent until a connection is answered".into();
    rows.push(Run { quick: true, ..row("restart".into(), restart, Kind::Restart, Group::Lifecycle) });
    if micro {
        let title = "policy decision, 10 to 100,000 policies".into();
        rows.push(Run { quick: true, ..row("policy".into(), title, Kind::Policy, Group::Lifecycle) });
    }
    rows
}

fn counted(number: u32, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The rows that were asked for, in groups; those of the micro-benchmarks only where there are some. In a quick run all that need no lab of their own share one.
pub(crate) fn catalogue(options: &Options, micro: bool) -> Vec<Vec<Run>> {
    let asked =
        |run: &Run| if options.rows.is_empty() { run.quick || !options.quick } else { options.names_row(&run.id) };
    let mut groups: Vec<(Group, Vec<Run>)> = Vec::new();
    for run in all(options, micro).into_iter().filter(asked) {
        let shared = options.quick && matches!(run.group, Group::Connects | Group::Streams | Group::Lifecycle);
        let group = if shared { Group::RoundTrips } else { run.group };
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, runs)) => runs.push(run),
            None => groups.push((group, vec![run])),
        }
    }
    groups.into_iter().map(|(_, runs)| runs).collect()
}
