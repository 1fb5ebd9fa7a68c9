//! The node's side of capture: programs at the cgroup root, shared maps, and the pods that are in.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use aya::maps::{Array, HashMap, MapData, RingBuf};
use warren_core::identity::PodUid;
use warren_core::world::CaptureSet;
use warren_ebpf_abi::{Config, MAX_WORKERS, OwnKey, PodEntry, Wire, map, program};

use super::bpf::{self, BpfError, Raw, Target};
use super::captured::{CaptureDiff, CapturedMaps};
use super::cgroup;
use super::config::CaptureConfig;
use super::counters::CounterReader;
use super::error::CaptureError;
use super::events::Events;
use super::handles::{Exemption, Heartbeat};
use super::host::Host;
use super::near::Near;
use super::object::{ATTACHED_SETSOCKOPT, Attached, Loader, Object};
use super::pins::{Pins, linked_program, replace_link};
use super::plumbing::Plumbing;
use super::pod::PodObject;
use super::splice::{self, SpliceError, SpliceObject, Which};
use super::state::State;
use crate::sys::netns::NetNs;

/// A node's programs with the way each is attached (`enum bpf_attach_type`). The hook that would let a captured
/// connection out comes before the hooks that capture.
const PROGRAMS: [(&str, u32); 6] = [
    (program::SETSOCKOPT, ATTACHED_SETSOCKOPT),
    (program::BIND4, 8),
    (program::BIND6, 9),
    (program::FLOWS, 3),
    (program::CONNECT4, 10),
    (program::CONNECT6, 11),
];

/// As above, of the programs that splice.
const SPLICE_PROGRAMS: [(&str, u32); 2] = [(program::SPLICE_TAKE, 3), (program::SPLICE_OPTION, ATTACHED_SETSOCKOPT)];

/// Capture on one node: what is attached at the cgroup root, and the pods that are enrolled.
///
/// It may be dropped at any time: what it made stays in the kernel, pinned, and is taken over by the next one.
pub(crate) struct NodeCapture {
    pub(super) config: CaptureConfig,
    pub(super) pins: Pins,
    pub(super) state: State,
    pub(super) loader: Loader,
    pub(super) maps: NodeMaps,
    pub(super) exemption: Exemption,
    pub(super) pods: BTreeMap<PodUid, Pod>,
    pub(super) near: Near,
    pub(super) host: Host,
    splice: Option<SpliceObject>,
    counters: CounterReader,
    heartbeat: Heartbeat,
    captured: CapturedMaps,
    events: Option<RingBuf<MapData>>,
    cgroup: File,
    programs: BTreeMap<&'static str, u32>,
    /// Held so that what the kernel tells of each program stands in this process's descriptors.
    object: Option<Object>,
}

/// A pod that is in.
pub(super) struct Pod {
    pub(super) netns: Arc<NetNs>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) plumbing: Plumbing,
    pub(super) object: PodObject,
    /// False once it is being withdrawn.
    pub(super) capturing: bool,
    /// Its link, once connections may take the kernel path.
    pub(super) wire: Option<Wire>,
}

/// Maps of the node's programs.
pub(super) struct NodeMaps {
    pub(super) pods: HashMap<MapData, u64, Raw<PodEntry>>,
    pub(super) own: HashMap<MapData, Raw<OwnKey>, u8>,
    config: Array<MapData, Raw<Config>>,
}

impl NodeCapture {
    /// Loads and attaches the node's programs. What an earlier agent of the same node left is taken over: its maps, and
    /// its programs until the new ones are attached, so that capture never pauses.
    pub(crate) fn open(config: CaptureConfig) -> Result<Self, CaptureError> {
        check(&config)?;
        let state = State::open(&config.run_dir, &config.node)?;
        let pins = Pins::new(&config.bpffs, &config.node);
        pins.prepare(&config.bpffs)?;
        let root = cgroup::root()?;
        let cgroup = cgroup::open(&root)?;
        let mut loader = Loader::new(&pins);
        let mut object = loader.node()?;
        let mut node = Self {
            exemption: Exemption::new(object.map_data(map::EXEMPT)?),
            heartbeat: Heartbeat::new(object.map_data(map::HEARTBEAT)?),
            captured: CapturedMaps::take(&mut object)?,
            events: Some(object.map(map::EVENTS)?),
            maps: NodeMaps::take(&mut object)?,
            near: Near::take(&mut object, config.near)?,
            host: Host::take(&mut object, root, config.pod_cgroups.clone())?,
            splice: None,
            counters: CounterReader::new(object.map(map::STATS)?),
            programs: BTreeMap::new(),
            pods: BTreeMap::new(),
            config,
            pins,
            state,
            loader,
            cgroup,
            object: None,
        };
        node.follow_pod_cgroups()?;
        node.start(object)?;
        let pods = node.state.pods().keys().copied().collect();
        node.near.keep_ways(&pods)?;
        node.start_splicing()?;
        Ok(node)
    }

    /// Begins to splice, where it is wanted and the kernel does it right.
    fn start_splicing(&mut self) -> Result<(), CaptureError> {
        let Some(which) = self.config.splice else { return SpliceObject::remove(&self.pins) };
        match splice::self_test(&self.cgroup) {
            Ok(()) => self.open_splice(which),
            Err(error) => self.do_not_splice(&error),
        }
    }

    fn open_splice(&mut self, which: Which) -> Result<(), CaptureError> {
        match SpliceObject::open(&self.pins, &self.cgroup, which) {
            Ok(object) => {
                self.counters.splices(Some(object.stats()));
                self.splice = Some(object);
                Ok(())
            }
            Err(error) => self.do_not_splice(&error),
        }
    }

    fn do_not_splice(&mut self, error: &SpliceError) -> Result<(), CaptureError> {
        tracing::warn!(%error, "bytes are not spliced within the node");
        self.counters.splices(None);
        self.splice = None;
        SpliceObject::remove(&self.pins)
    }

    fn start(&mut self, mut object: Object) -> Result<(), CaptureError> {
        self.heartbeat.beat().map_err(BpfError::map_io(map::HEARTBEAT))?;
        self.write_config()?;
        for (name, attach_type) in PROGRAMS {
            let attached = self.attach(&mut object, name)?;
            let running = bpf::attached(&Target::File(self.cgroup.as_fd()), attach_type)?;
            if !running.contains(&attached.program_id) {
                return Err(CaptureError::NotAttached { program: name });
            }
            self.programs.insert(name, attached.program_id);
            replace_link(attached.link, &self.pins.link(name), name)?;
        }
        self.object = Some(object);
        Ok(())
    }

    fn attach(&self, object: &mut Object, name: &'static str) -> Result<Attached, BpfError> {
        match name {
            program::SETSOCKOPT => object.attach_option(name, &self.cgroup),
            program::FLOWS => object.attach_states(name, &self.cgroup),
            _ => object.attach_address(name, &self.cgroup),
        }
    }

    pub(super) fn write_config(&mut self) -> Result<(), BpfError> {
        let wanted = self.wanted_config();
        self.maps.config.set(0, Raw(wanted), 0).map_err(BpfError::map(map::CONFIG))
    }

    pub(super) fn config_differs(&self) -> Result<bool, BpfError> {
        let standing = self.maps.config.get(&0, 0).map_err(BpfError::map(map::CONFIG))?;
        Ok(standing != Raw(self.wanted_config()))
    }

    fn wanted_config(&self) -> Config {
        let wait = u64::try_from(self.config.away_wait.as_nanos()).unwrap_or(u64::MAX);
        Config::new(self.config.mark.value, self.config.mark.mask, wait)
            .with_generation(self.near.generation)
            .with_host(self.host.cookie, self.host.known_pod_cgroups())
    }

    /// Sets what is captured, by changing only what differs.
    pub(crate) fn set_captured(&mut self, set: &CaptureSet) -> Result<CaptureDiff, CaptureError> {
        Ok(self.captured.set(set)?)
    }

    pub(super) fn repair_captured(&mut self) -> Result<CaptureDiff, BpfError> {
        self.captured.repair()
    }

    /// Tells the kernel that the agent lives; usable from any thread.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// Exempts the agent's own sockets from capture; usable from any thread.
    pub(crate) fn exemption(&self) -> Exemption {
        self.exemption.clone()
    }

    /// What the kernel side tells; once, and inside a tokio runtime.
    pub(crate) fn events(&mut self) -> Result<Events, CaptureError> {
        let ring = self.events.take().ok_or(CaptureError::EventsTaken)?;
        Ok(Events::new(ring).map_err(BpfError::map_io(map::EVENTS))?)
    }

    /// The enrolled pod whose network namespace has this cookie.
    pub(crate) fn pod_of(&self, cookie: u64) -> Option<&PodUid> {
        self.pods.iter().find(|(_, pod)| pod.netns.cookie() == cookie).map(|(uid, _)| uid)
    }

    /// Reads what the kernel side counts, whenever somebody wants to know.
    pub(crate) fn counters(&self) -> CounterReader {
        self.counters.clone()
    }

    /// Names of the node's programs that are not where they should be.
    pub(super) fn detached(&self) -> Result<Vec<&'static str>, CaptureError> {
        let mut found = Vec::new();
        for (name, attach_type) in PROGRAMS {
            let running = bpf::attached(&Target::File(self.cgroup.as_fd()), attach_type)?;
            let pinned = linked_program(&self.pins.link(name), name).ok();
            let wanted = self.programs.get(name).copied();
            if pinned != wanted || wanted.is_none_or(|id| !running.contains(&id)) {
                found.push(name);
            }
        }
        for (name, attach_type) in self.splice.iter().flat_map(|_| SPLICE_PROGRAMS) {
            let running = bpf::attached(&Target::File(self.cgroup.as_fd()), attach_type)?;
            if !linked_program(&self.pins.link(name), name).is_ok_and(|id| running.contains(&id)) {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Attaches all of the node's programs anew.
    pub(super) fn reattach(&mut self) -> Result<(), CaptureError> {
        let object = self.loader.node()?;
        self.start(object)?;
        match self.config.splice {
            Some(which) if self.splice.is_some() => self.open_splice(which),
            _ => Ok(()),
        }
    }
}

impl NodeMaps {
    fn take(object: &mut Object) -> Result<Self, BpfError> {
        Ok(Self { pods: object.map(map::PODS)?, own: object.map(map::OWN)?, config: object.map(map::CONFIG)? })
    }
}

fn check(config: &CaptureConfig) -> Result<(), CaptureError> {
    let workers = u32::try_from(config.workers).unwrap_or(u32::MAX);
    if !(1..=MAX_WORKERS).contains(&workers) {
        return Err(CaptureError::Config(format!("the number of workers must be from 1 to {MAX_WORKERS}")));
    }
    let mark = config.mark;
    if mark.value == 0 || mark.value & !mark.mask != 0 {
        return Err(CaptureError::Config("the mark must not be 0 and must lie within its mask".into()));
    }
    if config.route_table == 0 || (253..=255).contains(&config.route_table) {
        return Err(CaptureError::Config("the routing table must not be one of the kernel's own".into()));
    }
    Ok(())
}
