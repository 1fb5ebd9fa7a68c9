//! Which objects make up a world, and what makes an object the same object.

use std::fmt;

/// Kinds that make up a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Warren's own: facts of the mesh, and local pods.
    Mesh,
    /// Core.
    Namespace,
    /// Core.
    ServiceAccount,
    /// Core.
    Pod,
    /// Core.
    Service,
    /// `discovery.k8s.io`.
    EndpointSlice,
    /// Core.
    Node,
    /// `networking.k8s.io`.
    ServiceCidr,
    /// Warren's own: what a node's agent says that it serves.
    MeshNode,
    /// `security.istio.io`.
    AuthorizationPolicy,
    /// `security.istio.io`.
    PeerAuthentication,
}

impl Kind {
    pub(in crate::world) const ALL: [Self; 11] = [
        Self::Mesh,
        Self::Namespace,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
        Self::MeshNode,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
    ];

    /// The kind as a manifest spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::MeshNode => "MeshNode",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// API group and the versions that are read.
    pub(super) fn api(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Mesh | Self::MeshNode => ("warren.dev", &["v1alpha1"]),
            Self::EndpointSlice => ("discovery.k8s.io", &["v1"]),
            Self::ServiceCidr => ("networking.k8s.io", &["v1", "v1beta1"]),
            Self::AuthorizationPolicy | Self::PeerAuthentication => ("security.istio.io", &["v1", "v1beta1"]),
            _ => ("", &["v1"]),
        }
    }

    /// Objects of these kinds have no namespace.
    pub(in crate::world) fn is_cluster_wide(self) -> bool {
        matches!(self, Self::Mesh | Self::Namespace | Self::Node | Self::ServiceCidr | Self::MeshNode)
    }

    /// Whether a refused object of the kind must make pods deny.
    pub(in crate::world) fn is_policy(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication)
    }
}

/// What makes an object the same object in the next version of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// `metadata.namespace`; empty for kinds without one.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}
