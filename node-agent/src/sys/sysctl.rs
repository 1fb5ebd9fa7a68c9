//! Settings of the network namespace this thread is in.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;

use super::procfs;

/// Answers to a marked SYN, and the connection that comes of it, bear the mark as well.
pub(crate) const TCP_FWMARK_ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
/// What the kernel itself answers to a marked packet, such as a RST, bears the mark as well.
pub(crate) const FWMARK_REFLECT_V4: &str = "net/ipv4/fwmark_reflect";
/// As [`FWMARK_REFLECT_V4`].
pub(crate) const FWMARK_REFLECT_V6: &str = "net/ipv6/fwmark_reflect";

/// The value of a setting; `/proc/thread-self` shows those of the thread's own namespace.
pub(crate) fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(name))?.trim().to_owned())
}

/// Sets a setting.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    match fs::write(path(name), value) {
        // A container that is not privileged has `/proc/sys` read-only, whatever its capabilities.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => write_elsewhere(name, value),
        done => done,
    }
}

/// By a proc file system of our own, which is mounted nowhere and goes with its descriptor.
fn write_elsewhere(name: &str, value: &str) -> io::Result<()> {
    let own = procfs::detached()?;
    let path = format!("/proc/self/fd/{}/sys/{name}", own.as_raw_fd());
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}
