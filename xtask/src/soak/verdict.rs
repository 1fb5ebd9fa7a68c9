//! What a soak has to keep to, and whether it did.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::calendar::{CUT_WITHIN, Excuse};
use super::changes::Sort;
use super::lab::{NODES, PODS};
use super::ledger::{Fault, Kind};
use super::quiet::Rest;
use super::run::Account;
use super::sample::{Held, Sample};
use super::watcher::{Seen, mib};
use crate::outcome::{Outcome, Totals};
use crate::process;

/// How much an agent's memory may grow: this, or [`GROWTH`] of it, whichever is more.
const GROWTH_BYTES: u64 = 8 << 20;
const GROWTH: f64 = 0.1;
/// How much more an agent may hold at rest than it did after the warm-up. It is another process by then, and what its
/// allocator keeps of the load's peak comes to an end only after minutes; that it does is what [`GROWTH`] is for.
const REST_BYTES: u64 = 16 << 20;
/// Descriptors that may come and go by themselves: a look at a file, a timer.
const SPARE_DESCRIPTORS: usize = 2;
/// Samples of an agent's last life that are needed to say whether its memory grows.
const SAMPLES: usize = 8;
/// Rows of the table that are printed.
const ROWS: usize = 16;

/// Checks made.
#[derive(Debug, Default)]
pub(super) struct Checks {
    totals: Totals,
}

impl Checks {
    fn check(&mut self, name: &str, faults: &[String]) {
        let outcome = Outcome::of_findings(faults);
        outcome.print(name);
        self.totals.count(&outcome);
    }

    /// The numbers.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }
}

/// Makes all checks.
pub(super) fn judge(account: &Account) -> Checks {
    let mut checks = Checks::default();
    println!();
    the_load(account, &mut checks);
    the_changes(account, &mut checks);
    the_wire(account, &mut checks);
    the_rest(account, &mut checks);
    checks
}

fn the_load(account: &Account, checks: &mut Checks) {
    let ledger = &account.ledger;
    let numbers = ledger.numbers();
    println!("{:<14}{:>10}{:>10}{:>12}{:>10}", "connections", "well", "denied", "agent away", "pod away");
    for (kind, numbers) in &numbers {
        let excused = |excuse| numbers.excused.get(&excuse).copied().unwrap_or_default();
        println!(
            "{:<14}{:>10}{:>10}{:>12}{:>10}",
            kind.name(),
            numbers.well,
            excused(Excuse::Denied),
            excused(Excuse::AgentAway),
            excused(Excuse::PodAway)
        );
    }
    let missing = Kind::ALL.iter().filter(|kind| numbers.get(kind).is_none_or(|numbers| numbers.well == 0));
    let missing: Vec<String> = missing.map(|kind| format!("none of kind {}", kind.name())).collect();
    checks.check("every kind of connection was made", &missing);
    if let Some(wanted) = account.wanted {
        let short = (ledger.shorts() < wanted).then(|| format!("{} of {wanted}", ledger.shorts()));
        checks.check(&format!("{} short connections were made", ledger.shorts()), &found(short));
    }
    let bytes = format!("no byte was wrong of {} MiB at both ends", ledger.bytes() >> 20);
    checks.check(&bytes, &faults(account, Fault::Bytes));
    checks.check("nothing failed but what a change excuses", &faults(account, Fault::Failed));
}

fn faults(account: &Account, sort: Fault) -> Vec<String> {
    let found = account.ledger.found(sort);
    let mut words = found.words;
    if found.count > words.len() as u64 {
        words.push(format!("{} in all", found.count));
    }
    words
}

fn found(one: Option<String>) -> Vec<String> {
    one.into_iter().collect()
}

fn the_changes(account: &Account, checks: &mut Checks) {
    let made: Vec<String> = account.made.iter().map(|(sort, count)| format!("{count} {}", sort.name())).collect();
    let mut faults_made = found(account.unmade.clone());
    let missing = Sort::ALL.into_iter().filter(|sort| !account.made.contains_key(sort));
    faults_made.extend(missing.map(|sort| format!("no {}", sort.name())));
    checks.check(&format!("changes were made: {}", made.join(", ")), &faults_made);
    let denied: u64 =
        account.ledger.numbers().values().filter_map(|numbers| numbers.excused.get(&Excuse::Denied)).sum();
    let mut not_denied = faults(account, Fault::NotDenied);
    not_denied.extend((denied == 0).then(|| "nothing was ever denied".to_owned()));
    let cut = CUT_WITHIN.as_secs();
    checks.check(
        &format!("what policy denies fails while it does, {denied} connections, open ones within {cut} s"),
        &not_denied,
    );
    let (delayed, longest) = account.ledger.delayed();
    let mut not_delayed = faults(account, Fault::NotDelayed);
    not_delayed.extend((delayed == 0).then(|| "none was begun while an agent was gone".to_owned()));
    let name =
        format!("{delayed} connections begun while an agent was gone waited, up to {:.1} s", longest.as_secs_f32());
    checks.check(&name, &not_delayed);
    let rotations = account.seen.rotations.count();
    let too_few = (rotations < PODS.len()).then(|| "fewer than pods".to_owned());
    checks.check(&format!("SVIDs were rotated {rotations} times"), &found(too_few));
}

fn the_wire(account: &Account, checks: &mut Checks) {
    let wire = &account.wire;
    println!(
        "the link: {} frames, {} tunnels, {} TLS records, {} MiB; {} frames lost by the recorder, {} holes",
        wire.frames,
        wire.tunnels,
        wire.tls_records,
        wire.tls_bytes >> 20,
        wire.lost,
        wire.holes
    );
    let mut words = wire.words.clone();
    words.extend((wire.tls_records == 0).then(|| "no TLS record at all".to_owned()));
    checks.check("every byte between the nodes was TLS on port 15008, no canary, no identity", &words);
    let mut unseen = found((wire.lost > 0).then(|| format!("{} frames lost", wire.lost)));
    unseen.extend((wire.holes > 0).then(|| format!("{} directions with a hole", wire.holes)));
    checks.check("the recorder saw every frame", &unseen);
}

fn the_rest(account: &Account, checks: &mut Checks) {
    checks.check("the agents' logs hold no alarm", &account.alarms);
    let (before, after) = (&account.before, &account.after);
    let unfinished = after.unfinished + before.unfinished;
    let mut open = found((unfinished > 0).then(|| format!("{unfinished} that clients could not end")));
    open.extend(
        after
            .nodes
            .iter()
            .filter(|rest| rest.connections > 0)
            .map(|rest| format!("{}: {} connections in its status", rest.node, rest.connections)),
    );
    checks.check("no connection is left when the load ends", &open);
    checks.check(
        &format!("memory is flat: no more than 10 % or {} MiB of growth", GROWTH_BYTES >> 20),
        &memory_faults(&account.seen.samples),
    );
    let pairs = || before.nodes.iter().zip(&after.nodes);
    let grown = pairs().filter_map(|(before, after)| {
        let (from, to) = (before.held.rss, after.held.rss);
        (to > from + REST_BYTES).then(|| format!("{}: {} MiB, then {} MiB", before.node, mib(from), mib(to)))
    });
    checks.check("memory at rest is what it was", &grown.collect::<Vec<_>>());
    let differs: Vec<String> = pairs().flat_map(|(before, after)| differences(before, after)).collect();
    checks.check("descriptors, threads, maps, programs, links, pins and sockets are what they were", &differs);
    let pods = PODS.len() + NODES.len();
    let namespaces = (after.namespaces != pods).then(|| format!("{} instead of {pods}", after.namespaces));
    checks.check("namespaces are what they were", &found(namespaces));
    checks.check("after stop and clean-up nothing is left, in the kernel or in files", &account.left);
}

fn allowed_growth(rss: u64) -> u64 {
    GROWTH_BYTES.max((rss as f64 * GROWTH) as u64)
}

/// Each agent's last life, without its first third: the end of it beside its beginning.
fn memory_faults(samples: &[Sample]) -> Vec<String> {
    NODES.into_iter().filter_map(|node| memory_fault(node.name, &last_life(samples, node.index()))).collect()
}

fn last_life(samples: &[Sample], node: usize) -> Vec<&Held> {
    let held = |sample: &'_ Sample| sample.agents[node].as_ref().map(|held| held.pid);
    let Some(pid) = samples.iter().rev().find_map(held) else { return Vec::new() };
    // At rest memory says nothing about the load.
    let busy = samples.iter().filter(|sample| sample.open > 0);
    busy.filter_map(|sample| sample.agents[node].as_ref()).filter(|held| held.pid == pid).collect()
}

fn memory_fault(node: &str, life: &[&Held]) -> Option<String> {
    let warm = &life[life.len() / 3..];
    if warm.len() < SAMPLES {
        return Some(format!("{node}: {} samples are too few to tell", warm.len()));
    }
    let quarter = warm.len() / 4;
    let (first, last) = (median(&warm[..quarter]), median(&warm[warm.len() - quarter..]));
    (last > first + allowed_growth(first)).then(|| format!("{node}: {} MiB, later {} MiB", mib(first), mib(last)))
}

fn median(life: &[&Held]) -> u64 {
    let mut sizes: Vec<u64> = life.iter().map(|held| held.rss).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied().unwrap_or_default()
}

fn differences(before: &Rest, after: &Rest) -> Vec<String> {
    let Rest { node, .. } = before;
    let own = |rest: &Rest| rest.held.descriptors.saturating_sub(rest.tunnels);
    let others = |rest: &Rest| rest.held.sockets.saturating_sub(rest.tunnels);
    let exact = [
        ("threads", before.held.threads, after.held.threads),
        ("maps", before.held.maps, after.held.maps),
        ("programs", before.held.programs, after.held.programs),
        ("links", before.held.links, after.held.links),
        ("pins", before.held.pins, after.held.pins),
        ("enrolled pods", before.enrolled, after.enrolled),
        ("sockets besides tunnels", others(before), others(after)),
    ];
    let differing = exact.into_iter().filter(|(_, from, to)| from != to);
    let mut words: Vec<String> =
        differing.map(|(what, from, to)| format!("{node}: {from} {what}, then {to}")).collect();
    if own(after) > own(before) + SPARE_DESCRIPTORS {
        words.push(format!("{node}: {} descriptors besides tunnels, then {}", own(before), own(after)));
    }
    words
}

/// How long the kernel may take to free what died with a network namespace: a worker of its own does it.
const FREED_WITHIN: Duration = Duration::from_secs(20);

/// Kernel objects that an agent held and that outlive agent and clean-up.
pub(super) fn objects_that_live_on(seen: &Seen) -> Result<Vec<String>> {
    let until = Instant::now() + FREED_WITHIN;
    loop {
        let left = living(seen)?;
        if left.is_empty() || Instant::now() > until {
            return Ok(left);
        }
        thread::sleep(Duration::from_millis(250));
    }
}

fn living(seen: &Seen) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in ["map", "prog", "link"] {
        let shown = process::output(process::command("bpftool").args(["-j", kind, "show"]))?;
        let all: Value = serde_json::from_str(&shown).context("bpftool")?;
        let living: BTreeSet<u64> =
            all.as_array().into_iter().flatten().filter_map(|entry| entry["id"].as_u64()).collect();
        let ours = seen.sampler.seen().filter(|(own, id)| *own == kind && living.contains(id));
        left.extend(ours.map(|(kind, id)| format!("BPF {kind} {id}")));
    }
    Ok(left)
}

/// Prints some of the samples, and what was held at rest.
pub(super) fn print_table(account: &Account) {
    let samples = &account.seen.samples;
    println!(
        "\n{:>7}{:>15}{:>11}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>9}{:>7}",
        "s", "RSS MiB", "fds", "threads", "maps", "progs", "links", "pins", "sockets", "open", "shorts", "faults"
    );
    let step = samples.len().div_ceil(ROWS).max(1);
    for sample in samples.iter().step_by(step) {
        let rss = both(&sample.agents, |held| mib(held.rss));
        let number = |of: fn(&Held) -> usize| both(&sample.agents, |held| of(held).to_string());
        println!(
            "{:>7.0}{rss:>15}{:>11}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>9}{:>7}",
            sample.at,
            number(|held| held.descriptors),
            number(|held| held.threads),
            number(|held| held.maps),
            number(|held| held.programs),
            number(|held| held.links),
            number(|held| held.pins),
            number(|held| held.sockets),
            sample.open,
            sample.shorts,
            sample.faults
        );
    }
    for (when, quiet) in [("after the warm-up", &account.before), ("after the load", &account.after)] {
        for rest in &quiet.nodes {
            println!(
                "at rest {when}, {}: RSS {} MiB, {} descriptors with {} tunnels, {} pins",
                rest.node,
                mib(rest.held.rss),
                rest.held.descriptors,
                rest.tunnels,
                rest.held.pins
            );
        }
    }
}

fn both(agents: &[Option<Held>; 2], show: impl Fn(&Held) -> String) -> String {
    agents.each_ref().map(|held| held.as_ref().map_or("-".into(), &show)).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(sizes: &[u64]) -> Vec<Held> {
        sizes.iter().map(|size| Held { rss: size << 20, ..Held::default() }).collect()
    }

    fn fault(sizes: &[u64]) -> Option<String> {
        let life = life(sizes);
        memory_fault("n", &life.iter().collect::<Vec<_>>())
    }

    #[test]
    fn memory_that_grows_is_found_and_a_warm_up_is_not() {
        let warm_up = [[10, 20, 30, 40, 50, 60].as_slice(), &[61; 14]].concat();
        assert_eq!(fault(&warm_up), None);
        let leak: Vec<u64> = (0..20).map(|number| 40 + 2 * number).collect();
        assert!(fault(&leak).is_some());
        assert!(fault(&[10; 5]).is_some(), "too few to tell");
    }

    #[test]
    fn what_is_held_besides_tunnels_must_be_equal() {
        let rest = |descriptors, tunnels, maps| Rest {
            node: "n",
            held: Held { descriptors, maps, ..Held::default() },
            tunnels,
            connections: 0,
            enrolled: 4,
        };
        assert!(differences(&rest(50, 10, 7), &rest(60, 20, 7)).is_empty());
        assert_eq!(differences(&rest(50, 10, 7), &rest(60, 10, 7)).len(), 1);
        assert_eq!(differences(&rest(50, 10, 7), &rest(50, 10, 8)).len(), 1);
    }
}
