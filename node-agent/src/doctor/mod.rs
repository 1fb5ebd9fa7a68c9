//! What keeps Warren from working on a node or in a cluster, found without changing anything, and what to do about it.

mod api;
mod cluster;
mod finding;
mod node;
mod policies;
mod rights;

pub(crate) use api::Cluster;
pub(crate) use cluster::check_cluster;
pub(crate) use finding::{Finding, Level};
pub(crate) use node::check_node;
