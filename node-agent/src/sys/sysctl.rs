//! Settings of the network namespace this thread is in.

use std::fs;
use std::io;

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
    fs::write(path(name), value)
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}
