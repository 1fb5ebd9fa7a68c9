//! `warren agent mount-bpffs`: programs and maps outlive the agent in the BPF file system, which every node has that is
//! run by systemd, and some that are not lack.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::exit::{Exit, Fatal};

/// Where everybody looks for it.
const BPFFS: &str = "/sys/fs/bpf";

/// Mounts it, unless it is there.
pub(crate) fn run() -> Result<(), Fatal> {
    let at = Path::new(BPFFS);
    if is_bpffs(at) {
        println!("warren: {BPFFS} is mounted already");
        return Ok(());
    }
    mount(Some("bpf"), at, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, Some("mode=700"))
        .map_err(|error| Fatal::new(Exit::Capture, format!("mount -t bpf bpf {BPFFS}"), &error))?;
    println!("warren: {BPFFS} is mounted now");
    Ok(())
}

/// Whether a folder is the root of, or within, a BPF file system.
pub(crate) fn is_bpffs(at: &Path) -> bool {
    fs::metadata(at).is_ok() && statfs(at).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
