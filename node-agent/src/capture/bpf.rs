//! The few things of `bpf(2)` that aya does not offer, and the one error type of everything eBPF.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use aya::Pod;
use warren_ebpf_abi::Plain;

/// A value of the contract, in the form that aya's maps take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: `Plain` promises that every bit pattern is valid and that there is no padding; the wrapper is transparent.
unsafe impl<T: Plain> Pod for Raw<T> {}

/// Why an eBPF operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    /// An object could not be loaded.
    #[error("cannot load the {object} programs: {source}")]
    Load {
        /// Which object.
        object: &'static str,
        /// What aya said.
        source: Box<aya::EbpfError>,
    },
    /// A program was refused.
    #[error("{program}: {source}")]
    Program {
        /// Which program.
        program: &'static str,
        /// What aya said.
        source: Box<aya::programs::ProgramError>,
    },
    /// An object lacks something it should have.
    #[error("the object holds no {0} of the expected type")]
    Missing(&'static str),
    /// A link could not be pinned or read.
    #[error("link of {program}: {reason}")]
    Link {
        /// Which program.
        program: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A map refused an operation.
    #[error("map {map}: {source}")]
    Map {
        /// Which map.
        map: &'static str,
        /// What aya said.
        source: Box<aya::maps::MapError>,
    },
    /// A map refused an operation that aya does not offer.
    #[error("map {map}: {source}")]
    MapIo {
        /// Which map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel would not say what is attached.
    #[error("cannot list attached programs: {0}")]
    Query(io::Error),
}

impl BpfError {
    pub(super) fn map(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source: Box::new(source) }
    }

    pub(super) fn map_io(map: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::MapIo { map, source }
    }

    pub(super) fn program(program: &'static str) -> impl FnOnce(aya::programs::ProgramError) -> Self {
        move |source| Self::Program { program, source: Box::new(source) }
    }
}

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// The part of `union bpf_attr` for pinning.
#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for links.
#[repr(C)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for changing a link.
#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part of `union bpf_attr` for single map elements.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for queries.
#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Sets an element.
pub(super) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key).addr() as u64,
        value: std::ptr::from_ref(value).addr() as u64,
        flags: 0,
    };
    // SAFETY: `attr` is what the command takes; key and value are as long as the map's, which the callers' types say.
    unsafe { call(MAP_UPDATE_ELEM, &attr) }
}

/// Removes an element, if it is there.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key).addr() as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: `attr` is what the command takes; the key is as long as the map's, which the callers' types say.
    match unsafe { call(MAP_DELETE_ELEM, &attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Reads an element of a map with 8-byte values; `None` if there is none.
pub(super) fn lookup_u64<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<u64>> {
    let mut value = 0_u64;
    let attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key).addr() as u64,
        value: (&raw mut value).addr() as u64,
        flags: 0,
    };
    // SAFETY: as above; the kernel writes 8 bytes to `value`, which outlives the call.
    match unsafe { call(MAP_LOOKUP_ELEM, &attr) } {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where programs are attached.
pub(super) enum Target<'a> {
    /// A cgroup or a network namespace.
    File(BorrowedFd<'a>),
    /// An interface of the namespace this thread is in.
    Interface(u32),
}

/// Ids of the programs attached to a target in one way (`enum bpf_attach_type`).
pub(super) fn attached(target: &Target<'_>, attach_type: u32) -> Result<Vec<u32>, BpfError> {
    let mut ids = [0_u32; 64];
    let target = match target {
        Target::File(file) => file.as_raw_fd().cast_unsigned(),
        Target::Interface(index) => *index,
    };
    let mut attr = QueryAttr {
        target,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        program_ids: ids.as_mut_ptr().addr() as u64,
        count: ids.len() as u32,
        padding: 0,
        program_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: the kernel writes `count` numbers to `ids` and the answer into `attr`; both outlive the call.
    unsafe { syscall(PROG_QUERY, &raw mut attr) }.map_err(BpfError::Query)?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}

/// Links a program to a cgroup or network namespace. aya gives no link of a `setsockopt` hook away.
pub(super) fn link(program: BorrowedFd<'_>, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    create_link(program, target.as_raw_fd().cast_unsigned(), attach_type)
}

/// Links a classifier to an interface of the namespace this thread is in, behind those that are there.
pub(super) fn link_interface(program: BorrowedFd<'_>, interface: u32, attach_type: u32) -> io::Result<OwnedFd> {
    create_link(program, interface, attach_type)
}

fn create_link(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let attr = LinkAttr { program: program.as_raw_fd().cast_unsigned(), target, attach_type, flags: 0 };
    // SAFETY: `attr` is what the command takes.
    let fd = unsafe { syscall(LINK_CREATE, std::ptr::from_ref(&attr).cast_mut()) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a link another program.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdateAttr {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: `attr` is what the command takes.
    unsafe { call(LINK_UPDATE, &attr) }
}

/// Opens a pinned object.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let attr = PinAttr { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 };
    // SAFETY: `attr` is what the command takes, and `path` ends with a zero and outlives the call.
    let fd = unsafe { syscall(OBJ_GET, std::ptr::from_ref(&attr).cast_mut()) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let attr = PinAttr { path: path.as_ptr().addr() as u64, fd: object.as_raw_fd().cast_unsigned(), flags: 0 };
    // SAFETY: `attr` is what the command takes, and `path` ends with a zero and outlives the call.
    unsafe { call(OBJ_PIN, &attr) }
}

unsafe fn call<T>(command: libc::c_long, attr: &T) -> io::Result<()> {
    // SAFETY: the caller has made sure that `attr` fits the command, which only reads it.
    unsafe { syscall(command, std::ptr::from_ref(attr).cast_mut()) }.map(drop)
}

unsafe fn syscall<T>(command: libc::c_long, attr: *mut T) -> io::Result<RawFd> {
    // SAFETY: the caller has made sure that `attr` fits the command.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}
