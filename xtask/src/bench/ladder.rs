//! The ladder: every row on every path in turn, again and again.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::lab::{self, Envoy, Lab, Programs, warren, ztunnel::Ztunnel};
use super::options::Options;
use super::path::Path;
use super::report::{self, About};
use super::results::Results;
use super::run::{Run, catalogue};
use super::selfcheck;
use super::targets;
use crate::workspace::Workspace;
use crate::{exit, interrupt, netlab, process};

/// Two benchmarks at once would measure each other: the second waits this long.
pub(super) const LOCK_LIMIT: Duration = Duration::from_secs(3600);

/// How long the machine is looked at before, and how busy a quiet one may be.
const LOOK: Duration = Duration::from_secs(1);
const QUIET: f64 = 0.1;
/// The program of the micro-benchmarks.
pub(super) const MICRO: &str = "warren-micro";

/// Measures and reports. What went wrong, if anything, is the error.
pub(crate) fn run(workspace: &Workspace, options: &Options, programs: &Programs) -> Result<()> {
    // What a proxy may open is not the benchmark's to limit.
    warren_load::raise_open_files()?;
    let _alone = netlab::lock("warren-bench", LOCK_LIMIT)?;
    let paths = options.paths(|path| programs.offer(path));
    if let Some(path) = options.paths.iter().find(|path| !paths.contains(path)) {
        bail!("no {path} here: a peer wants --peer, splice an agent that can");
    }
    let mut about = about(programs, options)?;
    for (name, value) in &about.facts {
        println!("{name:<10} {value}");
    }
    let mut results = Results::default();
    let measured = measure(options, programs, &paths, &mut results, &mut about.faults);
    lab::take_down(&programs.warren)?;
    measured?;
    let targets = targets::lines(&results);
    report::print_results(&results);
    report::print_self_checks(&selfcheck::checks(&results));
    report::print_targets(&targets);
    let out = options.out.clone().unwrap_or_else(|| workspace.target().join("bench"));
    let files = report::write(&out, &about, &results, &targets)?;
    println!();
    for file in files {
        println!("{}", file.display());
    }
    if about.faults.is_empty() {
        return Ok(());
    }
    about.faults.iter().for_each(|fault| println!("WRONG    {fault}"));
    Err(exit::told())
}

/// The programs that will be measured. Peers must be there already.
pub(crate) fn programs(workspace: &Workspace, options: &Options) -> Result<Programs> {
    let release = workspace.target().join("release");
    let mut programs = Programs {
        load: options.load_bin.clone().unwrap_or_else(|| release.join("warren-load")),
        warren: options.warren_bin.clone().unwrap_or_else(|| release.join("warren")),
        agent_flags: options.agent_flags.clone(),
        micro: release.join(MICRO),
        ztunnel: None,
        envoy: None,
        logs: workspace.target().join("bench/faults"),
    };
    for peer in &options.peers {
        let (name, binary) = match peer.split_once('=') {
            Some((name, binary)) => (name, Some(PathBuf::from(binary))),
            None => (peer.as_str(), None),
        };
        match name {
            "ztunnel" => programs.ztunnel = Some(Ztunnel::find(binary.as_deref(), options.peer_dir.as_deref())?),
            "envoy" => programs.envoy = Some(Envoy::find(binary.as_deref())?),
            other => bail!("no peer is called {other}; there are ztunnel and envoy"),
        }
    }
    Ok(programs)
}

fn about(programs: &Programs, options: &Options) -> Result<About> {
    let kernel = process::output(process::command("uname").args(["-sr"]))?.trim().to_owned();
    let cores = thread::available_parallelism().context("number of cores")?;
    let mut facts = vec![
        ("machine".to_owned(), format!("{kernel}, {cores} cores")),
        ("agent".to_owned(), format!("{} ({})", warren::version(&programs.warren)?, programs.warren.display())),
    ];
    if !programs.agent_flags.is_empty() {
        facts.push(("flags".to_owned(), programs.agent_flags.join(" ")));
    }
    facts.extend(programs.ztunnel.as_ref().map(|ztunnel| ("peer".to_owned(), ztunnel.version())));
    facts.extend(programs.envoy.as_ref().map(|envoy| ("peer".to_owned(), envoy.version())));
    facts.push(("other load".to_owned(), other_load(cores.get())?));
    let rounds = format!("{} rounds of {} s after {} s", options.rounds(), options.seconds(), options.warmup());
    facts.push(("measured".to_owned(), rounds));
    Ok(About { facts, faults: Vec::new() })
}

/// What else keeps the machine busy: processor time of the whole system before anything is measured.
fn other_load(cores: usize) -> Result<String> {
    let before = warren_load::cpu::busy_seconds()?;
    thread::sleep(LOOK);
    let busy = (warren_load::cpu::busy_seconds()? - before) / LOOK.as_secs_f64() / cores as f64;
    let warning = if busy > QUIET { ": NOT a quiet machine, figures and ratios are worth little" } else { "" };
    Ok(format!("{:.0} % of {cores} cores{warning}", busy * 100.0))
}

/// Group by group; in each group round by round; in each round path by path.
fn measure(
    options: &Options,
    programs: &Programs,
    paths: &[Path],
    results: &mut Results,
    faults: &mut Vec<String>,
) -> Result<()> {
    let started = Instant::now();
    let groups = catalogue(options, programs.micro.is_file());
    if groups.is_empty() {
        bail!("no row has a name like {}", options.rows.join(", "));
    }
    for group in groups {
        for round in 0..options.rounds() {
            for path in paths {
                let runs: Vec<&Run> = group.iter().filter(|run| run.fits(*path)).collect();
                if runs.is_empty() {
                    continue;
                }
                let names: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
                let at = started.elapsed().as_secs();
                eprintln!("{at:>5} s  round {} of {}  {path:<18}{}", round + 1, options.rounds(), names.join(" "));
                visit(options, programs, *path, round, &runs, results, faults)?;
            }
        }
    }
    Ok(())
}

/// Builds a path, measures rows on it, takes it down.
fn visit(
    options: &Options,
    programs: &Programs,
    path: Path,
    round: usize,
    runs: &[&Run],
    results: &mut Results,
    faults: &mut Vec<String>,
) -> Result<()> {
    let shape = runs[0].kind.shape(options);
    let mut note = |what: &str, error: anyhow::Error| -> Result<()> {
        // A signal is no fault of a path.
        interrupt::check()?;
        let fault = format!("{path}, {what}, round {}: {error:#}", round + 1);
        eprintln!("         {fault}");
        faults.push(fault);
        Ok(())
    };
    let mut lab = match Lab::up(programs, path, shape) {
        Ok(lab) => lab,
        Err(error) => return note("building it", error),
    };
    let mut limited = false;
    for run in runs {
        interrupt::check()?;
        match run.kind.measure(&mut lab, options) {
            Ok(sample) => {
                limited |= sample.note.is_some();
                results.add(run, path, round, sample);
            }
            Err(error) => {
                note(&run.id, error)?;
                lab.save_logs();
            }
        }
    }
    match lab.down() {
        Ok(served) if served.broken > 0 && !limited => {
            note("the server", anyhow::anyhow!("{} connections broke off", served.broken))
        }
        Ok(_) => Ok(()),
        Err(error) => note("the server", error),
    }
}
