//! Simulated nodes and pods: network namespaces joined by links, and programs
//! in them. The demo, the benchmark and the soak say who lives there.

pub(crate) mod network;
pub(crate) mod pcap;
pub(crate) mod process;

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;

const LOCK_POLL: Duration = Duration::from_millis(500);

/// Two of a kind at once would be in each other's way: the second waits. The
/// lock is a name in the kernel: it goes with the process and leaves no file.
pub(crate) fn lock(name: &str, limit: Duration) -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(name).context("name of the lock")?;
    let started = Instant::now();
    loop {
        match UnixListener::bind_addr(&address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            bound => return bound.context("lock"),
        }
        if started.elapsed() > limit {
            bail!("another {name} runs on this machine");
        }
        interrupt::check()?;
        thread::sleep(LOCK_POLL);
    }
}

/// Where a named network namespace is.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}
