//! `setup`: finds what is missing, says what and why, and installs it on
//! Debian as root; elsewhere it prints the commands and ends with code 3.

mod debian;
mod needs;
mod plan;

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::geteuid;

pub(crate) use self::needs::Group;
use self::needs::{CrateInstall, NEEDS, Need};
use self::plan::Action;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::interrupt;
use crate::process;
use crate::workspace::Workspace;

/// `cargo xtask setup`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what this needs.
    #[arg(long = "for", default_value = "test")]
    group: Group,
    /// Say what is there, what is missing and what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: as if nothing were installed.
    #[arg(long, requires = "dry_run")]
    bare: bool,
}

/// The command line's entry.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.dry_run {
        list(args);
        return Ok(());
    }
    if ensure(workspace, args.group)? == Outcome::AllThere {
        println!("nothing is missing");
    }
    Ok(())
}

/// What `ensure` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was there.
    AllThere,
    /// Something was installed.
    Installed,
}

/// Makes sure that what a group needs is there; silent when it is.
pub(crate) fn ensure(workspace: &Workspace, group: Group) -> Result<Outcome> {
    let missing = missing(group);
    if missing.is_empty() {
        return Ok(Outcome::AllThere);
    }
    eprintln!("missing on this machine:");
    for need in &missing {
        eprintln!("  {:<32} {}", need.what, need.why);
    }
    let actions = plan::plan(&missing);
    permitted(&actions)?;
    interrupt::arm()?;
    for action in &actions {
        perform(workspace, action)?;
    }
    still_missing(group)
}

fn missing(group: Group) -> Vec<&'static Need> {
    needed(group).filter(|need| !(need.met)()).collect()
}

fn needed(group: Group) -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().filter(move |need| group.with_lower().contains(&need.group))
}

fn permitted(actions: &[Action]) -> Result<()> {
    let system = actions.iter().any(Action::needs_root);
    let packages = actions.iter().any(|action| matches!(action, Action::Packages(_)));
    let obstacle = match (debian::is_debian(), geteuid().is_root()) {
        (false, _) if packages => "this is not Debian (the packages are named as Debian names them)",
        (_, false) if system => "this needs root",
        _ => return Ok(()),
    };
    let commands: String = actions.iter().flat_map(as_typed).collect();
    Err(Coded { code: CANNOT_INSTALL, message: format!("{obstacle}; please run:{commands}") }.into())
}

fn as_typed(action: &Action) -> Vec<String> {
    let root = if action.needs_root() && !geteuid().is_root() { "sudo " } else { "" };
    action.commands().iter().map(|line| format!("\n  {root}{line}")).collect()
}

fn perform(workspace: &Workspace, action: &Action) -> Result<()> {
    match action {
        Action::Packages(names) => debian::install(workspace, names),
        Action::Crate(install) => install_crate(workspace, install),
        Action::Components(names) => {
            let log = workspace.logs().join("rustup.log");
            process::step(
                "rustup component add",
                &log,
                process::command("rustup").args(["component", "add"]).args(*names),
            )
        }
        Action::Mount { kind, at } => {
            eprintln!("  mount -t {kind} {at}");
            fs::create_dir_all(at).with_context(|| (*at).to_owned())?;
            process::run(process::command("mount").args(["-t", kind, kind, at]))
        }
    }
}

fn install_crate(workspace: &Workspace, install: &CrateInstall) -> Result<()> {
    let mut command = process::command("cargo");
    // Outside the tree, whose rust-toolchain.toml and lock file are not this program's.
    command.current_dir(std::env::temp_dir());
    command.args(["install", install.name, "--version", install.version, "--force"]).args(install.flags);
    command.arg("--target-dir").arg(workspace.target().join("xtask-install"));
    if let Some(prefix) = install.llvm {
        command.env("LLVM_PREFIX", prefix).env("LIBRARY_PATH", format!("{prefix}/lib"));
        let path = command.get_envs().find_map(|(name, value)| (name == "PATH").then_some(value?.to_owned()));
        let path = path.unwrap_or_default();
        command.env("PATH", format!("{prefix}/bin:{}", path.to_string_lossy()));
    }
    let log = workspace.logs().join(format!("install-{}.log", install.name));
    process::step(&format!("cargo install {} {} (minutes)", install.name, install.version), &log, &mut command)
}

fn still_missing(group: Group) -> Result<Outcome> {
    let left: Vec<&str> = missing(group).iter().map(|need| need.what).collect();
    if left.is_empty() {
        return Ok(Outcome::Installed);
    }
    let message = format!("installed, and still missing: {}", left.join(", "));
    Err(Coded { code: CANNOT_INSTALL, message }.into())
}

fn list(args: &Args) {
    let (met, missing): (Vec<_>, Vec<_>) = needed(args.group).partition(|need| !args.bare && (need.met)());
    for (word, needs) in [("there", &met), ("missing", &missing)] {
        for need in needs {
            println!("{word:<8} {:<32} {}", need.what, need.why);
        }
    }
    for line in plan::plan(&missing).iter().flat_map(Action::commands) {
        println!("would run: {line}");
    }
}
