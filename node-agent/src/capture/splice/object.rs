//! The programs that splice: loaded, attached, and pinned.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray, SockHash};
use aya::programs::{SkMsg, SkSkb};
use aya::{Ebpf, EbpfLoader};
use warren_ebpf_abi::{map, program};

use super::SpliceError;
use super::layout;
use super::ways::{Ends, Ways};
use crate::capture::bpf::{self, BpfError, Raw};
use crate::capture::error::CaptureError;
use crate::capture::object::{Attached, Link, Object};
use crate::capture::pins::{Pins, remove_file, replace_link};

static SPLICE: &[u8] = aya::include_bytes_aligned!(env!("WARREN_EBPF_SPLICE"));

/// The maps of the object.
const MAPS: [&str; 6] =
    [map::WAYS, map::SPLICE_ENDS, map::SPLICE_SOCKETS, map::SPLICE_PAIRS, map::SPLICE_LISTENERS, map::SPLICE_STATS];
/// The programs of the object. What lets connections in comes last.
const PROGRAMS: [&str; 4] = [program::SPLICE_SEND, program::SPLICE_KEEP, program::SPLICE_OPTION, program::SPLICE_TAKE];
/// `BPF_SK_SKB_STREAM_VERDICT` and `BPF_SK_MSG_VERDICT` of `enum bpf_attach_type`.
const STREAM_VERDICT: u32 = 5;
const MESSAGE_VERDICT: u32 = 7;

/// Which admitted connections are spliced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those whose sockets do not wait in calls.
    NonBlocking,
    /// All: a call that waits may come back with EAGAIN.
    All,
}

/// The programs in their place.
pub(crate) struct SpliceObject {
    ways: Ways,
    ends: Ends,
    stats: Arc<PerCpuArray<MapData, u64>>,
    /// What is not pinned.
    _links: Vec<Link>,
    /// The programs know the maps by descriptor number.
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not used"))]
    object: Object,
}

impl SpliceObject {
    /// Loads and attaches the programs, for the connections that the node's programs admit. They stay when this is
    /// dropped; what an earlier agent left is taken over.
    pub(crate) fn open(pins: &Pins, cgroup: &File, which: Which) -> Result<Self, SpliceError> {
        Self::load(Some(pins), cgroup, which)
    }

    /// The same with maps of its own, until it is dropped.
    pub(super) fn scratch(cgroup: &File) -> Result<Self, SpliceError> {
        Self::load(None, cgroup, Which::All)
    }

    /// Takes what [`SpliceObject::open`] pinned away. Sockets that are spliced already keep their programs.
    pub(crate) fn remove(pins: &Pins) -> Result<(), CaptureError> {
        PROGRAMS.into_iter().rev().try_for_each(|name| remove_file(&pins.link(name)))
    }

    /// Where bytes that went from socket to socket, and messages that were given to TCP, are counted.
    pub(crate) fn stats(&self) -> Arc<PerCpuArray<MapData, u64>> {
        self.stats.clone()
    }

    /// Admission by hand, and what is counted.
    pub(super) fn maps(&mut self) -> (&mut Ways, &mut Ends) {
        (&mut self.ways, &mut self.ends)
    }

    /// Further handles of the same.
    #[cfg(test)]
    pub(crate) fn handles(&self) -> Result<(Ways, Ends), BpfError> {
        Ok((Ways::new(self.object.share(map::WAYS)?), Ends::new(self.object.share(map::SPLICE_ENDS)?)))
    }

    fn load(pins: Option<&Pins>, cgroup: &File, which: Which) -> Result<Self, SpliceError> {
        let layout = Raw(layout::find()?);
        let mut loader = EbpfLoader::new();
        let blocking = u32::from(which == Which::All);
        loader.override_global("SPLICE_LAYOUT", &layout, true).override_global("SPLICE_BLOCKING", &blocking, true);
        for (name, pins) in MAPS.into_iter().zip(std::iter::repeat(pins)).filter_map(|(name, pins)| Some((name, pins?)))
        {
            loader.map_pin_path(name, pins.map(name));
        }
        let load = |source: aya::EbpfError| BpfError::Load { object: "splice", source: Box::new(source) };
        let mut ebpf = loader.load(SPLICE).map_err(load)?;
        let sockets = sockets(&ebpf)?;
        let send: &mut SkMsg = find(&mut ebpf, program::SPLICE_SEND)?;
        send.load().map_err(BpfError::program(program::SPLICE_SEND))?;
        let keep: &mut SkSkb = find(&mut ebpf, program::SPLICE_KEEP)?;
        keep.load().map_err(BpfError::program(program::SPLICE_KEEP))?;
        let mut place = Place { pins, links: Vec::new() };
        for (name, kind) in [(program::SPLICE_SEND, MESSAGE_VERDICT), (program::SPLICE_KEEP, STREAM_VERDICT)] {
            let program = ebpf.program(name).ok_or(BpfError::Missing(name))?;
            let fd = program.fd().map_err(BpfError::program(name))?;
            place.give(fd.as_fd(), sockets.as_fd(), kind, name)?;
        }
        let mut object = Object::from(ebpf);
        let (ways, ends) = (Ways::new(object.share(map::WAYS)?), Ends::new(object.share(map::SPLICE_ENDS)?));
        place.keep(object.attach_option(program::SPLICE_OPTION, cgroup)?)?;
        place.keep(object.attach_states(program::SPLICE_TAKE, cgroup)?)?;
        let stats = Arc::new(object.map(map::SPLICE_STATS)?);
        Ok(Self { ways, ends, stats, _links: place.links, object })
    }
}

/// Where links are kept: pinned, or here.
struct Place<'a> {
    pins: Option<&'a Pins>,
    links: Vec<Link>,
}

impl Place<'_> {
    fn keep(&mut self, attached: Attached) -> Result<(), SpliceError> {
        match self.pins {
            Some(pins) => replace_link(attached.link, &pins.link(attached.name), attached.name)?,
            None => self.links.push(attached.link),
        }
        Ok(())
    }

    /// Gives the map of sockets a program: sockets that join it later get that. The map takes one link of a kind; one
    /// that an earlier agent made is given the new program.
    fn give(
        &mut self,
        program: BorrowedFd<'_>,
        map: BorrowedFd<'_>,
        kind: u32,
        name: &'static str,
    ) -> Result<(), SpliceError> {
        let failed = |error: io::Error| BpfError::Link { program: name, reason: error.to_string() };
        match self.pins.map(|pins| pins.link(name)) {
            Some(path) if path.exists() => {
                let link = bpf::open(&path).map_err(failed)?;
                bpf::update_link(link.as_fd(), program).map_err(failed)?;
            }
            Some(path) => {
                let link = bpf::link(program, map, kind).map_err(failed)?;
                bpf::pin(link.as_fd(), &path).map_err(failed)?;
            }
            None => self.links.push(Link::Raw(bpf::link(program, map, kind).map_err(failed)?)),
        }
        Ok(())
    }
}

fn find<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, BpfError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program>,
{
    let program = ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
    <&mut T>::try_from(program).map_err(|_| BpfError::Missing(name))
}

fn sockets(ebpf: &Ebpf) -> Result<OwnedFd, BpfError> {
    let found = ebpf.map(map::SPLICE_SOCKETS).ok_or(BpfError::Missing(map::SPLICE_SOCKETS))?;
    let sockets: SockHash<&MapData, u64> = found.try_into().map_err(|_| BpfError::Missing(map::SPLICE_SOCKETS))?;
    sockets.fd().as_fd().try_clone_to_owned().map_err(BpfError::map_io(map::SPLICE_SOCKETS))
}
