//! A soak from its first to its last minute.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::changes::{Changes, Sort, rest};
use super::lab::{PAIRS, PODS};
use super::ledger::Ledger;
use super::load::{Profile, Shared, Switch};
use super::quiet::{self, Quiet};
use super::recorder::{Found, Recorder};
use super::stage::Stage;
use super::verdict::{self, Checks};
use super::watcher::{Seen, Watched, Watcher};
use crate::interrupt;

/// The load runs for a while before the first look at what is held.
const WARM_UP: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(60)];
/// Agents are restarted in the first part of the run only: in the rest of it
/// their memory can be followed.
const RESTARTS: f64 = 1.0 / 3.0;

/// How much longer than asked for a run may take until each sort of change was made.
const LONGEST: f64 = 3.0;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) warren: PathBuf,
    /// Samples and logs go here.
    pub(super) output: PathBuf,
    pub(super) time: Duration,
    /// Go on until so many short connections were made.
    pub(super) connections: Option<u64>,
    pub(super) seed: u64,
    pub(super) leaf_ttl: Duration,
    pub(super) every: Duration,
}

impl Plan {
    /// Where the samples go.
    pub(super) fn samples(&self) -> PathBuf {
        self.output.join("samples.json")
    }

    fn profile(&self) -> Profile {
        let longest = (self.time / 6).clamp(Duration::from_secs(4), Duration::from_secs(60));
        Profile { shorts: 2, idle: 4, longest, rate: 512, unread: 4096 }
    }

    /// How far the run is, from 0 to 1.
    fn progress(&self, begun: Instant, shorts: u64) -> f64 {
        match self.connections {
            Some(wanted) => shorts as f64 / wanted.max(1) as f64,
            None => begun.elapsed().as_secs_f64() / self.time.as_secs_f64().max(0.001),
        }
    }
}

/// All that a run brought to light.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) ledger: Arc<Ledger>,
    /// At rest after the warm-up, and after the load.
    pub(super) before: Quiet,
    pub(super) after: Quiet,
    pub(super) made: BTreeMap<Sort, usize>,
    /// The change that could not be made.
    pub(super) unmade: Option<String>,
    pub(super) seen: Seen,
    pub(super) wire: Found,
    pub(super) alarms: Vec<String>,
    /// What was left after agents and clean-up.
    pub(super) left: Vec<String>,
    /// Short connections wanted.
    pub(super) wanted: Option<u64>,
}

/// Runs it, prints what it saw, and judges it.
pub(super) fn play(plan: &Plan) -> Result<Checks> {
    let profile = plan.profile();
    introduce(plan, profile);
    let shared = Shared { ledger: Arc::new(Ledger::new()), switch: Arc::new(Switch::new(profile)), seed: plan.seed };
    let mut stage = Stage::build(&plan.warren, &plan.output, plan.leaf_ttl, shared)?;
    let recorder = Recorder::start(&plan.output)?;
    stage.start()?;
    let watcher = Watcher::start(Watched {
        board: Arc::clone(&stage.board),
        ledger: Arc::clone(&stage.shared.ledger),
        setting: stage.agents.setting().clone(),
        every: plan.every,
    })?;
    let account = soak(plan, stage, recorder, watcher)?;
    save(plan, &account)?;
    verdict::print_table(&account);
    Ok(verdict::judge(&account))
}

fn introduce(plan: &Plan, profile: Profile) {
    println!(
        "soak: seed {}, {} pods on two nodes, {} pairs that call, {} connections at once, leaves live {} s",
        plan.seed,
        PODS.len(),
        PAIRS.len(),
        profile.at_once(),
        plan.leaf_ttl.as_secs()
    );
    let until = match plan.connections {
        Some(wanted) => format!("until {wanted} short connections are made"),
        None => format!("for {:.1} minutes", plan.time.as_secs_f32() / 60.0),
    };
    println!("{} {until}; the same again: --seed {}", plan.warren.display(), plan.seed);
}

fn soak(plan: &Plan, mut stage: Stage, recorder: Recorder, watcher: Watcher) -> Result<Account> {
    let switch = Arc::clone(&stage.shared.switch);
    let ledger = Arc::clone(&stage.shared.ledger);
    println!("warming up");
    switch.turn(true);
    rest((plan.time / 6).clamp(WARM_UP[0], WARM_UP[1]))?;
    switch.turn(false);
    let before = quiet::look(&stage, &watcher)?;
    println!("soaking");
    switch.turn(true);
    let mut changes = Changes::new(plan.seed);
    let unmade = match change_all_the_time(plan, &mut stage, &mut changes) {
        Err(error) if interrupt::raised() => return Err(error),
        outcome => outcome.err().map(|error| format!("{error:#}")),
    };
    switch.turn(false);
    println!("coming to rest");
    let after = quiet::look(&stage, &watcher)?;
    let seen = watcher.stop()?;
    stage.end_programs();
    let wire = recorder.stop()?;
    let alarms = stage.agents.alarms();
    let mut left = stage.end();
    left.extend(verdict::objects_that_live_on(&seen)?);
    let made = changes.made;
    Ok(Account { ledger, before, after, made, unmade, seen, wire, alarms, left, wanted: plan.connections })
}

fn change_all_the_time(plan: &Plan, stage: &mut Stage, changes: &mut Changes) -> Result<()> {
    let begun = Instant::now();
    let ledger = Arc::clone(&stage.shared.ledger);
    let shorts_before = ledger.shorts();
    loop {
        rest(changes.pause())?;
        let progress = plan.progress(begun, ledger.shorts() - shorts_before);
        // On a slow machine each sort of change has its turn all the same.
        if progress >= 1.0 && (changes.complete() || progress >= LONGEST) {
            return Ok(());
        }
        stage.agents.check()?;
        let change = changes.draw(progress < RESTARTS);
        let at = ledger.elapsed().as_secs_f32();
        changes.make(stage, change)?;
        println!("{at:>7.1} s  {change}");
    }
}

fn save(plan: &Plan, account: &Account) -> Result<()> {
    let path = plan.samples();
    let json = json!({
        "seed": plan.seed,
        "load": account.ledger.json(),
        "changes": account.made.iter().map(|(sort, count)| (sort.name(), count)).collect::<BTreeMap<_, _>>(),
        "before": account.before,
        "after": account.after,
        "wire": account.wire,
        "samples": account.seen.samples,
    });
    fs::write(&path, serde_json::to_vec_pretty(&json)?).with_context(|| path.display().to_string())
}
