//! What the kernel has of what capture needs, and who else is attached where it attaches: asked without changing anything.

use std::fs::File;
use std::os::fd::AsFd;

use aya::programs::{ProgramError, ProgramType, loaded_programs};
use aya::sys::is_program_supported;

use super::bpf::{self, Target};
use super::cgroup;
use super::error::CaptureError;

/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT` of `linux/bpf.h`.
const CONNECT: [u32; 2] = [10, 11];
/// Beginning of the names of our own programs.
const OURS: &str = "warren";

/// Types of programs that the kernel has not; an error if it cannot be asked.
pub(crate) fn missing_program_types() -> Result<Vec<&'static str>, String> {
    let needed = [
        (ProgramType::CgroupSockAddr, "cgroup_sock_addr"),
        (ProgramType::CgroupSockopt, "cgroup_sockopt"),
        (ProgramType::SockOps, "sock_ops"),
        (ProgramType::SkLookup, "sk_lookup"),
        (ProgramType::SchedClassifier, "sched_cls"),
    ];
    let mut missing = Vec::new();
    for (kind, name) in needed {
        match is_program_supported(kind) {
            Ok(true) => {}
            Ok(false) => missing.push(name),
            Err(error) => return Err(format!("{name}: {}", crate::exit::chain(&error))),
        }
    }
    Ok(missing)
}

/// The root of cgroup v2, if there is one.
pub(crate) fn cgroup_root() -> Result<File, CaptureError> {
    cgroup::open(&cgroup::root()?)
}

/// Names of others' programs that see the same `connect` calls as ours.
pub(crate) fn other_connect_programs(root: &File) -> Result<Vec<String>, CaptureError> {
    let mut ids = Vec::new();
    for attach_type in CONNECT {
        ids.extend(bpf::attached(&Target::File(root.as_fd()), attach_type)?);
    }
    let named = |program: Result<aya::programs::ProgramInfo, ProgramError>| {
        let program = program.ok().filter(|program| ids.contains(&program.id()))?;
        Some(program.name_as_str().unwrap_or("(unnamed)").to_owned())
    };
    Ok(loaded_programs().filter_map(named).filter(|name| !name.starts_with(OURS)).collect())
}
