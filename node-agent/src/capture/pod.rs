//! One pod's programs and maps in the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;

use aya::maps::{Array, HashMap, MapData};
use warren_core::policy::{InboundPlan, PlainVerdict};
use warren_ebpf_abi::{Family, ListenerKind, PodConfig, PortVerdict, PortVerdicts, listener_slot, map, program};

use super::bpf::{self, BpfError, Raw, Target};
use super::error::CaptureError;
use super::gate;
use super::listeners::{Placed, WorkerListeners};
use super::object::{Attached, Loader, Object};
use super::pins::{Pins, linked_program, make_dir, replace_link};
use crate::sys::netns::NetNs;

/// `BPF_SK_LOOKUP` of `enum bpf_attach_type`.
const ATTACHED_LOOKUP: u32 = 36;

/// The programs and maps of one pod.
pub(super) struct PodObject {
    cookie: u64,
    directory: PathBuf,
    object: Object,
    sockmap: MapData,
    ports: HashMap<MapData, u16, u32>,
    verdicts: Array<MapData, Raw<PortVerdicts>>,
    config: Array<MapData, Raw<PodConfig>>,
    workers: u32,
    /// Cookies of the listeners, by slot.
    listeners: BTreeMap<u32, u64>,
    /// Ids of the programs that were attached, by name.
    programs: BTreeMap<&'static str, u32>,
    plan: InboundPlan,
}

/// Plaintext goes to the application: the verdict before a pod is in, and after it left.
pub(super) fn pass_all() -> InboundPlan {
    InboundPlan { default: PlainVerdict::Pass, ports: BTreeMap::new(), probed: Arc::default() }
}

impl PodObject {
    /// Loads the programs; maps that an earlier agent pinned for the same namespace are taken over.
    pub(super) fn load(loader: &mut Loader, pins: &Pins, cookie: u64, workers: u32) -> Result<Self, CaptureError> {
        let directory = pins.pod(cookie);
        make_dir(&directory)?;
        let mut object = loader.pod(&directory)?;
        Ok(Self {
            cookie,
            sockmap: object.map_data(map::LISTENERS)?,
            ports: object.map(map::LISTENER_PORTS)?,
            verdicts: object.map(map::VERDICTS)?,
            config: object.map(map::POD_CONFIG)?,
            object,
            directory,
            workers,
            listeners: BTreeMap::new(),
            programs: BTreeMap::new(),
            plan: pass_all(),
        })
    }

    /// Hands the listeners to the kernel; programs of an earlier agent use them from then on.
    pub(super) fn fill(&mut self, workers: &[WorkerListeners], placed: Vec<Placed>) -> Result<(), BpfError> {
        for (worker, listeners) in (0..).zip(workers) {
            for (slot, listener) in listeners.iter(worker) {
                self.place(slot, listener).map_err(BpfError::map_io(map::LISTENERS))?;
            }
        }
        let stale: Vec<u16> = self.ports.keys().flatten().collect();
        for port in stale {
            if placed.iter().all(|listener| listener.port != port) {
                self.ports.remove(&port).map_err(BpfError::map(map::LISTENER_PORTS))?;
            }
        }
        for listener in placed {
            self.ports.insert(listener.port, listener.slot, 0).map_err(BpfError::map(map::LISTENER_PORTS))?;
            self.listeners.insert(listener.slot, listener.cookie);
        }
        Ok(())
    }

    /// Puts the listener of a self-test in its place.
    pub(super) fn place_self_test(&self, family: Family, listener: &TcpListener) -> io::Result<()> {
        self.place(listener_slot(ListenerKind::SelfTest, family, 0), listener)
    }

    fn place(&self, slot: u32, listener: &TcpListener) -> io::Result<()> {
        bpf::update(self.sockmap.fd().as_fd(), &slot, &u64::from(listener.as_raw_fd().cast_unsigned()))
    }

    /// Sets the verdicts on plaintext from outside. Every moment of the change has, for each port, the old or the new.
    pub(super) fn set_plan(&mut self, plan: &InboundPlan) -> Result<(), BpfError> {
        self.verdicts.set(0, Raw(verdicts_of(plan)), 0).map_err(BpfError::map(map::VERDICTS))?;
        self.config.set(0, Raw(self.wanted_config()), 0).map_err(BpfError::map(map::POD_CONFIG))?;
        self.plan = plan.clone();
        Ok(())
    }

    fn wanted_config(&self) -> PodConfig {
        PodConfig::new(self.cookie, self.workers)
    }

    /// Loads the programs anew, on the same maps, and attaches them.
    pub(super) fn reload(
        &mut self,
        loader: &mut Loader,
        pins: &Pins,
        cookie: u64,
        netns: &NetNs,
    ) -> Result<(), CaptureError> {
        self.object = loader.pod(&pins.pod(cookie))?;
        self.attach(netns)
    }

    /// Attaches the programs, in the place of those of an earlier agent.
    pub(super) fn attach(&mut self, netns: &NetNs) -> Result<(), CaptureError> {
        let wrap = |error: io::Error| BpfError::Link { program: program::GATE, reason: error.to_string() };
        let (gate, id) = self.object.load_gate(program::GATE)?;
        netns.enter(|| gate::attach(gate)).and_then(|result| result).map_err(wrap)?;
        self.programs.insert(program::GATE, id);
        let lookup = self.object.attach_lookup(program::LOOKUP, netns)?;
        self.keep(lookup)?;
        match self.detached(netns)?.first() {
            Some(program) => Err(CaptureError::NotAttached { program }),
            None => Ok(()),
        }
    }

    fn keep(&mut self, attached: Attached) -> Result<(), CaptureError> {
        self.programs.insert(attached.name, attached.program_id);
        replace_link(attached.link, &self.directory.join(attached.name), attached.name)
    }

    /// Names of programs that are not where they should be.
    pub(super) fn detached(&self, netns: &NetNs) -> Result<Vec<&'static str>, CaptureError> {
        let lookups = bpf::attached(&Target::File(netns.as_fd()), ATTACHED_LOOKUP)?;
        let pinned = linked_program(&self.directory.join(program::LOOKUP), program::LOOKUP).ok();
        let gates = netns.enter(gate::standing).and_then(|result| result).map_err(BpfError::Query)?;
        let runs = |name: &str, running: &[u32]| self.programs.get(name).is_some_and(|id| running.contains(id));
        let lookup_runs = runs(program::LOOKUP, &lookups) && pinned.as_ref() == self.programs.get(program::LOOKUP);
        let places = [(program::LOOKUP, lookup_runs), (program::GATE, runs(program::GATE, &gates))];
        Ok(places.into_iter().filter(|(_, runs)| !runs).map(|(name, _)| name).collect())
    }

    /// Slots whose listener is not the one that was handed out.
    pub(super) fn lost_listeners(&self) -> Result<Vec<u32>, BpfError> {
        let mut lost = Vec::new();
        for (slot, cookie) in &self.listeners {
            let standing = bpf::lookup_u64(self.sockmap.fd().as_fd(), slot);
            if standing.map_err(BpfError::map_io(map::LISTENERS))? != Some(*cookie) {
                lost.push(*slot);
            }
        }
        Ok(lost)
    }

    /// Whether the verdicts in the kernel are those that were set.
    pub(super) fn plan_differs(&self) -> Result<bool, BpfError> {
        let config = self.config.get(&0, 0).map_err(BpfError::map(map::POD_CONFIG))?;
        let verdicts = self.verdicts.get(&0, 0).map_err(BpfError::map(map::VERDICTS))?;
        Ok(config != Raw(self.wanted_config()) || verdicts != Raw(verdicts_of(&self.plan)))
    }

    /// The verdicts that were set last.
    pub(super) fn plan(&self) -> &InboundPlan {
        &self.plan
    }
}

fn verdicts_of(plan: &InboundPlan) -> PortVerdicts {
    let mut verdicts = PortVerdicts::all(verdict_of(plan.default));
    for (port, verdict) in &plan.ports {
        verdicts.set(*port, verdict_of(*verdict));
    }
    for port in plan.probed.iter() {
        verdicts.let_probes_in(*port);
    }
    verdicts
}

fn verdict_of(verdict: PlainVerdict) -> PortVerdict {
    match verdict {
        PlainVerdict::Pass => PortVerdict::Pass,
        PlainVerdict::Agent => PortVerdict::Agent,
        PlainVerdict::Refuse => PortVerdict::Refuse,
    }
}
