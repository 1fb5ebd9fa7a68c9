//! The place of the gate: a classifier on what leaves by a pod's `lo`.
//!
//! A tcx link would be pinned and adopted like every other program, but attaching one waits for a grace period of RCU
//! while it holds the kernel's lock of all network configuration: 12 ms, in which no other pod gets on either. A
//! classifier is there at once. A later agent's takes its place in one step, and it goes with the namespace.

use std::io;
use std::os::fd::BorrowedFd;

use warren_ebpf_abi::{LOOPBACK_IFINDEX, program};

use crate::sys::netlink::{Direction, Place, RouteSocket};

/// Numbers that nobody else takes by chance.
const PLACE: Place =
    Place { interface: LOOPBACK_IFINDEX, direction: Direction::Egress, priority: 0x577, handle: 0x577 };

/// Whether the namespace this thread is in has somebody's classifiers on `lo`, so that their carrier must stay.
pub(super) fn has_carrier(socket: &RouteSocket) -> io::Result<bool> {
    socket.has_clsact(LOOPBACK_IFINDEX)
}

/// Puts the gate in its place, in the namespace this thread is in.
pub(super) fn attach(gate: BorrowedFd<'_>) -> io::Result<()> {
    let socket = RouteSocket::open()?;
    socket.add_clsact(LOOPBACK_IFINDEX)?;
    socket.set_classifier(PLACE, gate, program::GATE)
}

/// Ids of the programs that stand in the gate's place, in the namespace this thread is in.
pub(super) fn standing() -> io::Result<Vec<u32>> {
    let (found, _) = RouteSocket::open()?.classifiers(LOOPBACK_IFINDEX, Direction::Egress)?;
    Ok(found.into_iter().filter(|found| found.place == PLACE).filter_map(|found| found.program).collect())
}

/// Removes the gate from the socket's namespace, and what carried it unless that is to stay or carries others.
pub(super) fn remove(socket: &RouteSocket, carrier_stays: bool) -> io::Result<()> {
    let (mut found, mut others) = socket.classifiers(LOOPBACK_IFINDEX, Direction::Egress)?;
    if found.iter().any(|found| found.place == PLACE) {
        socket.remove_classifier(PLACE)?;
        found.retain(|found| found.place != PLACE);
    }
    if carrier_stays || !socket.has_clsact(LOOPBACK_IFINDEX)? {
        return Ok(());
    }
    let (entering, more) = socket.classifiers(LOOPBACK_IFINDEX, Direction::Ingress)?;
    others += more;
    if found.is_empty() && entering.is_empty() && others == 0 {
        socket.remove_clsact(LOOPBACK_IFINDEX)?;
    }
    Ok(())
}
