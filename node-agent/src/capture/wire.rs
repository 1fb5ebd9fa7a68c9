//! A pod's link: found, and given the programs that lead admitted connections straight to their destination.
//!
//! It is done after the pod is in, beside everything else: attaching waits for the kernel. Until then, and where it
//! cannot be done, connections to and from the pod go through the agent.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warren_ebpf_abi::{Wire, program};

use super::bpf::{self, BpfError, Target};
use super::error::CaptureError;
use super::object::{Link as ProgramLink, Object};
use super::pins::replace_link;
use super::wire_test;
use crate::sys::netlink::{Link, RouteSocket};
use crate::sys::netns::NetNs;

/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`: what a pod sends comes in at the outer end of its link.
const INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
const EGRESS: u32 = 47;

/// Why a pod's connections cannot take the kernel path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// More than one interface: packets might leave by the other.
    #[error("the pod has {0} interfaces that are up; the kernel path needs exactly one")]
    Interfaces(usize),
    /// Not a veth.
    #[error("the pod's interface is not a veth")]
    NotVeth,
    /// The other end is elsewhere.
    #[error("the other end of the pod's veth is not in the agent's network namespace")]
    OuterMissing,
    /// The address is not the interface's.
    #[error("address {0} is not one of the pod's interface")]
    Address(IpAddr),
    /// A frame of the self-test did not go where it should.
    #[error("self-test: the pod's link {0}")]
    SelfTest(&'static str),
    /// The kernel would not attach a program.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// The programs of pods' links, loaded once.
pub(super) struct WirePrograms {
    programs: [WireProgram; 2],
    /// The map of ways, for the self-test.
    ways: OwnedFd,
}

struct WireProgram {
    name: &'static str,
    attach_type: u32,
    id: u32,
    fd: OwnedFd,
}

impl WirePrograms {
    /// Loads them.
    pub(super) fn load(object: &mut Object, ways: OwnedFd) -> Result<Self, BpfError> {
        // What drops comes before what admits.
        let mut load = |name, attach_type| -> Result<WireProgram, BpfError> {
            let (fd, id) = object.load_classifier(name)?;
            Ok(WireProgram { name, attach_type, id, fd })
        };
        Ok(Self { programs: [load(program::WIRE_TO, EGRESS)?, load(program::WIRE_FROM, INGRESS)?], ways })
    }

    /// Whether they are attached to an interface of the namespace this thread is in.
    pub(super) fn are_on(&self, outer: u32) -> Result<bool, BpfError> {
        for program in &self.programs {
            if !bpf::attached(&Target::Interface(outer), program.attach_type)?.contains(&program.id) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The task of giving one pod its wire; for any thread that is in the agent's network namespace.
pub(crate) struct WireJob {
    pub(super) netns: Arc<NetNs>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) programs: Arc<WirePrograms>,
    pub(super) directory: PathBuf,
}

/// A link with its programs attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttachedWire(pub(super) Wire);

impl WireJob {
    /// Finds the link, attaches the programs and tests them. Where that fails, none are left.
    pub(crate) fn run(&self) -> Result<AttachedWire, WireError> {
        let result = self.attach();
        if result.is_err() {
            detach(&self.directory, self.netns.cookie());
        }
        result
    }

    fn attach(&self) -> Result<AttachedWire, WireError> {
        let wire = find(&self.netns, &self.ips)?;
        let cookie = self.netns.cookie();
        for program in &self.programs.programs {
            let link = bpf::link_interface(program.fd.as_fd(), wire.outer(), program.attach_type)
                .map_err(|error| BpfError::Link { program: program.name, reason: error.to_string() })
                .map_err(CaptureError::from)?;
            replace_link(ProgramLink::Raw(link), &pin(&self.directory, cookie, program.name), program.name)?;
        }
        if !self.programs.are_on(wire.outer()).map_err(CaptureError::from)? {
            return Err(CaptureError::NotAttached { program: program::WIRE_FROM }.into());
        }
        wire_test::test(&self.netns, wire, &self.programs.ways)?;
        Ok(AttachedWire(wire))
    }
}

/// Detaches a pod's programs from its link.
pub(super) fn detach(directory: &Path, cookie: u64) {
    for name in [program::WIRE_FROM, program::WIRE_TO] {
        // What is not there, never was or went with the link.
        let _ = std::fs::remove_file(pin(directory, cookie, name));
    }
}

/// Cookies of the namespaces whose links have programs pinned in a directory.
pub(super) fn pinned(directory: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let cookie = |name: &str| name.split_once('-')?.0.parse().ok();
    entries.flatten().filter_map(|entry| cookie(entry.file_name().to_str()?)).collect()
}

fn pin(directory: &Path, cookie: u64, name: &str) -> PathBuf {
    directory.join(format!("{cookie}-{name}"))
}

/// Both ends of a pod's only link.
pub(super) fn find(netns: &NetNs, ips: &[IpAddr]) -> Result<Wire, WireError> {
    let (links, addresses) = netns.enter(|| {
        let socket = RouteSocket::open()?;
        Ok::<_, io::Error>((socket.links()?, socket.addresses()?))
    })??;
    let up: Vec<&Link> = links.iter().filter(|link| link.up && !link.loopback).collect();
    let [inner] = up[..] else { return Err(WireError::Interfaces(up.len())) };
    for ip in ips {
        if !addresses.iter().any(|address| address.ip == *ip && address.interface == inner.index) {
            return Err(WireError::Address(*ip));
        }
    }
    let (true, Some(outer)) = (inner.veth, inner.tied_to) else { return Err(WireError::NotVeth) };
    let socket = RouteSocket::open()?;
    let number = socket.number_of(netns.as_fd())?.ok_or(WireError::OuterMissing)?;
    let ours = |link: &Link| {
        link.index == outer && link.veth && link.tied_to == Some(inner.index) && link.tied_in == Some(number)
    };
    if !socket.links()?.iter().any(ours) {
        return Err(WireError::OuterMissing);
    }
    Ok(Wire::new(outer, inner.index))
}
