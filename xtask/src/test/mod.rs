//! `test`: set-up, the builds, then the suites in order; any suite alone on
//! request. The last line is the sum of all.

mod cargo_test;
mod fuzz;

use anyhow::Result;
use clap::ValueEnum;
use nix::unistd::geteuid;

use crate::outcome::{Outcome, Totals};
use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;
use crate::{bench, cluster, demo, ebpf, exit, image, interrupt, lint, soak};

/// Crates whose tests want root and the kernel, each a suite of its own.
const NETNS: &str = "warren-netns-tests";
const INTEROP: &str = "warren-interop-tests";
const KUBERNETES: &str = "warren-kubernetes-tests";

/// `cargo xtask test`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these suites; repeatable.
    #[arg(long = "suite", value_name = "SUITE")]
    suites: Vec<Suite>,
    /// Only tests whose name contains this (suites unit, netns, interop and cluster).
    filter: Option<String>,
}

/// The suites, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Formats, lints, licences, direction of dependencies.
    Lint,
    /// Unit, property and documentation tests of every crate.
    Unit,
    /// Some seconds of every fuzz target.
    Fuzz,
    /// A real Kubernetes cluster, and what runs on it; what it is made of is built first.
    Cluster,
    /// Agents and pods in network namespaces, some beside an API server that the suite before has built.
    Netns,
    /// Warren and a real ztunnel as peers; skipped where the environment names no ztunnel.
    Interop,
    /// The demo, each of its checks counted.
    Demo,
    /// The benchmark, two rows of it, and whether its files are what they should be.
    Bench,
    /// A short soak, each of its checks counted.
    Soak,
}

/// Runs the suites and prints the totals as the last line.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::ensure(workspace, Group::Test)?;
    ebpf::build(workspace, &ebpf::Args::any())?;
    build_warren(workspace)?;
    let all = Suite::value_variants();
    let chosen = all.iter().filter(|suite| args.suites.is_empty() || args.suites.contains(suite));
    let mut totals = Totals::default();
    for suite in chosen {
        interrupt::check()?;
        let sum = suite.run(workspace, args.filter.as_deref());
        println!("── {}: {sum}", suite.title());
        totals += sum;
    }
    // The last line of all: programs that run this one read it.
    println!("{totals}");
    if totals.failed > 0 { Err(exit::told()) } else { Ok(()) }
}

/// Builds the `warren` binary that suites and demo start.
pub(crate) fn build_warren(workspace: &Workspace) -> Result<()> {
    let mut cargo = process::command("cargo");
    process::run(cargo.current_dir(workspace.root()).args(["build", "--package", "warren-agent", "--bin", "warren"]))
}

impl Suite {
    fn title(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, workspace: &Workspace, filter: Option<&str>) -> Totals {
        println!("── {}", self.title());
        match self {
            Self::Lint => lint::check(workspace),
            Self::Unit => {
                let others = [NETNS, INTEROP, KUBERNETES].map(|package| ["--exclude", package]);
                cargo_test::run(workspace, &[&["--workspace"], others.as_flattened()].concat(), filter)
            }
            Self::Fuzz => fuzz::smoke(workspace),
            Self::Netns => as_root("netns", || in_namespaces(workspace, NETNS, filter)),
            Self::Interop => as_root("interop", || in_namespaces(workspace, INTEROP, filter)),
            Self::Cluster => as_root("cluster", || on_a_cluster(workspace, filter)),
            Self::Demo => as_root("demo", || demo::check(workspace)),
            Self::Bench => as_root("bench", || bench::check(workspace)),
            Self::Soak => as_root("soak", || soak::check(workspace)),
        }
    }
}

/// Without root these suites are one skip each, said aloud.
fn as_root(name: &str, suite: impl FnOnce() -> Totals) -> Totals {
    if geteuid().is_root() {
        return suite();
    }
    let outcome = Outcome::Skipped("it makes network namespaces, which needs root".into());
    outcome.print(name);
    let mut totals = Totals::default();
    totals.count(&outcome);
    totals
}

/// What the cluster is made of is installed and built first, with its progress shown; Warren's image as well.
fn on_a_cluster(workspace: &Workspace, filter: Option<&str>) -> Totals {
    let ready = setup::ensure(workspace, Group::Workloads)
        .and_then(|_| cluster::Parts::ensure(workspace, &[]))
        .and_then(|_| image::build(workspace));
    match ready {
        Ok(_) => in_namespaces(workspace, KUBERNETES, filter),
        Err(error) => {
            let outcome = Outcome::Failed(format!("{error:#}"));
            outcome.print("cluster");
            let mut totals = Totals::default();
            totals.count(&outcome);
            totals
        }
    }
}

/// One test at a time: they share the machine's cgroup root and two cores.
fn in_namespaces(workspace: &Workspace, package: &str, filter: Option<&str>) -> Totals {
    cargo_test::run(workspace, &["--package", package, "--", "--test-threads=1"], filter)
}
