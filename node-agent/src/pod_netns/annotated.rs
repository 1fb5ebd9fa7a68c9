//! Namespaces of worlds from files: the path stands in the world itself.

use std::path::Path;
use std::sync::Arc;

use warren_core::world::Pod;

use super::{Netns, PodNetns};

/// Takes the word of the manifests, which only an operator writes.
#[derive(Debug)]
pub(crate) struct AnnotatedNetns;

impl PodNetns for AnnotatedNetns {
    fn find(&mut self, pods: &[Arc<Pod>]) -> Vec<Netns> {
        pods.iter().map(|pod| pod.netns.clone().map_or(Netns::NotOurs, Netns::At)).collect()
    }

    fn is_still_at(&self, pod: &Pod, path: &Path) -> bool {
        pod.netns.as_deref() == Some(path)
    }
}
