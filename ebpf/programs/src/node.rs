//! The programs of a node: attached once, at the root of the cgroup v2 hierarchy.
//!
//! They see every socket of the node and act only on those whose network namespace belongs to an enrolled pod.
#![no_std]
#![no_main]

mod address;
mod bind;
mod connect;
mod event;
mod flow;
mod license;
mod node_maps;
mod option;
mod shared_maps;
mod socket;
mod stats;
mod storage;
