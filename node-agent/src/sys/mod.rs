//! What the daemon asks of the kernel outside eBPF: network namespaces, sockets, rules, routes, addresses.

pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod packet;
mod procfs;
pub(crate) mod sock_diag;
pub(crate) mod socket;
pub(crate) mod sysctl;
