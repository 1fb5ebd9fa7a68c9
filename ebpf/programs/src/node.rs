//! The programs of a node, loaded once.
//!
//! Those at the root of the cgroup v2 hierarchy see every socket of the node and act only on those whose network
//! namespace belongs to an enrolled pod; those on links are attached to enrolled pods' links alone.
#![no_std]
#![no_main]

mod address;
mod bind;
mod connect;
mod event;
mod flow;
mod frame;
mod host;
mod host_maps;
mod license;
mod near;
mod near_maps;
mod node_maps;
mod option;
mod shared_maps;
mod socket;
mod splice_ends;
mod stats;
mod storage;
mod wire;
