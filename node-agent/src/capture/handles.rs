use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use aya::maps::MapData;
use nix::time::{ClockId, clock_gettime};

use super::bpf;

/// The right to exempt sockets from capture: the agent's own.
#[derive(Debug, Clone)]
pub(crate) struct Exemption(Arc<MapData>);

impl Exemption {
    pub(super) fn new(map: MapData) -> Self {
        Self(Arc::new(map))
    }

    /// Exempts a socket, before it connects; what a listener accepts later inherits it.
    pub(crate) fn exempt(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        bpf::update(self.0.fd().as_fd(), &socket.as_raw_fd(), &1_u8)
    }
}

/// Tells the kernel that the agent lives.
#[derive(Debug, Clone)]
pub(crate) struct Heartbeat(Arc<MapData>);

impl Heartbeat {
    pub(super) fn new(map: MapData) -> Self {
        Self(Arc::new(map))
    }

    /// To be called several times within the shortest time that connections may wait for the agent.
    pub(crate) fn beat(&self) -> io::Result<()> {
        bpf::update(self.0.fd().as_fd(), &0_u32, &monotonic_nanoseconds()?)
    }
}

/// The clock that the kernel's programs read.
pub(super) fn monotonic_nanoseconds() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned())
}
