//! What changes while the load runs, drawn from a seed: policies, pods, agents
//! and the world's file, each with its window in the calendar.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::agents::Way;
use super::lab::{NODES, Node, PAIRS, PODS, Pair};
use super::stage::Stage;
use super::world::Denial;
use crate::interrupt;
use crate::netlab::network;

/// A namespace's link goes away with its last user.
const LINK_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A pair is denied for a while.
    Deny(Pair, Denial, Duration),
    /// The file is written anew with so many policies that concern nobody.
    Rewrite(usize),
    /// A pod is deleted, and comes back after a while. `true`: the world hears of it first.
    Pod(usize, Duration, bool),
    /// An agent ends and comes back after a while. `true`: the world is rewritten meanwhile.
    Restart(Node, Way, Duration, bool),
}

/// A change's sort, for the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sort {
    Policy,
    World,
    Pod,
    Stop,
    Kill,
}

impl Sort {
    pub(super) const ALL: [Self; 5] = [Self::Policy, Self::World, Self::Pod, Self::Stop, Self::Kill];

    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy changes",
            Self::World => "world rewritten",
            Self::Pod => "pods recreated",
            Self::Stop => "agents stopped",
            Self::Kill => "agents killed",
        }
    }
}

impl Change {
    fn sort(self) -> Sort {
        match self {
            Self::Deny(..) => Sort::Policy,
            Self::Rewrite(..) => Sort::World,
            Self::Pod(..) => Sort::Pod,
            Self::Restart(_, Way::Stop, ..) => Sort::Stop,
            Self::Restart(_, Way::Kill, ..) => Sort::Kill,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deny(pair, how, time) => write!(f, "{pair} denied ({how:?}) for {:.1} s", time.as_secs_f32()),
            Self::Rewrite(unrelated) => write!(f, "world rewritten, with {unrelated} policies for nobody"),
            Self::Pod(pod, time, world_first) => {
                let first = if *world_first { ", from the world first" } else { "" };
                write!(f, "pod {} deleted for {:.1} s{first}", PODS[*pod].name, time.as_secs_f32())
            }
            Self::Restart(node, way, time, _) => {
                let word = if *way == Way::Kill { "killed" } else { "stopped" };
                write!(f, "agent of {} {word} for {:.1} s", node.name, time.as_secs_f32())
            }
        }
    }
}

/// The changes to come.
#[derive(Debug)]
pub(super) struct Changes {
    rng: StdRng,
    /// Sorts that are due, so that each has its turn before one comes again.
    due: Vec<Sort>,
    /// Restarts that come before all else: the rest of the run is for the agents' memory.
    first: Vec<Sort>,
    /// How often each sort was made.
    pub(super) made: BTreeMap<Sort, usize>,
}

impl Changes {
    /// The same seed draws the same changes.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let first = if rng.random_bool(0.5) { vec![Sort::Stop, Sort::Kill] } else { vec![Sort::Kill, Sort::Stop] };
        Self { rng, due: Vec::new(), first, made: BTreeMap::new() }
    }

    /// Draws the next one; agents' restarts only where they may be.
    pub(super) fn draw(&mut self, restarts: bool) -> Change {
        let allowed = |sort: &Sort| restarts || !matches!(sort, Sort::Stop | Sort::Kill);
        self.due.retain(allowed);
        if self.due.is_empty() {
            self.due = Sort::ALL.into_iter().filter(allowed).collect();
        }
        let first = self.first.pop().and_then(|first| self.due.iter().position(|sort| *sort == first));
        let next = first.unwrap_or_else(|| self.rng.random_range(0..self.due.len()));
        let sort = self.due.swap_remove(next);
        let mut millis = |from: u64, to: u64| Duration::from_millis(self.rng.random_range(from..to));
        let (short, while_denied) = (millis(0, 1500), millis(1500, 5000));
        match sort {
            Sort::Policy => {
                let pair = PAIRS.choose(&mut self.rng).copied().unwrap_or(PAIRS[0]);
                let hows = [Denial::Deny, Denial::NotAllowed, Denial::DenyPort];
                let how = hows.choose(&mut self.rng).copied().unwrap_or(Denial::Deny);
                Change::Deny(pair, how, while_denied)
            }
            Sort::World => Change::Rewrite(self.rng.random_range(0..100)),
            Sort::Pod => Change::Pod(self.rng.random_range(0..PODS.len()), short, self.rng.random_bool(0.5)),
            Sort::Stop => Change::Restart(self.node(), Way::Stop, short, self.rng.random_bool(0.5)),
            Sort::Kill => Change::Restart(self.node(), Way::Kill, short, self.rng.random_bool(0.5)),
        }
    }

    fn node(&mut self) -> Node {
        NODES[self.rng.random_range(0..NODES.len())]
    }

    /// Whether each sort was made.
    pub(super) fn complete(&self) -> bool {
        Sort::ALL.iter().all(|sort| self.made.contains_key(sort))
    }

    /// The pause before the next one.
    pub(super) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(300..2000))
    }

    /// Makes a change, and returns when all is as it was.
    pub(super) fn make(&mut self, stage: &mut Stage, change: Change) -> Result<()> {
        match change {
            Change::Deny(pair, how, time) => deny(stage, pair, how, time),
            Change::Rewrite(unrelated) => rewrite(stage, unrelated),
            Change::Pod(pod, time, world_first) => recreate(stage, pod, time, world_first),
            Change::Restart(node, way, time, rewritten) => restart(stage, node, way, time, rewritten),
        }
        .with_context(|| change.to_string())?;
        *self.made.entry(change.sort()).or_default() += 1;
        Ok(())
    }
}

fn deny(stage: &mut Stage, pair: Pair, how: Denial, time: Duration) -> Result<()> {
    let ledger = stage.shared.ledger.clone();
    let window = ledger.calendar().deny(pair);
    stage.world.deny(pair, how);
    apply(stage)?;
    ledger.calendar().denied(window);
    rest(time)?;
    ledger.calendar().allow(window);
    stage.world.allow(pair);
    apply(stage)?;
    ledger.calendar().close(window);
    Ok(())
}

/// Nothing may fail for this.
fn rewrite(stage: &mut Stage, unrelated: usize) -> Result<()> {
    stage.world.stir(unrelated);
    apply(stage)
}

fn recreate(stage: &mut Stage, pod: usize, time: Duration, world_first: bool) -> Result<()> {
    let ledger = stage.shared.ledger.clone();
    let window = ledger.calendar().pod_away(pod);
    stage.world.remove(pod);
    if world_first {
        apply(stage)?;
        delete(stage, pod)?;
    } else {
        delete(stage, pod)?;
        apply(stage)?;
    }
    wait_until_the_link_is_gone(pod)?;
    rest(time)?;
    PODS[pod].build()?;
    stage.world.add(pod);
    apply(stage)?;
    stage.agents.wait(PODS[pod].node, "does not enrol the new pod", |status| enrolled(status, PODS[pod].name))?;
    stage.start_pod(pod)?;
    ledger.calendar().close(window);
    Ok(())
}

/// Its programs end, then its namespace.
fn delete(stage: &mut Stage, pod: usize) -> Result<()> {
    stage.end_pod(pod);
    let name = PODS[pod].netns_name();
    if network::delete(&name) { Ok(()) } else { bail!("namespace {name} cannot be deleted") }
}

/// The agent has sockets in the namespace until it lets the pod go.
fn wait_until_the_link_is_gone(pod: usize) -> Result<()> {
    let started = Instant::now();
    while network::has_interface(PODS[pod].node.name, &PODS[pod].host_interface()) {
        if started.elapsed() > LINK_LIMIT {
            bail!("its namespace lives on {} s after it was deleted", LINK_LIMIT.as_secs());
        }
        interrupt::check()?;
        thread::sleep(POLL);
    }
    Ok(())
}

fn restart(stage: &mut Stage, node: Node, way: Way, time: Duration, rewritten: bool) -> Result<()> {
    let ledger = stage.shared.ledger.clone();
    let window = ledger.calendar().restart(node);
    stage.agents.end(node, way);
    ledger.calendar().gone(window);
    rest(time)?;
    if rewritten {
        stage.world.stir(3);
        stage.world.write()?;
    }
    stage.agents.start(node)?;
    ledger.calendar().close(window);
    Ok(())
}

/// Writes the world and waits until every running agent serves it.
fn apply(stage: &Stage) -> Result<()> {
    let before = stage.agents.generations()?;
    stage.world.write()?;
    stage.agents.wait_for_newer(&before)
}

fn enrolled(status: &Value, name: &str) -> bool {
    let pods = status["pods"].as_array().map_or(&[][..], Vec::as_slice);
    pods.iter().any(|pod| pod["name"] == name && pod["state"] == "enrolled" && pod["svid"].is_object())
}

/// Sleeps, but not through a signal.
pub(super) fn rest(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        interrupt::check()?;
        thread::sleep(left.min(Duration::from_millis(100)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_changes_and_each_sort_has_its_turn() {
        let drawn = |seed: u64, restarts: bool| {
            let mut changes = Changes::new(seed);
            (0..10).map(|_| changes.draw(restarts)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7, true), drawn(7, true));
        assert_ne!(drawn(7, true), drawn(8, true));
        let drawn = |restarts| drawn(7, restarts).into_iter().map(Change::sort).collect::<Vec<_>>();
        assert!(Sort::ALL.iter().all(|sort| drawn(true).iter().filter(|made| *made == sort).count() == 2));
        assert!(drawn(true)[..2].iter().all(|sort| matches!(sort, Sort::Stop | Sort::Kill)));
        assert!(drawn(false).iter().all(|sort| !matches!(sort, Sort::Stop | Sort::Kill)));
    }
}
