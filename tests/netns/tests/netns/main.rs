//! Warren end to end: real agents, real sockets, network namespaces as nodes and pods, a capture on the wire.
//!
//! Every test makes its own world and removes it; two worlds exist at once. Root is needed, and `ip`, `nsenter`,
//! `setpriv`, `prlimit`, `curl`, `ping`, `getent`, `nft` and `bpftool`.

#![forbid(unsafe_code)]
// Helpers of tests are tests: what goes wrong in them is a failure to be shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod absence;
mod agents;
mod cni;
mod controller;
mod dial;
mod escapes;
mod evidence;
mod fixture;
mod hostile;
mod identity;
mod inspect;
mod kubernetes;
mod leftovers;
mod mesh_node;
mod pod_events;
mod pods;
mod policy;
mod probes;
mod samenode;
mod splice;
mod traffic;
mod untouched;
mod world;
