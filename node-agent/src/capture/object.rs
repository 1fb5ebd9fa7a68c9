//! The compiled programs and how they are loaded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, CgroupSockopt, Program, SchedClassifier, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use warren_ebpf_abi::map;

use super::bpf::{self, BpfError};
use super::pins::Pins;

/// `BPF_CGROUP_SETSOCKOPT` of `enum bpf_attach_type`.
pub(super) const ATTACHED_SETSOCKOPT: u32 = 22;

static NODE: &[u8] = aya::include_bytes_aligned!(env!("WARREN_EBPF_NODE"));
static POD: &[u8] = aya::include_bytes_aligned!(env!("WARREN_EBPF_POD"));

const NODE_MAPS: [&str; 13] = [
    map::PODS,
    map::CAPTURE4,
    map::CAPTURE6,
    map::CAPTURE_EXACT,
    map::EXEMPT,
    map::CAPTURED,
    map::NEAR_SOURCES,
    map::NEAR_DESTINATIONS,
    map::ADMISSIONS,
    map::POD_ADDRESSES,
    map::POD_CGROUPS,
    map::HOST_SOCKETS,
    map::SPLICE_ENDS,
];
const POD_MAPS: [&str; 4] = [map::LISTENERS, map::LISTENER_PORTS, map::VERDICTS, map::POD_CONFIG];

/// Loads objects, whose maps are taken from pins or pinned.
pub(super) struct Loader {
    loader: EbpfLoader<'static>,
}

impl Loader {
    /// One for the life of the agent: making one reads the kernel's type information.
    pub(super) fn new(pins: &Pins) -> Self {
        let mut loader = EbpfLoader::new();
        for name in NODE_MAPS.into_iter().chain(map::SHARED) {
            loader.map_pin_path(name, pins.map(name));
        }
        Self { loader }
    }

    /// Loads the node's programs.
    pub(super) fn node(&mut self) -> Result<Object, BpfError> {
        self.load("node", NODE)
    }

    /// Loads the programs of a pod, whose maps are in `directory`.
    pub(super) fn pod(&mut self, directory: &Path) -> Result<Object, BpfError> {
        for name in POD_MAPS {
            let path: PathBuf = directory.join(name);
            self.loader.map_pin_path(name, path);
        }
        self.load("pod", POD)
    }

    fn load(&mut self, object: &'static str, bytes: &[u8]) -> Result<Object, BpfError> {
        let loaded = self.loader.load(bytes);
        loaded.map(Object).map_err(|source| BpfError::Load { object, source: Box::new(source) })
    }
}

/// A loaded object: its maps exist, its programs are yet to be checked by the kernel. The programs know the maps by
/// descriptor number, so a map that is taken out has to stay open until they are attached.
pub(super) struct Object(Ebpf);

impl From<Ebpf> for Object {
    fn from(ebpf: Ebpf) -> Self {
        Self(ebpf)
    }
}

impl Object {
    /// Takes a map out.
    pub(super) fn map<T: TryFrom<Map>>(&mut self, name: &'static str) -> Result<T, BpfError> {
        let map = self.0.take_map(name).ok_or(BpfError::Missing(name))?;
        T::try_from(map).map_err(|_| BpfError::Missing(name))
    }

    /// A handle of a map that stays in.
    pub(super) fn share<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<HashMap<MapData, K, V>, BpfError> {
        let Some(Map::HashMap(data)) = self.0.map(name) else { return Err(BpfError::Missing(name)) };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(BpfError::map_io(name))?;
        let own = MapData::from_fd(fd).map_err(BpfError::map(name))?;
        HashMap::try_from(Map::HashMap(own)).map_err(BpfError::map(name))
    }

    /// Takes a map out as it is.
    pub(super) fn map_data(&mut self, name: &'static str) -> Result<MapData, BpfError> {
        match self.0.take_map(name) {
            Some(Map::SockMap(data) | Map::SkStorage(data) | Map::Array(data)) => Ok(data),
            _ => Err(BpfError::Missing(name)),
        }
    }

    /// Attaches an address hook to a cgroup; returns the link and the program's id.
    pub(super) fn attach_address(&mut self, name: &'static str, cgroup: impl AsFd) -> Result<Attached, BpfError> {
        let program: &mut CgroupSockAddr = self.program(name)?;
        program.load().map_err(BpfError::program(name))?;
        let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(BpfError::program(name))?;
        let link = program.take_link(id).map_err(BpfError::program(name))?;
        let program_id = program.info().map_err(BpfError::program(name))?.id();
        Attached::new(name, link.try_into(), program_id)
    }

    /// Attaches an option hook to a cgroup.
    pub(super) fn attach_option(&mut self, name: &'static str, cgroup: impl AsFd) -> Result<Attached, BpfError> {
        let program: &mut CgroupSockopt = self.program(name)?;
        program.load().map_err(BpfError::program(name))?;
        let program_id = program.info().map_err(BpfError::program(name))?.id();
        let fd = program.fd().map_err(BpfError::program(name))?;
        let link = bpf::link(fd.as_fd(), cgroup.as_fd(), ATTACHED_SETSOCKOPT)
            .map_err(|error| BpfError::Link { program: name, reason: error.to_string() })?;
        Ok(Attached { name, link: Link::Raw(link), program_id })
    }

    /// Attaches the TCP state hook to a cgroup.
    pub(super) fn attach_states(&mut self, name: &'static str, cgroup: impl AsFd) -> Result<Attached, BpfError> {
        let program: &mut SockOps = self.program(name)?;
        program.load().map_err(BpfError::program(name))?;
        let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(BpfError::program(name))?;
        let link = program.take_link(id).map_err(BpfError::program(name))?;
        let program_id = program.info().map_err(BpfError::program(name))?.id();
        Attached::new(name, link.try_into(), program_id)
    }

    /// Attaches the socket look-up to a network namespace.
    pub(super) fn attach_lookup(&mut self, name: &'static str, netns: impl AsFd) -> Result<Attached, BpfError> {
        let program: &mut SkLookup = self.program(name)?;
        program.load().map_err(BpfError::program(name))?;
        let id = program.attach(netns).map_err(BpfError::program(name))?;
        let link = program.take_link(id).map_err(BpfError::program(name))?;
        let program_id = program.info().map_err(BpfError::program(name))?.id();
        Attached::new(name, Ok::<FdLink, std::convert::Infallible>(link.into()), program_id)
    }

    /// Loads a classifier, which is put in its place inside a namespace; returns the program and its id.
    pub(super) fn load_gate(&mut self, name: &'static str) -> Result<(BorrowedFd<'_>, u32), BpfError> {
        let program: &mut SchedClassifier = self.program(name)?;
        program.load().map_err(BpfError::program(name))?;
        let program_id = program.info().map_err(BpfError::program(name))?.id();
        Ok((program.fd().map_err(BpfError::program(name))?.as_fd(), program_id))
    }

    /// Loads a classifier that is attached by descriptor; gives that and the program's id.
    pub(super) fn load_classifier(&mut self, name: &'static str) -> Result<(OwnedFd, u32), BpfError> {
        let program: &mut SchedClassifier = self.program(name)?;
        program.load().map_err(BpfError::program(name))?;
        let id = program.info().map_err(BpfError::program(name))?.id();
        let fd = program.fd().map_err(BpfError::program(name))?.as_fd().try_clone_to_owned();
        fd.map(|fd| (fd, id)).map_err(|error| BpfError::Link { program: name, reason: error.to_string() })
    }

    fn program<'a, T>(&'a mut self, name: &'static str) -> Result<&'a mut T, BpfError>
    where
        &'a mut T: TryFrom<&'a mut Program>,
    {
        let program = self.0.program_mut(name).ok_or(BpfError::Missing(name))?;
        <&mut T>::try_from(program).map_err(|_| BpfError::Missing(name))
    }
}

/// A program that was just attached.
pub(super) struct Attached {
    /// Its name.
    pub(super) name: &'static str,
    /// Its link: dropping it without a pin detaches the program.
    pub(super) link: Link,
    /// The kernel's number for it.
    pub(super) program_id: u32,
}

impl Attached {
    fn new<E: std::fmt::Display>(
        name: &'static str,
        link: Result<FdLink, E>,
        program_id: u32,
    ) -> Result<Self, BpfError> {
        let link = link.map_err(|error| BpfError::Link { program: name, reason: error.to_string() })?;
        Ok(Self { name, link: Link::Aya(link), program_id })
    }
}

/// A link that is not pinned yet.
pub(super) enum Link {
    /// Made by aya.
    Aya(FdLink),
    /// Made by ourselves.
    Raw(OwnedFd),
}

impl Link {
    /// Pins it; the pin alone holds it from then on.
    pub(super) fn pin(self, path: &Path) -> Result<(), String> {
        match self {
            Self::Aya(link) => link.pin(path).map(drop).map_err(|error| error.to_string()),
            Self::Raw(link) => bpf::pin(link.as_fd(), path).map_err(|error| error.to_string()),
        }
    }
}
