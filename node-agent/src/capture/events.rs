use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use warren_ebpf_abi::{Event, EventKind, ProbeRefusal, RefusalReason};

use super::address::of_endpoint;

/// What the kernel side tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KernelEvent {
    /// Plaintext from outside was refused by the pod's verdict on that port.
    PlaintextRefused {
        /// The pod.
        cookie: u64,
        /// Who called.
        peer: SocketAddr,
        /// What was called.
        local: SocketAddr,
        /// Why it is no probe, if a socket of the host opened it.
        no_probe: Option<ProbeRefusal>,
    },
    /// An application accepted plaintext from outside. While an agent takes over from an earlier one, the same may be
    /// told twice.
    FlowOpened {
        /// The pod.
        cookie: u64,
        /// Cookie of the application's socket.
        socket: u64,
        /// Who called.
        peer: SocketAddr,
        /// What was called.
        local: SocketAddr,
        /// Namespace of the caller, if the kernel vouches for it: the connection took the kernel path.
        from: Option<u64>,
    },
    /// An application accepted a probe of this node's host.
    ProbeOpened {
        /// The pod.
        cookie: u64,
        /// Cookie of the application's socket.
        socket: u64,
        /// Who asks.
        peer: SocketAddr,
        /// What is asked.
        local: SocketAddr,
    },
    /// A connection of this node's host is no probe, so that the agent decides on it.
    NotAProbe {
        /// The pod.
        cookie: u64,
        /// Who called.
        peer: SocketAddr,
        /// What was called.
        local: SocketAddr,
        /// Why it is none.
        why: ProbeRefusal,
    },
    /// An application opened a connection that takes the kernel path.
    FlowDialled {
        /// The pod.
        cookie: u64,
        /// Cookie of the application's socket.
        socket: u64,
        /// What was called.
        peer: SocketAddr,
        /// Who called.
        local: SocketAddr,
        /// Namespace of the destination.
        to: u64,
    },
    /// Such a connection was not answered.
    FlowFailed {
        /// The pod.
        cookie: u64,
        /// What was called.
        peer: SocketAddr,
        /// Who called.
        local: SocketAddr,
    },
    /// A connection to a pod of this node went through the agent, because there is no verdict for it.
    VerdictWanted {
        /// The pod.
        cookie: u64,
        /// Its address.
        source: IpAddr,
        /// Namespace of the destination.
        to: u64,
        /// The destination.
        destination: SocketAddr,
    },
    /// A connection that was told of ended.
    FlowClosed {
        /// The pod.
        cookie: u64,
        /// Cookie of the application's socket.
        socket: u64,
        /// Who called.
        peer: SocketAddr,
        /// What was called.
        local: SocketAddr,
        /// Bytes the application was sent.
        received: u64,
        /// Bytes of the application that were acknowledged.
        sent: u64,
    },
    /// A connection to a captured destination was refused at `connect`.
    ConnectRefused {
        /// The pod.
        cookie: u64,
        /// Where it was to go.
        destination: SocketAddr,
        /// Why, in a word.
        reason: &'static str,
    },
}

impl KernelEvent {
    /// Cookie of the network namespace of the pod it is about.
    pub(crate) fn cookie(&self) -> u64 {
        match self {
            Self::PlaintextRefused { cookie, .. }
            | Self::FlowOpened { cookie, .. }
            | Self::ProbeOpened { cookie, .. }
            | Self::NotAProbe { cookie, .. }
            | Self::FlowDialled { cookie, .. }
            | Self::FlowFailed { cookie, .. }
            | Self::VerdictWanted { cookie, .. }
            | Self::FlowClosed { cookie, .. }
            | Self::ConnectRefused { cookie, .. } => *cookie,
        }
    }
}

impl KernelEvent {
    /// Cookie of the network namespace at the other end, if the kernel vouches for it.
    pub(crate) fn other(&self) -> Option<u64> {
        match self {
            Self::FlowOpened { from, .. } => *from,
            Self::FlowDialled { to, .. } => Some(*to),
            _ => None,
        }
    }
}

/// Events that are given at once; what else the control thread has to do is not to wait longer.
const MOST_AT_ONCE: usize = 2048;

/// Reads what the kernel side tells.
pub(crate) struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    /// Needs a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring's descriptor is that of its map, which it owns and never replaces, and which stays open until
        // the ring, now owned by the `AsyncFd`, is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self(ring?))
    }

    /// Waits for events, and gives those that are there, up to a number. Cancelling loses nothing.
    ///
    /// Whoever lets some time pass between two calls spares the kernel the wake-ups: it makes one only when all that
    /// came before was read.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<KernelEvent>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut events = Vec::new();
            while events.len() < MOST_AT_ONCE {
                let Some(item) = ring.next() else {
                    ready.clear_ready();
                    break;
                };
                // An event that cannot be read is of a newer program: it is skipped.
                events.extend(decode(&item));
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

fn decode(bytes: &[u8]) -> Option<KernelEvent> {
    let event = read(bytes)?;
    let (cookie, socket) = (event.cookie, event.socket);
    let (local, peer) = (of_endpoint(&event.local), of_endpoint(&event.remote));
    Some(match EventKind::from_code(event.kind)? {
        EventKind::PlaintextRefused => {
            KernelEvent::PlaintextRefused { cookie, peer, local, no_probe: ProbeRefusal::from_code(event.reason) }
        }
        EventKind::ProbeOpened => KernelEvent::ProbeOpened { cookie, socket, peer, local },
        EventKind::NotAProbe => {
            KernelEvent::NotAProbe { cookie, peer, local, why: ProbeRefusal::from_code(event.reason)? }
        }
        EventKind::FlowOpened => {
            KernelEvent::FlowOpened { cookie, socket, peer, local, from: (event.peer != 0).then_some(event.peer) }
        }
        EventKind::FlowDialled => KernelEvent::FlowDialled { cookie, socket, peer, local, to: event.peer },
        EventKind::FlowFailed => KernelEvent::FlowFailed { cookie, peer, local },
        EventKind::VerdictWanted => {
            KernelEvent::VerdictWanted { cookie, source: local.ip(), to: event.peer, destination: peer }
        }
        EventKind::FlowClosed => {
            KernelEvent::FlowClosed { cookie, socket, peer, local, received: event.received, sent: event.sent }
        }
        EventKind::ConnectRefused => KernelEvent::ConnectRefused {
            cookie,
            destination: peer,
            reason: RefusalReason::from_code(event.reason).map_or("unknown", RefusalReason::as_str),
        },
    })
}

fn read(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: there are enough bytes, any alignment is fine, and `Event` is `Plain`: every bit pattern is valid.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_ebpf_abi::{Endpoint, mapped};

    fn bytes(event: &Event) -> Vec<u8> {
        // SAFETY: `Event` has no padding, so all of its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(event).cast(), size_of::<Event>()) }.to_vec()
    }

    #[test]
    fn decodes_what_the_kernel_wrote_and_skips_what_it_does_not_know() {
        let mut event = Event {
            kind: EventKind::ConnectRefused as u32,
            reason: RefusalReason::AgentAway as u32,
            cookie: 7,
            socket: 0,
            peer: 0,
            local: Endpoint::NONE,
            remote: Endpoint::new(mapped([10, 0, 0, 1]), 80),
            received: 0,
            sent: 0,
        };
        let expected = KernelEvent::ConnectRefused {
            cookie: 7,
            destination: SocketAddr::from(([10, 0, 0, 1], 80)),
            reason: "agent_away",
        };
        assert_eq!(decode(&bytes(&event)), Some(expected));
        event.kind = 99;
        assert_eq!(decode(&bytes(&event)), None);
        assert_eq!(decode(&[0; 10]), None);
    }
}
