//! What runs inside of a member: two steps that the chore starts of itself.
//! The first joins cgroups and network namespace and makes the rest; the second
//! is the member's process number 1.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::setsid;

use super::cgroups::{self, Hierarchy};
use super::node_root::{self, Outside};
use super::supervise;
use super::units::Unit;
use crate::netlab::netns_path;
use crate::process;

/// What both steps are told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Name of the member's cgroups and network namespace.
    #[arg(long)]
    member: String,
    /// The file that lists its programs.
    #[arg(long)]
    units: PathBuf,
    /// Where they log; in a node, as it sees it.
    #[arg(long)]
    logs: PathBuf,
    /// A node's root.
    #[arg(long, requires_all = ["hostname", "bin", "images"])]
    root: Option<PathBuf>,
    #[arg(long)]
    hostname: Option<String>,
    #[arg(long)]
    bin: Option<PathBuf>,
    #[arg(long)]
    images: Option<PathBuf>,
}

impl Args {
    /// Of the control plane.
    pub(crate) fn control_plane(member: String, units: PathBuf, logs: PathBuf) -> Self {
        Self { member, units, logs, root: None, hostname: None, bin: None, images: None }
    }

    /// Makes them a node's.
    pub(crate) fn with_root(mut self, root: PathBuf, hostname: String, bin: PathBuf, images: PathBuf) -> Self {
        (self.root, self.hostname) = (Some(root), Some(hostname));
        (self.bin, self.images) = (Some(bin), Some(images));
        self
    }

    /// As words of the command line.
    pub(crate) fn words(&self) -> Vec<std::ffi::OsString> {
        let paths = [
            ("--units", Some(&self.units)),
            ("--logs", Some(&self.logs)),
            ("--root", self.root.as_ref()),
            ("--bin", self.bin.as_ref()),
            ("--images", self.images.as_ref()),
        ];
        let paths = paths.into_iter().filter_map(|(option, path)| Some([option.into(), path?.into()]));
        let names = [("--member", Some(&self.member)), ("--hostname", self.hostname.as_ref())];
        let names = names.into_iter().filter_map(|(option, name)| Some([option.into(), name?.into()]));
        paths.chain(names).flatten().collect()
    }
}

/// The first step. util-linux' unshare makes the namespaces that need a new
/// process, and kills it when it is killed itself.
pub(crate) fn enter(args: &Args) -> Result<()> {
    setsid().context("setsid")?;
    let hierarchies = Hierarchy::all()?;
    cgroups::join(&hierarchies, &args.member)?;
    let netns = netns_path(&args.member);
    let file = fs::File::open(&netns).with_context(|| netns.display().to_string())?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| netns.display().to_string())?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cgroup namespace")?;
    cgroups::make_way(&hierarchies, &args.member)?;
    let own = std::env::current_exe().context("own program")?;
    let mut command = process::command("unshare");
    command.args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"]);
    command.arg(own).args(["cluster", "init"]).args(args.words());
    Err(command.exec()).with_context(|| process::shown(&command))
}

/// The second step: sets the member's world up, then starts its programs and
/// keeps them running.
pub(crate) fn init(args: &Args) -> Result<()> {
    let text = fs::read_to_string(&args.units).with_context(|| args.units.display().to_string())?;
    let units: Vec<Unit> = serde_json::from_str(&text).with_context(|| args.units.display().to_string())?;
    match args {
        Args { root: Some(root), hostname: Some(hostname), bin: Some(bin), images: Some(images), .. } => {
            let hierarchies = Hierarchy::all()?;
            node_root::enter(root, hostname, &Outside { bin, images }, &hierarchies)?;
        }
        _ => {
            // Other namespaces' names would be kept in use by our copies of their mounts.
            let _ = umount2("/run/netns", MntFlags::MNT_DETACH);
            nix::mount::mount(Some("proc"), "/proc", Some("proc"), nix::mount::MsFlags::empty(), None::<&str>)
                .context("/proc")?;
        }
    }
    for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/{switch}");
        fs::write(&path, "1").with_context(|| path.clone())?;
    }
    supervise::run(&units, &args.logs)
}
