//! The part that all objects share.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::FieldProblem;
use crate::enrolment::mode::{MODE_LABEL, Said, UnknownMode};

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
    /// What the labels say about the mode.
    pub(super) fn said(&self) -> Result<Said, FieldProblem> {
        Said::read(&self.labels).map_err(unknown_mode)
    }
}

/// Where a value that has no meaning stands.
pub(super) fn unknown_mode(error: UnknownMode) -> FieldProblem {
    FieldProblem::new(format!("metadata.labels.{MODE_LABEL}"), error.to_string())
}
