//! The part that all objects share.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::FieldProblem;
use crate::world::model::MeshMode;

/// Warren's own label for the mode of a pod or a namespace.
const MODE_LABEL: &str = "warren.dev/mode";
/// Istio's label for the same.
const ISTIO_MODE_LABEL: &str = "istio.io/dataplane-mode";

/// `metadata`, as far as Warren reads it. Kind and name are read before.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) uid: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owner_references: Vec<OwnerReference>,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
}

/// One entry of `ownerReferences`.
#[derive(Debug, Deserialize)]
pub(super) struct OwnerReference {
    pub(super) kind: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) controller: bool,
}

impl Metadata {
    /// What the labels say about the mode. Ours counts more than Istio's, and
    /// a misspelt value of ours is a fault: it would mean plaintext. Istio's
    /// label has values of other data planes, which say nothing to us.
    pub(super) fn mode(&self) -> Result<Option<MeshMode>, FieldProblem> {
        let read = |label| match self.labels.get(label).map(String::as_str) {
            Some("ambient") => Ok(Some(MeshMode::Ambient)),
            Some("none") => Ok(Some(MeshMode::None)),
            Some(other) => Err(other),
            None => Ok(None),
        };
        match read(MODE_LABEL) {
            Ok(Some(mode)) => Ok(Some(mode)),
            Ok(None) => Ok(read(ISTIO_MODE_LABEL).unwrap_or(None)),
            Err(other) => Err(FieldProblem::new(
                format!("metadata.labels.{MODE_LABEL}"),
                format!("{other:?} is neither ambient nor none"),
            )),
        }
    }
}
