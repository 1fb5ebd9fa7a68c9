//! Which objects are watched, and where the API server has them.

use warren_core::world::Kind;

/// A kind that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) kind: Kind,
    /// API group; empty for the core.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    /// Name of the resource in paths.
    pub(crate) plural: &'static str,
    /// Whether a cluster may lack it.
    pub(crate) optional: bool,
}

const fn core(kind: Kind, plural: &'static str) -> Watched {
    Watched { kind, group: "", version: "v1", plural, optional: false }
}

const fn policy(kind: Kind, plural: &'static str) -> Watched {
    Watched { kind, group: "security.istio.io", version: "v1", plural, optional: true }
}

/// All of them.
pub(crate) const WATCHED: [Watched; 9] = [
    core(Kind::Namespace, "namespaces"),
    core(Kind::Node, "nodes"),
    core(Kind::Pod, "pods"),
    core(Kind::Service, "services"),
    Watched {
        kind: Kind::EndpointSlice,
        group: "discovery.k8s.io",
        version: "v1",
        plural: "endpointslices",
        optional: false,
    },
    // Of Kubernetes 1.33 and later. Without it Services' ranges are what `--captured` says, and their addresses.
    Watched {
        kind: Kind::ServiceCidr,
        group: "networking.k8s.io",
        version: "v1",
        plural: "servicecidrs",
        optional: true,
    },
    // Without it no node is known to take tunnels but the agent's own.
    Watched { kind: Kind::MeshNode, group: "warren.dev", version: "v1alpha1", plural: "meshnodes", optional: true },
    policy(Kind::AuthorizationPolicy, "authorizationpolicies"),
    policy(Kind::PeerAuthentication, "peerauthentications"),
];

impl Watched {
    /// The path of all objects of the kind.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.group_path(), self.plural)
    }

    /// The path that lists the resources of the kind's group and version.
    pub(crate) fn group_path(&self) -> String {
        match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }
}
