//! What the agents hold: memory, descriptors, threads, kernel objects, pins,
//! sockets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::board::Running;
use super::lab::{NODES, Node, PREFIX};
use super::ledger::Ledger;
use super::stage::pins;
use crate::netlab::network;

/// 15008 as /proc/net/tcp writes it.
const TUNNEL_PORT: &str = ":3AA0";
/// TCP_ESTABLISHED, as written there.
const ESTABLISHED: &str = "01";
/// TCP_TIME_WAIT: no socket any more.
const TIME_WAIT: &str = "06";
/// TCP_LISTEN.
const LISTEN: &str = "0A";

/// A kind of BPF object, as fdinfo names its number.
const KINDS: [&str; 3] = ["map_id:", "prog_id:", "link_id:"];

/// What one node's agent holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Held {
    pub(super) pid: u32,
    /// Bytes.
    pub(super) rss: u64,
    pub(super) descriptors: usize,
    pub(super) threads: usize,
    /// BPF objects by descriptor.
    pub(super) maps: usize,
    pub(super) programs: usize,
    pub(super) links: usize,
    /// Files below its directory of pins.
    pub(super) pins: usize,
    /// TCP sockets in use in the node's and its pods' namespaces, whoever's.
    pub(super) sockets: usize,
}

/// Everything, at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// Seconds since the load began.
    pub(super) at: f32,
    /// By the nodes' places; none while it does not run.
    pub(super) agents: [Option<Held>; 2],
    pub(super) namespaces: usize,
    /// Short connections so far.
    pub(super) shorts: u64,
    /// Connections that clients have open or are trying.
    pub(super) open: u64,
    pub(super) bytes: u64,
    pub(super) faults: u64,
}

/// Takes samples; remembers every kernel object that it saw.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    seen: BTreeSet<(usize, u64)>,
}

impl Sampler {
    /// Takes one.
    pub(super) fn take(&mut self, running: &Running, ledger: &Ledger) -> Sample {
        Sample {
            at: ledger.elapsed().as_secs_f32(),
            agents: NODES.map(|node| self.held(running, node)),
            namespaces: network::existing(PREFIX).len(),
            shorts: ledger.shorts(),
            open: ledger.open(),
            bytes: ledger.bytes(),
            faults: ledger.faults(),
        }
    }

    /// What an agent holds, if it runs.
    pub(super) fn held(&mut self, running: &Running, node: Node) -> Option<Held> {
        let pid = running.agent(node)?;
        let process = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(process.join("status")).ok()?;
        let objects = bpf_objects(&process);
        self.seen.extend(&objects);
        let count = |kind: usize| objects.iter().filter(|(own, _)| *own == kind).count();
        Some(Held {
            pid,
            rss: number_after(&status, "VmRSS:") * 1024,
            descriptors: fs::read_dir(process.join("fd")).ok()?.count(),
            threads: usize::try_from(number_after(&status, "Threads:")).unwrap_or_default(),
            maps: count(0),
            programs: count(1),
            links: count(2),
            pins: files_below(&pins(node.name)),
            sockets: networks(running, node).iter().map(|network| sockets_in_use(network)).sum(),
        })
    }

    /// The kernel objects that any of our agents held at any time: their kinds, as bpftool
    /// names them, and their numbers.
    pub(super) fn seen(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.seen.iter().map(|(kind, id)| (["map", "prog", "link"][*kind], *id))
    }
}

/// Tunnels of a node's agent: connections on their port, at either end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tunnels {
    pub(super) open: usize,
    /// Neither open nor gone.
    pub(super) between: usize,
}

/// Looks at them.
pub(super) fn tunnels(running: &Running, node: Node) -> Tunnels {
    let networks = networks(running, node);
    let tables = networks.iter().flat_map(|network| ["tcp", "tcp6"].map(|table| format!("{network}/{table}")));
    tables
        .map(|table| fs::read_to_string(table).map_or_else(|_| Tunnels::default(), |text| tunnels_in(&text)))
        .fold(Tunnels::default(), |all, one| Tunnels { open: all.open + one.open, between: all.between + one.between })
}

fn tunnels_in(table: &str) -> Tunnels {
    let mut tunnels = Tunnels::default();
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let ends = [fields.next(), fields.next()];
        if !ends.iter().flatten().any(|end| end.ends_with(TUNNEL_PORT)) {
            continue;
        }
        match fields.next() {
            Some(ESTABLISHED) => tunnels.open += 1,
            Some(TIME_WAIT | LISTEN) | None => {}
            Some(_) => tunnels.between += 1,
        }
    }
    tunnels
}

/// Folders of /proc that show the networks of a node and of its pods: of a
/// process or a thread inside each.
fn networks(running: &Running, node: Node) -> Vec<String> {
    let pods = running.pods(node).map(|task| format!("/proc/self/task/{task}/net"));
    pods.chain(running.agent(node).map(|pid| format!("/proc/{pid}/net"))).collect()
}

fn sockets_in_use(network: &str) -> usize {
    let files = ["sockstat", "sockstat6"].map(|file| fs::read_to_string(format!("{network}/{file}")));
    files.into_iter().flatten().map(|text| in_use(&text)).sum()
}

/// `TCP: inuse 5 orphan 0 …`, `TCP6: inuse 3`
fn in_use(sockstat: &str) -> usize {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP: ").or_else(|| line.strip_prefix("TCP6: ")));
    let number = line.and_then(|line| line.strip_prefix("inuse ")?.split(' ').next()?.parse().ok());
    number.unwrap_or_default()
}

fn bpf_objects(process: &Path) -> BTreeSet<(usize, u64)> {
    let entries = fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
    entries.filter_map(|entry| bpf_object(&fs::read_to_string(entry.path()).ok()?)).collect()
}

/// The object of a descriptor. A link's also tells its program, which is not held by it.
fn bpf_object(fdinfo: &str) -> Option<(usize, u64)> {
    let of = |kind: usize| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(KINDS[kind]))?;
        Some((kind, line.trim().parse().ok()?))
    };
    of(2).or_else(|| of(0)).or_else(|| of(1))
}

fn number_after(text: &str, word: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn files_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_tell_their_objects() {
        assert_eq!(bpf_object("pos:\t0\nmap_type:\t1\nmap_id:\t42\nfrozen:\t0\n"), Some((0, 42)));
        assert_eq!(bpf_object("link_type:\tcgroup\nlink_id:\t7\nprog_tag:\tab\nprog_id:\t9\n"), Some((2, 7)));
        assert_eq!(bpf_object("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn tunnels_are_told_from_other_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
                     0: 0B014E0A:3AA0 00000000:0000 0A 0\n\
                     1: 0B014E0A:9C40 15024E0A:3AA0 01 0\n\
                     2: 0B014E0A:3AA0 15024E0A:9C40 06 0\n\
                     3: 0B014E0A:9C41 15024E0A:1F90 01 0\n\
                     4: 0B014E0A:9C42 15024E0A:3AA0 09 0\n";
        assert_eq!(tunnels_in(table), Tunnels { open: 1, between: 1 });
    }

    #[test]
    fn sockets_of_both_families_are_read() {
        assert_eq!(in_use("sockets: used 9\nTCP: inuse 5 orphan 0 tw 3 alloc 6 mem 1\nUDP: inuse 0 mem 0\n"), 5);
        assert_eq!(in_use("TCP6: inuse 3\nUDP6: inuse 0\n"), 3);
    }
}
