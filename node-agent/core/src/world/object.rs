//! Documents to objects: the typed content of each kind, checked.
//!
//! Policies and the mesh are read strictly, because a constraint that is not
//! understood must not vanish. Pods, services and the like are read leniently:
//! Kubernetes adds fields to them all the time.

mod endpoint_slice;
mod mesh;
mod mesh_node;
mod metadata;
mod node;
mod pod;
mod policy;
mod probed;
mod service;

use serde::de::DeserializeOwned;

pub(super) use endpoint_slice::EndpointSliceObject;
pub(super) use mesh::{LocalPod, MeshObject};
pub(super) use node::{NodeObject, ServiceCidrObject};
pub(super) use pod::PodObject;
pub(super) use service::{ServiceObject, ServicePortObject, TargetPort};

use super::manifest::{Document, Kind, Node};
use super::model::Capabilities;
use crate::enrolment::mode::Said;
use crate::policy::{AuthorizationPolicy, PeerAuthentication};
use metadata::Metadata;

pub(super) use policy::{PolicyScope, scope_of_refused};

/// A field that makes an object unusable, or that deserves a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldProblem {
    /// Path inside the object; empty for the object itself.
    pub(super) field: String,
    /// Why.
    pub(super) reason: String,
}

impl FieldProblem {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// An accepted object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    Mesh(MeshObject),
    Namespace(NamespaceObject),
    ServiceAccount,
    Pod(Box<PodObject>),
    Service(ServiceObject),
    EndpointSlice(EndpointSliceObject),
    Node(NodeObject),
    ServiceCidr(ServiceCidrObject),
    MeshNode(Capabilities),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
}

/// What a Namespace says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamespaceObject {
    /// What it says of its pods, unless they say otherwise.
    pub(super) said: Said,
}

/// An accepted object and what the user should know about it.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) object: Object,
    pub(super) hints: Vec<FieldProblem>,
}

impl From<Object> for Read {
    fn from(object: Object) -> Self {
        Self { object, hints: Vec::new() }
    }
}

/// Reads a document.
pub(super) fn read(document: &Document) -> Result<Read, Vec<FieldProblem>> {
    match document.key.kind {
        Kind::Mesh => mesh::read(document).map(|m| Object::Mesh(m).into()),
        Kind::Namespace => read_namespace(document),
        Kind::ServiceAccount => Ok(Object::ServiceAccount.into()),
        Kind::Pod => pod::read(document).map(|p| Object::Pod(Box::new(p)).into()),
        Kind::Service => service::read(document).map(|s| Object::Service(s).into()),
        Kind::EndpointSlice => endpoint_slice::read(document).map(|s| Object::EndpointSlice(s).into()),
        Kind::Node => node::read_node(document).map(|n| Object::Node(n).into()),
        Kind::ServiceCidr => node::read_service_cidr(document).map(|s| Object::ServiceCidr(s).into()),
        Kind::MeshNode => mesh_node::read(document).map(|capabilities| Object::MeshNode(capabilities).into()),
        Kind::AuthorizationPolicy => policy::read_authorization(document),
        Kind::PeerAuthentication => policy::read_peer_authentication(document),
    }
}

/// Deserializes a node; an error knows the field.
fn typed<T: DeserializeOwned>(node: &Node) -> Result<T, Vec<FieldProblem>> {
    serde_path_to_error::deserialize(node.to_json()).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        vec![FieldProblem::new(field, error.into_inner().to_string())]
    })
}

fn read_namespace(document: &Document) -> Result<Read, Vec<FieldProblem>> {
    #[derive(serde::Deserialize)]
    struct Namespace {
        metadata: Metadata,
    }
    let Namespace { metadata } = typed(&document.root)?;
    let said = metadata.said().map_err(|problem| vec![problem])?;
    let mut read = Read::from(Object::Namespace(NamespaceObject { said }));
    let injects = metadata.labels.contains_key("istio-injection") || metadata.labels.contains_key("istio.io/rev");
    if injects && said == Said::Nothing {
        read.hints.push(FieldProblem::new(
            "metadata.labels",
            "sidecar injection label seen; Warren injects nothing. To bring the namespace into \
             the mesh, label it istio.io/dataplane-mode: ambient",
        ));
    }
    Ok(read)
}
