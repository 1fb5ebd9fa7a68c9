//! `bench kernel`: what the kernel programs themselves cost. Their run time is
//! the kernel's own account of it, kept while real agents carry real load.

mod account;
mod inventory;
mod load;
mod test_run;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::account::Accounting;
use self::inventory::Inventory;
use super::lab::{self, Lab, Programs, Shape};
use super::ladder::{LOCK_LIMIT, MICRO};
use super::path::Path;
use super::rows::{self, Rows};
use crate::workspace::Workspace;
use crate::{interrupt, netlab, programs};

/// The paths whose programs differ.
const PATHS: [Path; 3] = [Path::Warren, Path::SameNode, Path::SameNodeSplice];

/// Options of `bench kernel`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Fewer and shorter rounds.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these paths (separated by commas).
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    paths: Vec<Path>,
    /// How often each load is applied [default: 5; quick: 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// This agent rather than the one built from this tree.
    #[arg(long, value_name = "PATH")]
    pub(crate) warren_bin: Option<PathBuf>,
    /// Where the JSON goes [default: target/bench].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Take the binaries as they are.
    #[arg(long)]
    pub(crate) no_build: bool,
}

impl Options {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }
}

/// Measures, prints, writes.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if programs::find("bpftool").is_none() {
        bail!(
            "bpftool, which reads the kernel's account of programs, is not installed; `cargo xtask setup` installs it"
        );
    }
    let _alone = netlab::lock("warren-bench", LOCK_LIMIT)?;
    let release = workspace.target().join("release");
    let programs = Programs {
        load: release.join("warren-load"),
        warren: options.warren_bin.clone().unwrap_or_else(|| release.join("warren")),
        agent_flags: Vec::new(),
        micro: release.join(MICRO),
        ztunnel: None,
        envoy: None,
        logs: workspace.target().join("bench/faults"),
    };
    let mut rows = Rows::default();
    let measured = measure(options, &programs, &mut rows);
    lab::take_down(&programs.warren)?;
    measured?;
    print(&rows);
    let out = options.out.clone().unwrap_or_else(|| workspace.target().join("bench"));
    println!("\n{}", rows::write(&out, "kernel.json", &rows.json())?.display());
    Ok(())
}

fn measure(options: &Options, programs: &Programs, rows: &mut Rows) -> Result<()> {
    let asked = |path: &Path| options.paths.is_empty() || options.paths.contains(path);
    let paths: Vec<Path> = PATHS.into_iter().filter(|path| asked(path) && programs.offer(*path)).collect();
    for (at, path) in paths.iter().enumerate() {
        let mut lab = Lab::up(programs, *path, Shape::Ordinary)?;
        let agents: Vec<u32> = lab.proxies().iter().map(|daemon| daemon.id()).collect();
        let inventory = Inventory::take(&agents)?;
        if at == 0 {
            inventory.sizes(rows);
        }
        for round in 0..options.rounds() {
            eprintln!("{path}: round {} of {}", round + 1, options.rounds());
            if at == 0 {
                test_run::classifiers(&inventory, round, rows)?;
            }
            let _accounting = Accounting::on()?;
            for load in load::LOADS {
                interrupt::check()?;
                load.account(&lab, options.quick, round, rows).with_context(|| format!("{path}, {}", load.name))?;
            }
        }
        lab.down()?;
    }
    Ok(())
}

fn print(rows: &Rows) {
    let starts = |prefix: &'static str| move |row: &rows::Row| row.row.starts_with(prefix);
    rows.print("Programs and maps", starts("kernel.size"));
    rows.print("Classifiers by BPF_PROG_TEST_RUN", starts("kernel.test-run"));
    for load in load::LOADS {
        load.print(rows);
    }
    println!(
        "\nRun times are the kernel's (bpf_stats_enabled) and hold its two readings of the clock, some 20 ns of each run.\n\
         Both nodes' hooks stand at one cgroup root here, so each runs for the other's pods as well, and passes."
    );
}
