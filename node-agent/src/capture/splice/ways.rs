//! Admission by hand: what the hooks do for connections of pods, for connections of the self-test.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use aya::maps::{HashMap, MapData};
use warren_ebpf_abi::{SpliceEnd, Way, WayKey, WayState, Wire};

use crate::capture::address;
use crate::capture::bpf::Raw;
use crate::sys::netns::NetNs;
use crate::sys::socket;

/// An address with the namespace it is in.
pub(crate) type Place<'a> = (SocketAddr, &'a NetNs);

/// The directions of admitted connections.
pub(crate) struct Ways(HashMap<MapData, Raw<WayKey>, Raw<Way>>);

impl Ways {
    pub(super) fn new(map: HashMap<MapData, Raw<WayKey>, Raw<Way>>) -> Self {
        Self(map)
    }

    /// Admits a connection that `client` is going to open.
    pub(crate) fn admit(&mut self, client: BorrowedFd<'_>, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        let owner = socket::cookie(client)?;
        self.put(key(from.0, to.0), way(owner, from.1, to.1, WayState::Asked))?;
        self.put(key(to.0, from.0), way(0, to.1, from.1, WayState::Answer))
    }

    /// Says which socket accepted it.
    pub(crate) fn accepted(&mut self, server: BorrowedFd<'_>, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        let owner = socket::cookie(server)?;
        self.put(key(to.0, from.0), way(owner, to.1, from.1, WayState::Answer))
    }

    /// Forgets it.
    #[cfg(test)]
    pub(crate) fn forget(&mut self, from: SocketAddr, to: SocketAddr) {
        for key in [key(from, to), key(to, from)] {
            // What is gone is gone.
            let _ = self.0.remove(&Raw(key));
        }
    }

    fn put(&mut self, key: WayKey, way: Way) -> io::Result<()> {
        self.0.insert(Raw(key), Raw(way), 0).map_err(io::Error::other)
    }
}

/// What is counted of spliced connections.
pub(crate) struct Ends(HashMap<MapData, u64, Raw<SpliceEnd>>);

impl Ends {
    pub(super) fn new(map: HashMap<MapData, u64, Raw<SpliceEnd>>) -> Self {
        Self(map)
    }

    /// What is counted of a socket, by its cookie.
    pub(crate) fn get(&self, cookie: u64) -> SpliceEnd {
        self.0.get(&cookie, 0).map_or_else(|_| SpliceEnd::default(), |end| end.0)
    }

    /// The same, which is forgotten then.
    #[cfg(test)]
    pub(crate) fn take(&mut self, cookie: u64) -> SpliceEnd {
        let end = self.get(cookie);
        // What is gone is gone.
        let _ = self.0.remove(&cookie);
        end
    }
}

fn key(from: SocketAddr, to: SocketAddr) -> WayKey {
    WayKey::new(address::key(from.ip()), from.port(), address::key(to.ip()), to.port())
}

fn way(owner: u64, from: &NetNs, to: &NetNs, state: WayState) -> Way {
    Way {
        owner,
        from: from.cookie(),
        to: to.cookie(),
        ended: 0,
        from_wire: Wire::new(0, 0),
        to_wire: Wire::new(0, 0),
        state: state as u32,
        received: 0,
    }
}
