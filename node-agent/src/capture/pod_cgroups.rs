//! Which cgroups pods' cgroups lie in: kubelet puts all of its pods into one. What is below it is a pod's process, also
//! if the pod uses the host's network.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use warren_ebpf_abi::MAX_POD_CGROUPS;

/// How deep below the root it is looked for: a node of a cluster in containers has it two or three deep.
const DEPTH: usize = 4;

/// Why it is not known where pods' cgroups are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PodCgroupsUnknown {
    /// None is named like it.
    #[error("no cgroup below {} has the name that kubelet gives to that of all pods; --pod-cgroup can name it", .0.display())]
    NotFound(PathBuf),
    /// There is one, and pods are elsewhere.
    #[error("no process is in {}, so the pods are elsewhere", .0.display())]
    Unused(PathBuf),
    /// More than there can be.
    #[error("{0} cgroups could be that of all pods; --pod-cgroup can name it")]
    TooMany(usize),
    /// It cannot be looked at.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The cgroup.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// The cgroups that pods' cgroups lie in, by id: those with these names below the root or, if none are named, those
/// that look like it. Processes are in at least one of them.
pub(super) fn find(root: &Path, named: &[PathBuf]) -> Result<BTreeMap<u64, PathBuf>, PodCgroupsUnknown> {
    let paths = match named {
        [] => search(root)?,
        named => named.iter().map(|path| root.join(path.strip_prefix("/").unwrap_or(path))).collect(),
    };
    let Some(first) = paths.first().cloned() else { return Err(PodCgroupsUnknown::NotFound(root.to_owned())) };
    if paths.len() > MAX_POD_CGROUPS {
        return Err(PodCgroupsUnknown::TooMany(paths.len()));
    }
    let mut found = BTreeMap::new();
    let mut used = false;
    for path in paths {
        let look = || Ok::<_, io::Error>((fs::metadata(&path)?.ino(), fs::read_to_string(path.join("cgroup.events"))?));
        match look() {
            Ok((id, events)) => {
                used |= events.lines().any(|line| line == "populated 1");
                found.insert(id, path);
            }
            // Gone since it was found.
            Err(error) if named.is_empty() && is_gone(&error) => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    if used { Ok(found) } else { Err(PodCgroupsUnknown::Unused(first)) }
}

fn search(root: &Path) -> Result<Vec<PathBuf>, PodCgroupsUnknown> {
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), 1)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if depth > 1 && is_gone(&error) => continue,
            Err(error) => return Err(unreadable(folder, &error)),
        };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if entry.file_name().to_str().is_some_and(is_of_all_pods) {
                found.push(entry.path());
            } else if depth < DEPTH {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Kubelet names it `kubepods`, or `kubepods.slice` if systemd drives it, which puts its parent's name before.
fn is_of_all_pods(name: &str) -> bool {
    name.starts_with("kubepods") || name.ends_with("-kubepods.slice")
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn unreadable(path: PathBuf, error: &io::Error) -> PodCgroupsUnknown {
    PodCgroupsUnknown::Unreadable { path, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a hierarchy.
    struct Hierarchy(PathBuf);

    impl Hierarchy {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("warren-cgroups-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn with(self, cgroup: &str, populated: bool) -> Self {
            let path = self.0.join(cgroup);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.events"), format!("populated {}\nfrozen 0\n", u8::from(populated))).unwrap();
            self
        }

        fn find(&self, named: &[&str]) -> Result<Vec<String>, PodCgroupsUnknown> {
            let named: Vec<PathBuf> = named.iter().map(PathBuf::from).collect();
            let relative = |path: &PathBuf| path.strip_prefix(&self.0).unwrap().display().to_string();
            let found = find(&self.0, &named)?;
            for (id, path) in &found {
                assert_eq!(fs::metadata(path).unwrap().ino(), *id);
            }
            let mut paths: Vec<String> = found.values().map(relative).collect();
            paths.sort();
            Ok(paths)
        }
    }

    impl Drop for Hierarchy {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn names_of_both_drivers_at_any_likely_depth() {
        for (name, path) in [
            ("plain", "kubepods"),
            ("systemd", "kubepods.slice"),
            ("kind", "kubelet.slice/kubelet-kubepods.slice"),
            ("nested", "docker/abc/kubelet/kubepods"),
        ] {
            let hierarchy = Hierarchy::new(name).with("system.slice/ssh.service", true).with(path, true);
            assert_eq!(hierarchy.find(&[]), Ok(vec![path.to_owned()]));
        }
    }

    #[test]
    fn what_lies_below_is_not_counted_again() {
        let hierarchy = Hierarchy::new("below").with("kubepods.slice", true);
        let hierarchy = hierarchy.with("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice", true);
        assert_eq!(hierarchy.find(&[]), Ok(vec!["kubepods.slice".to_owned()]));
    }

    #[test]
    fn unknown_if_there_is_none_or_pods_are_elsewhere() {
        let hierarchy = Hierarchy::new("none").with("system.slice", true);
        assert_eq!(hierarchy.find(&[]), Err(PodCgroupsUnknown::NotFound(hierarchy.0.clone())));
        let hierarchy = hierarchy.with("kubepods", false);
        assert_eq!(hierarchy.find(&[]), Err(PodCgroupsUnknown::Unused(hierarchy.0.join("kubepods"))));
    }

    #[test]
    fn an_operator_names_it() {
        let hierarchy = Hierarchy::new("named").with("machine/pods", true).with("kubepods", true);
        assert_eq!(hierarchy.find(&["/machine/pods"]), Ok(vec!["machine/pods".to_owned()]));
        assert!(matches!(hierarchy.find(&["/not/there"]), Err(PodCgroupsUnknown::Unreadable { .. })));
        assert!(matches!(hierarchy.find(&["kubepods", "not/there"]), Err(PodCgroupsUnknown::Unreadable { .. })));
    }
}
