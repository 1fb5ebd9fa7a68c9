//! Worlds from manifests, end to end through this crate.

mod crds;
mod documents;
mod kubernetes;
mod last_good;
mod seeds;
mod store;

use super::{Loaded, MeshConfig, Pod, Rejection, SourceText, World, load};

pub(crate) fn mesh() -> MeshConfig {
    MeshConfig::new("prod.example.com".parse().unwrap())
}

/// One file named `mesh.yaml`.
pub(crate) fn source(text: &str) -> SourceText {
    SourceText { file: "mesh.yaml".to_owned(), text: text.to_owned() }
}

pub(crate) fn loaded(text: &str) -> Loaded {
    load(&[source(text)], &mesh(), None, 1)
}

/// A world of which nothing was refused.
pub(crate) fn world(text: &str) -> World {
    let Loaded { world, rejections } = loaded(text);
    assert_eq!(texts(&rejections), Vec::<String>::new());
    world
}

/// The next version of a world.
fn reloaded(previous: &World, text: &str) -> Loaded {
    load(&[source(text)], &mesh(), Some(previous), previous.generation + 1)
}

fn texts(rejections: &[Rejection]) -> Vec<String> {
    rejections.iter().map(ToString::to_string).collect()
}

pub(crate) fn pod<'a>(world: &'a World, namespace: &str, name: &str) -> &'a Pod {
    let mut pods = world.pods.values();
    pods.find(|pod| pod.namespace == namespace && pod.name == name).unwrap()
}
