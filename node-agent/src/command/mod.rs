//! The operator's commands that talk to an agent or to files, one module each.

pub(crate) mod ca;
mod ca_cluster;
pub(crate) mod certs;
pub(crate) mod cleanup;
pub(crate) mod cni;
pub(crate) mod connections;
pub(crate) mod crds;
pub(crate) mod doctor;
pub(crate) mod mount_bpffs;
pub(crate) mod status;
pub(crate) mod uninstall;
