//! Ports from which an application is dialled in the name of a client that is a pod of the same node.
//!
//! Such a client may connect to the same application by the kernel path at the same moment. Chosen by the kernel, both
//! ports would come from the same sequence (it has one for each pair of addresses, in all namespaces), and two SYNs with
//! the same ends that arrive within microseconds are taken for one connection, whatever devices they come by. So the
//! agent chooses, from ports that a pod's kernel by default does not give out.

use std::sync::atomic::{AtomicU32, Ordering};

/// Below it are ports that need a privilege.
const FIRST: u16 = 1024;
/// First port of the kernel's own choice, unless `net.ipv4.ip_local_port_range` says otherwise.
const END: u16 = 32_768;
/// Ports that are tried before the choice is left to the kernel.
const TRIES: usize = 32;

/// Deals ports out, one after the other.
#[derive(Debug, Default)]
pub(crate) struct DialPorts(AtomicU32);

impl DialPorts {
    /// Ports to be tried for one connection. One may be in use, by an application or by an earlier connection.
    pub(super) fn draw(&self) -> impl Iterator<Item = u16> + '_ {
        (0..TRIES).map(|_| {
            let drawn = self.0.fetch_add(1, Ordering::Relaxed) % u32::from(END - FIRST);
            FIRST + drawn as u16
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_port_below_the_kernels_has_its_turn() {
        let ports = DialPorts::default();
        let rounds = usize::from(END - FIRST) / TRIES;
        let drawn: BTreeSet<u16> = (0..rounds).flat_map(|_| ports.draw().collect::<Vec<_>>()).collect();
        assert_eq!(drawn, (FIRST..END).collect());
        assert_eq!(ports.draw().next(), Some(FIRST), "and another one");
    }
}
