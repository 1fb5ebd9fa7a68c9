//! Where the network namespaces of local pods are: the seam between a world, which knows pods, and the keeper, which
//! enrols namespaces.

mod annotated;
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use warren_core::world::Pod;

pub(crate) use annotated::AnnotatedNetns;
pub(crate) use process::ProcessNetns;

/// What is known of a pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Netns {
    /// It can be opened here.
    At(PathBuf),
    /// Nobody wants this agent to look after it.
    NotOurs,
    /// It is to be enrolled, and where it is cannot be told yet.
    Unknown(String),
}

/// Finds the network namespaces of pods.
pub(crate) trait PodNetns {
    /// The namespaces of these pods, in their order. Called for every change of the world, so that what is known
    /// already must cost little.
    fn find(&mut self, pods: &[Arc<Pod>]) -> Vec<Netns>;

    /// Whether a pod that left the mesh is said to be still where it was enrolled.
    fn is_still_at(&self, pod: &Pod, path: &Path) -> bool;
}
