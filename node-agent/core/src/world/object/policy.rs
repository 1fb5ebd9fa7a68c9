//! AuthorizationPolicy and PeerAuthentication: the frame around the specs
//! that [`crate::policy`] owns.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::metadata::Metadata;
use super::{FieldProblem, Object, Read, typed};
use crate::policy::object::{
    AuthorizationPolicy, AuthorizationPolicySpec, PeerAuthentication, PeerAuthenticationSpec, WorkloadSelector,
};
use crate::world::manifest::{Document, Kind, Node, Value};

const DRY_RUN: &str = "istio.io/dry-run";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Frame<S: Default> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    metadata: Metadata,
    #[serde(default)]
    spec: S,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

fn frame<S: Default + DeserializeOwned>(document: &Document) -> Result<(Metadata, S), Vec<FieldProblem>> {
    if let Some(field) = document.root.get("spec").and_then(|spec| spec.find_null("spec")) {
        let reason = "has no value: leave the field out, or give it one";
        return Err(vec![FieldProblem::new(field, reason)]);
    }
    let Frame { metadata, spec, .. } = typed(&document.root)?;
    Ok((metadata, spec))
}

pub(super) fn read_authorization(document: &Document) -> Result<Read, Vec<FieldProblem>> {
    let (metadata, spec): (_, AuthorizationPolicySpec) = frame(document)?;
    spec.validate().map_err(problems)?;
    let dry_run = match metadata.annotations.get(DRY_RUN).map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let field = format!("metadata.annotations.{DRY_RUN}");
            let reason = format!("{other:?} is neither \"true\" nor \"false\"");
            return Err(vec![FieldProblem::new(field, reason)]);
        }
    };
    let (namespace, name) = names(document);
    Ok(Object::AuthorizationPolicy(AuthorizationPolicy { namespace, name, dry_run, spec }).into())
}

pub(super) fn read_peer_authentication(document: &Document) -> Result<Read, Vec<FieldProblem>> {
    let (metadata, spec): (_, PeerAuthenticationSpec) = frame(document)?;
    spec.validate().map_err(problems)?;
    let created = metadata.creation_timestamp.map(|text| text.parse()).transpose();
    let created = created.map_err(|error: crate::policy::object::CreationTimeError| {
        vec![FieldProblem::new("metadata.creationTimestamp", error.to_string())]
    })?;
    let (namespace, name) = names(document);
    Ok(Object::PeerAuthentication(PeerAuthentication { namespace, name, created, spec }).into())
}

fn names(document: &Document) -> (String, String) {
    (document.key.namespace.clone(), document.key.name.clone())
}

fn problems(errors: Vec<crate::policy::FieldError>) -> Vec<FieldProblem> {
    errors.into_iter().map(|e| FieldProblem::new(e.field, e.reason)).collect()
}

/// Which pods a refused policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) enum PolicyScope {
    /// Those of its namespace, or of the mesh, narrowed by a selector if it
    /// could be read.
    Pods(Option<WorkloadSelector>),
    /// None: it is addressed to a waypoint.
    Waypoint,
}

/// Reads no more than the scope of a policy that was refused. In doubt it is
/// about all pods that it could be about.
pub(in crate::world) fn scope_of_refused(document: &Document) -> PolicyScope {
    let Some(spec) = document.root.get("spec") else { return PolicyScope::Pods(None) };
    let selector = spec.get("selector");
    let is_target = |node: &Node| node.get("kind").is_some() && node.get("name").is_some();
    let targets = spec.get("targetRefs").and_then(Node::items);
    let to_waypoint = spec.get("targetRef").is_some_and(is_target)
        || targets.is_some_and(|t| !t.is_empty() && t.iter().all(is_target));
    if document.key.kind == Kind::AuthorizationPolicy && selector.is_none() && to_waypoint {
        return PolicyScope::Waypoint;
    }
    let whole = |node: &&Node| match &node.value {
        Value::Mapping(entries) => entries.iter().all(|e| e.key == "matchLabels"),
        _ => false,
    };
    PolicyScope::Pods(selector.filter(whole).and_then(|node| typed(node).ok()))
}
