//! The kernel path between pods of this node: which pods may take it, and the verdicts.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use warren_core::identity::PodUid;
use warren_ebpf_abi::{NearDestination, NearSource, Verdict, VerdictKey, Way, WayKey, WayState, Wire, map};

use super::address::key;
use super::bpf::{BpfError, Raw};
use super::error::CaptureError;
use super::handles::monotonic_nanoseconds;
use super::node::NodeCapture;
use super::object::Object;
use super::pins::Pins;
use super::wire::{self, AttachedWire, WireError, WireJob, WirePrograms};

/// Connections from one pod of this node to a port of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NearPair {
    /// Cookie of the source's network namespace.
    pub(crate) source: u64,
    /// The source's address.
    pub(crate) source_ip: IpAddr,
    /// Cookie of the destination's network namespace.
    pub(crate) destination: u64,
    /// The destination's address and port.
    pub(crate) destination_addr: SocketAddr,
}

impl NearPair {
    fn key(&self) -> Raw<VerdictKey> {
        Raw(VerdictKey::new(
            (self.source, key(self.source_ip)),
            (self.destination, key(self.destination_addr.ip())),
            self.destination_addr.port(),
        ))
    }
}

/// An admitted connection, as one of its ends is found in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NearEnd {
    /// Cookie of the other end's network namespace.
    pub(crate) peer: u64,
    /// Whether this end opened the connection.
    pub(crate) dialled: bool,
}

/// The state of the kernel path.
pub(super) struct Near {
    sources: HashMap<MapData, u64, Raw<NearSource>>,
    destinations: HashMap<MapData, [u8; 16], Raw<NearDestination>>,
    verdicts: HashMap<MapData, Raw<VerdictKey>, Raw<Verdict>>,
    ways: HashMap<MapData, Raw<WayKey>, Raw<Way>>,
    /// Whether connections may take it.
    wanted: bool,
    /// `None` if the kernel has no such programs. They also watch what comes from the host.
    programs: Option<Arc<WirePrograms>>,
    pub(super) generation: u64,
}

impl Near {
    /// Takes the maps over. Verdicts of an earlier agent are void: it is not known what became of the world since.
    pub(super) fn take(object: &mut Object, wanted: bool) -> Result<Self, BpfError> {
        let mut near = Self {
            sources: object.map(map::NEAR_SOURCES)?,
            destinations: object.map(map::NEAR_DESTINATIONS)?,
            verdicts: object.map(map::NEAR_VERDICTS)?,
            ways: object.map(map::WAYS)?,
            wanted,
            programs: None,
            generation: fresh_generation(),
        };
        near.clear()?;
        match near.ways_fd().and_then(|ways| WirePrograms::load(object, ways)) {
            Ok(programs) => near.programs = Some(Arc::new(programs)),
            Err(error) => tracing::warn!(%error, "this kernel has no kernel path, and no probe is known"),
        }
        Ok(near)
    }

    fn ways_fd(&self) -> Result<OwnedFd, BpfError> {
        let fd = self.ways.map().fd().as_fd().try_clone_to_owned();
        fd.map_err(BpfError::map_io(map::WAYS))
    }

    fn clear(&mut self) -> Result<(), BpfError> {
        let sources: Vec<u64> = self.sources.keys().flatten().collect();
        for cookie in sources {
            self.sources.remove(&cookie).map_err(BpfError::map(map::NEAR_SOURCES))?;
        }
        let destinations: Vec<[u8; 16]> = self.destinations.keys().flatten().collect();
        for ip in destinations {
            self.destinations.remove(&ip).map_err(BpfError::map(map::NEAR_DESTINATIONS))?;
        }
        self.withdraw(|_| true)
    }

    fn withdraw(&mut self, which: impl Fn(&VerdictKey) -> bool) -> Result<(), BpfError> {
        let keys: Vec<Raw<VerdictKey>> = self.verdicts.keys().flatten().filter(|key| which(&key.0)).collect();
        for key in keys {
            self.verdicts.remove(&key).map_err(BpfError::map(map::NEAR_VERDICTS))?;
        }
        Ok(())
    }

    /// Makes connections to and from a pod possible.
    fn open(&mut self, cookie: u64, wire: Wire, ips: &[IpAddr]) -> Result<(), BpfError> {
        self.close(cookie)?;
        if !self.wanted {
            return Ok(());
        }
        for ip in ips {
            let destination = Raw(NearDestination { cookie, wire });
            self.destinations.insert(key(*ip), destination, 0).map_err(BpfError::map(map::NEAR_DESTINATIONS))?;
        }
        // Which of several the kernel will choose is not known when a socket connects.
        let only = |v4: bool| match ips.iter().filter(|ip| ip.is_ipv4() == v4).collect::<Vec<_>>()[..] {
            [ip] => key(*ip),
            _ => [0; 16],
        };
        let source = Raw(NearSource { wire, v4: only(true), v6: only(false) });
        self.sources.insert(cookie, source, 0).map_err(BpfError::map(map::NEAR_SOURCES))
    }

    /// Makes new connections to and from a pod impossible. Those that are open go on.
    pub(super) fn close(&mut self, cookie: u64) -> Result<(), BpfError> {
        if self.sources.get(&cookie, 0).is_ok() {
            self.sources.remove(&cookie).map_err(BpfError::map(map::NEAR_SOURCES))?;
        }
        let own: Vec<[u8; 16]> =
            self.destinations.iter().flatten().filter(|(_, Raw(of))| of.cookie == cookie).map(|(ip, _)| ip).collect();
        for ip in own {
            self.destinations.remove(&ip).map_err(BpfError::map(map::NEAR_DESTINATIONS))?;
        }
        self.withdraw(|key| key.source() == cookie || key.destination() == cookie)
    }

    /// Removes everything of a pod that is gone.
    pub(super) fn forget(&mut self, cookie: u64) -> Result<(), BpfError> {
        self.close(cookie)?;
        self.drop_ways(|way| way.from == cookie || way.to == cookie)
    }

    /// Removes ways between pods of which one is not there any more.
    pub(super) fn keep_ways(&mut self, pods: &BTreeSet<u64>) -> Result<(), BpfError> {
        self.drop_ways(|way| !pods.contains(&way.from) || !pods.contains(&way.to))
    }

    fn drop_ways(&mut self, which: impl Fn(&Way) -> bool) -> Result<(), BpfError> {
        let keys: Vec<Raw<WayKey>> =
            self.ways.iter().flatten().filter(|(_, Raw(way))| which(way)).map(|(key, _)| key).collect();
        for key in keys {
            // Its socket may have closed meanwhile.
            let _ = self.ways.remove(&key);
        }
        Ok(())
    }
}

impl NodeCapture {
    /// What has to be done, on another thread, for a pod's link to be watched and its connections to take the kernel
    /// path. `None` if the kernel cannot, or the pod is not in.
    pub(crate) fn wire_job(&self, uid: &PodUid) -> Option<WireJob> {
        let (pod, programs) = (self.pods.get(uid)?, self.near.programs.clone()?);
        pod.capturing.then(|| WireJob {
            netns: pod.netns.clone(),
            ips: pod.ips.clone(),
            programs,
            directory: self.pins.wires(),
        })
    }

    /// Takes the result of a job: from now on connections of the pod may be admitted. One that comes too late is undone.
    pub(crate) fn wired(&mut self, uid: &PodUid, cookie: u64, wire: AttachedWire) -> Result<(), CaptureError> {
        match self.pods.get_mut(uid) {
            Some(pod) if pod.capturing && pod.netns.cookie() == cookie => {
                pod.wire = Some(wire.0);
                let ips = pod.ips.clone();
                Ok(self.near.open(cookie, wire.0, &ips)?)
            }
            _ => {
                wire::detach(&self.pins.wires(), cookie);
                Ok(())
            }
        }
    }

    /// Looks at a pod's link again; if it is not what it was, the pod's connections go through the agent. Returns what
    /// is wrong.
    pub(super) fn audit_wire(&mut self, uid: &PodUid) -> Result<Option<String>, CaptureError> {
        let Some(pod) = self.pods.get(uid) else { return Ok(None) };
        let (Some(wire), Some(programs)) = (pod.wire, self.near.programs.clone()) else { return Ok(None) };
        let what = match wire::find(&pod.netns, &pod.ips) {
            Ok(found) if found != wire => "its link is another one".to_owned(),
            Ok(_) if programs.are_on(wire.outer())? => return Ok(None),
            Ok(_) => "the programs of its link were detached".to_owned(),
            Err(error @ WireError::Io(_)) => return Err(CaptureError::Config(error.to_string())),
            Err(error) => error.to_string(),
        };
        self.unwire(uid)?;
        Ok(Some(what))
    }

    /// Closes the kernel path for a pod.
    pub(super) fn unwire(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        let Some(pod) = self.pods.get_mut(uid) else { return Ok(()) };
        pod.wire = None;
        Ok(self.near.close(pod.netns.cookie())?)
    }

    /// Opens the kernel path anew for a pod whose addresses changed.
    pub(super) fn rewire(&mut self, uid: &PodUid) -> Result<(), BpfError> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        match pod.wire {
            Some(wire) => self.near.open(pod.netns.cookie(), wire, &pod.ips),
            None => Ok(()),
        }
    }

    /// Whether a pod's link is watched, so that its connections may take the kernel path, and probes come in.
    pub(crate) fn is_wired(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some_and(|pod| pod.wire.is_some())
    }

    /// Lets connections of this kind take the kernel path.
    pub(crate) fn permit(&mut self, pair: &NearPair) -> Result<(), CaptureError> {
        let verdict = Raw(Verdict { generation: self.near.generation });
        Ok(self.near.verdicts.insert(pair.key(), verdict, 0).map_err(BpfError::map(map::NEAR_VERDICTS))?)
    }

    /// Takes all verdicts back, at once.
    pub(crate) fn withdraw_verdicts(&mut self) -> Result<(), CaptureError> {
        self.near.generation = fresh_generation();
        self.write_config()?;
        Ok(self.near.withdraw(|_| true)?)
    }

    /// Lets them take it no longer. Should that fail, no verdict at all is good any more, and an error is returned.
    pub(crate) fn withdraw_verdict(&mut self, pair: &NearPair) -> Result<(), CaptureError> {
        let key = pair.key();
        if self.near.verdicts.get(&key, 0).is_err() {
            return Ok(());
        }
        if let Err(error) = self.near.verdicts.remove(&key) {
            self.near.generation = fresh_generation();
            self.write_config()?;
            return Err(BpfError::map(map::NEAR_VERDICTS)(error).into());
        }
        Ok(())
    }

    /// The pod that was last enrolled in the namespace with this cookie, by this agent or an earlier one.
    pub(crate) fn recorded(&self, cookie: u64) -> Option<PodUid> {
        self.state.pods().get(&cookie).map(|record| PodUid::from(record.uid.as_str()))
    }

    /// The admitted connection that one end of it is of.
    pub(crate) fn near_end(&self, local: SocketAddr, remote: SocketAddr, socket: u64) -> Option<NearEnd> {
        let Raw(way) = self.near.ways.get(&Raw(leaving(local, remote)), 0).ok()?;
        let dialled = way.state != WayState::Answer as u32;
        (way.owner == socket).then_some(NearEnd { peer: way.to, dialled })
    }
}

/// What the packets bear that a socket sends.
pub(super) fn leaving(local: SocketAddr, remote: SocketAddr) -> WayKey {
    WayKey::new(key(local.ip()), local.port(), key(remote.ip()), remote.port())
}

/// The ways that an agent left, if it left any.
pub(super) fn pinned_ways(pins: &Pins) -> Result<Option<BTreeSet<WayKey>>, BpfError> {
    let path = pins.map(map::WAYS);
    if !path.exists() {
        return Ok(None);
    }
    let data = MapData::from_pin(path).map_err(BpfError::map(map::WAYS))?;
    let ways = HashMap::<_, Raw<WayKey>, Raw<Way>>::try_from(Map::HashMap(data)).map_err(BpfError::map(map::WAYS))?;
    Ok(Some(ways.keys().flatten().map(|Raw(key)| key).collect()))
}

/// Another number than any before it in this run of the kernel.
fn fresh_generation() -> u64 {
    monotonic_nanoseconds().unwrap_or(0).max(1)
}
