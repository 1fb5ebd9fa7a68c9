//! `warren.dev/v1alpha1 MeshNode`: what the agent of a node says that it can do.

use serde::Deserialize;

use super::{FieldProblem, typed};
use crate::world::manifest::Document;
use crate::world::model::Capabilities;

/// The format that is understood. Another one has another meaning, of which nothing may be guessed.
const FORMAT: u32 = 1;

#[derive(Debug, Deserialize)]
struct MeshNode {
    spec: Spec,
}

/// Fields and words that a later release adds are passed over.
#[derive(Debug, Deserialize)]
struct Spec {
    format: u32,
    #[serde(default)]
    capabilities: Vec<String>,
}

pub(super) fn read(document: &Document) -> Result<Capabilities, Vec<FieldProblem>> {
    let MeshNode { spec } = typed(&document.root)?;
    if spec.format != FORMAT {
        let reason = format!("{} is not known; known: {FORMAT}", spec.format);
        return Err(vec![FieldProblem::new("spec.format", reason)]);
    }
    Ok(Capabilities { hbone: spec.capabilities.iter().any(|word| word == Capabilities::HBONE) })
}
