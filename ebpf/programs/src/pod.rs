//! The programs of one pod: loaded anew for each, so that enrolling a pod touches no other.
#![no_std]
#![no_main]

mod address;
mod claim;
mod event;
mod gate;
mod host_maps;
mod license;
mod lookup;
mod near_maps;
mod pod_maps;
mod probe;
mod shared_maps;
mod sockmap;
mod stats;
