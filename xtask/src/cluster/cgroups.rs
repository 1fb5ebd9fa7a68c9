//! A cgroup for each member in every hierarchy of the machine. It is the
//! register of what runs: whatever was started for a member is in it, also
//! when the chore that started it was killed.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Where a member's first process is, so that its cgroup itself has none: v2
/// gives controllers only to children of cgroups without processes.
const FIRST: &str = "first";

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mounted_at: PathBuf,
    pub(crate) kind: Kind,
}

/// Which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Version 1, with the mount options that choose it.
    V1(String),
    /// Version 2.
    V2,
}

impl Hierarchy {
    /// All of this machine's, each once.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let found = parse(&mounts);
        if !found.iter().any(|hierarchy| hierarchy.kind == Kind::V2) {
            bail!("no cgroup v2 hierarchy is mounted");
        }
        Ok(found)
    }

    fn of(&self, name: &str) -> PathBuf {
        self.mounted_at.join(name)
    }
}

/// Whether version 2 is alone, and so has the controllers.
pub(crate) fn is_unified(hierarchies: &[Hierarchy]) -> bool {
    hierarchies.iter().all(|hierarchy| hierarchy.kind == Kind::V2)
}

fn parse(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let &[_, at, kind, options, ..] = fields.as_slice() else { continue };
        let kind = match kind {
            "cgroup2" => Kind::V2,
            "cgroup" => Kind::V1(choice(options)),
            _ => continue,
        };
        if !found.iter().any(|other| other.kind == kind) {
            found.push(Hierarchy { mounted_at: at.into(), kind });
        }
    }
    found
}

/// The options that name controllers or the hierarchy.
fn choice(options: &str) -> String {
    let general =
        ["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children", "noprefix"];
    let names = options.split(',').filter(|option| !general.contains(option) && !option.starts_with("release_agent="));
    let mut choice: Vec<&str> = names.collect();
    if choice.iter().any(|option| option.starts_with("name=")) {
        choice.push("none");
    }
    choice.join(",")
}

/// Makes a member's cgroups.
pub(crate) fn create(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    for hierarchy in hierarchies {
        let folder = hierarchy.of(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        if hierarchy.kind == Kind::V2 {
            fs::create_dir_all(folder.join(FIRST)).with_context(|| folder.display().to_string())?;
        }
        if is_unified(hierarchies) {
            give_controllers(&hierarchy.mounted_at)?;
        }
        inherit_cpuset(&hierarchy.mounted_at, &folder)?;
    }
    Ok(())
}

/// A cpuset of version 1 is empty until it is told what it may use.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), child.join(file));
        if from.exists() && fs::read_to_string(&to).is_ok_and(|text| text.trim().is_empty()) {
            let value = fs::read_to_string(&from).with_context(|| from.display().to_string())?;
            fs::write(&to, value).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

fn give_controllers(folder: &Path) -> Result<()> {
    let read = |file: &str| {
        let path = folder.join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let (has, gives) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let given: BTreeSet<&str> = gives.split_whitespace().collect();
    for controller in has.split_whitespace().filter(|controller| !given.contains(controller)) {
        let path = folder.join("cgroup.subtree_control");
        fs::write(&path, format!("+{controller}")).with_context(|| format!("{} +{controller}", path.display()))?;
    }
    Ok(())
}

/// Moves this process into a member's cgroups.
pub(crate) fn join(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    hierarchies.iter().try_for_each(|hierarchy| enter(&hierarchy.of(name)))
}

/// Moves this process to where a member's first process is. What is set up
/// before, a cgroup namespace above all, begins at the member's own cgroup.
pub(crate) fn make_way(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    let unified = hierarchies.iter().filter(|hierarchy| hierarchy.kind == Kind::V2);
    unified.map(|hierarchy| hierarchy.of(name).join(FIRST)).try_for_each(|folder| enter(&folder))
}

fn enter(folder: &Path) -> Result<()> {
    let path = folder.join("cgroup.procs");
    fs::write(&path, std::process::id().to_string()).with_context(|| path.display().to_string())
}

/// The process that is number 1 inside of a member.
pub(crate) fn first_process(hierarchies: &[Hierarchy], name: &str) -> Option<Pid> {
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.kind == Kind::V2)?;
    processes(&unified.of(name).join(FIRST)).into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        is_first_of_a_namespace(&status)
    })
}

/// `NSpid:` has the number in this namespace and in each below it.
fn is_first_of_a_namespace(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.is_some_and(|numbers| numbers.split_whitespace().skip(1).eq(["1"]))
}

/// The names of cgroups that begin like this, in any hierarchy.
pub(crate) fn existing(hierarchies: &[Hierarchy], prefix: &str) -> BTreeSet<String> {
    let folders = hierarchies.iter().flat_map(|hierarchy| fs::read_dir(&hierarchy.mounted_at).into_iter().flatten());
    let names = folders.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Kills what is in a member's cgroups and removes them; returns what stays.
pub(crate) fn end(hierarchies: &[Hierarchy], name: &str) -> Vec<String> {
    let folders: Vec<PathBuf> = hierarchies.iter().map(|hierarchy| hierarchy.of(name)).collect();
    let started = Instant::now();
    loop {
        let alive: BTreeSet<Pid> = folders.iter().flat_map(|folder| processes(folder)).collect();
        for pid in &alive {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let gone = alive.is_empty() && folders.iter().all(|folder| remove(folder).is_ok());
        if gone {
            return Vec::new();
        }
        if started.elapsed() > PATIENCE {
            let left = folders.iter().filter(|folder| folder.exists());
            return alive
                .iter()
                .map(|pid| format!("process {pid}"))
                .chain(left.map(|folder| folder.display().to_string()))
                .collect();
        }
        thread::sleep(POLL);
    }
}

/// The processes of a cgroup and of those below it.
fn processes(folder: &Path) -> Vec<Pid> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<Pid> = own.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect();
    found.extend(children(folder).iter().flat_map(|child| processes(child)));
    // What is in none of the namespaces that we see is shown as 0; and that would be a signal to ourselves.
    found.retain(|pid| pid.as_raw() > 0);
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove(folder: &Path) -> std::io::Result<()> {
    children(folder).iter().try_for_each(|child| remove(child))?;
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,release_agent=/x,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup2 /elsewhere cgroup2 rw 0 0
";

    #[test]
    fn every_hierarchy_is_found_once_with_what_chooses_it() {
        let found = parse(HYBRID);
        let kinds: Vec<&Kind> = found.iter().map(|hierarchy| &hierarchy.kind).collect();
        let (cpu, systemd) = (Kind::V1("cpu,cpuacct".into()), Kind::V1("name=systemd,none".into()));
        assert_eq!(kinds, [&cpu, &systemd, &Kind::V2]);
        assert_eq!(found[2].mounted_at, Path::new("/sys/fs/cgroup/unified"));
        assert!(!is_unified(&found));
    }

    #[test]
    fn version_two_alone_has_the_controllers() {
        assert!(is_unified(&parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")));
    }

    #[test]
    fn the_first_process_of_a_container_is_not_the_members() {
        assert!(is_first_of_a_namespace("Name:\tx\nNSpid:\t812\t1\n"));
        assert!(!is_first_of_a_namespace("NSpid:\t812\n"));
        assert!(!is_first_of_a_namespace("NSpid:\t812\t7\n"));
        assert!(!is_first_of_a_namespace("NSpid:\t812\t44\t1\n"));
    }
}
