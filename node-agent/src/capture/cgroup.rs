use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::error::CaptureError;

/// The root of the cgroup v2 hierarchy, wherever it is mounted: on hybrid systems it stands beside v1.
pub(super) fn root() -> Result<PathBuf, CaptureError> {
    let mounts = fs::read_to_string("/proc/mounts").map_err(CaptureError::file("/proc/mounts"))?;
    root_in(&mounts).ok_or(CaptureError::NoCgroup)
}

/// Opens it.
pub(super) fn open(root: &Path) -> Result<File, CaptureError> {
    File::open(root).map_err(CaptureError::file(root))
}

fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(path)))
    })
}

/// Spaces and the like stand as octal escapes in `/proc/mounts`.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchy_beside_v1() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(root_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(root_in("cgroup2 /my\\040cgroup cgroup2 rw 0 0"), Some(PathBuf::from("/my cgroup")));
        assert_eq!(root_in("proc /proc proc rw 0 0\n"), None);
    }
}
