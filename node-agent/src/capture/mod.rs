//! Capture: steers the TCP connections of enrolled pods into the agent, by eBPF and routing rules inside each pod's
//! network namespace.
//!
//! [`NodeCapture`] is what the rest of the daemon sees. The kernel side is in `ebpf/`, the contract with it in
//! `warren-ebpf-abi`.

mod address;
mod audit;
mod bpf;
mod captured;
mod cgroup;
mod cleanup;
mod config;
mod counters;
mod enrol;
mod error;
mod events;
pub(crate) mod features;
mod gate;
mod handles;
mod host;
mod listeners;
mod near;
mod node;
mod object;
mod pins;
mod plumbing;
mod pod;
mod pod_cgroups;
mod self_test;
mod splice;
mod state;
#[cfg(test)]
mod tests;
mod wire;
mod wire_test;

pub(crate) use cleanup::{CleanupConfig, CleanupReport, cleanup};
pub(crate) use config::{CaptureConfig, Mark};
pub(crate) use counters::{CounterReader, Counters};
pub(crate) use enrol::{EnrolledPod, PodSpec};
pub(crate) use error::CaptureError;
pub(crate) use events::{Events, KernelEvent};
pub(crate) use handles::{Exemption, Heartbeat};
pub(crate) use listeners::WorkerListeners;
pub(crate) use near::{NearEnd, NearPair};
pub(crate) use node::NodeCapture;
pub(crate) use splice::Which as Spliced;
pub(crate) use state::must_be_free;
pub(crate) use wire::{AttachedWire, WireError, WireJob};
