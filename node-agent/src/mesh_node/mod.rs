//! MeshNode: what the agent of a node says of it to everybody else. Its CRD is in `deploy/crds`, and the fence that
//! lets an agent write none but its own node's in `deploy/admission`.

mod publish;

use std::borrow::Cow;

use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::ClusterResourceScope;
use serde::{Deserialize, Serialize};
use warren_core::world::Capabilities;

pub(crate) use publish::Publisher;

const GROUP: &str = "warren.dev";
const VERSION: &str = "v1alpha1";
const API_VERSION: &str = "warren.dev/v1alpha1";
const KIND: &str = "MeshNode";
const PLURAL: &str = "meshnodes";

/// The format that this release writes.
const FORMAT: u32 = 1;

/// The object; it has the name of its node, and goes with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeshNode {
    /// Lists leave it out of their items.
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: MeshNodeSpec,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeshNodeSpec {
    /// How the rest is to be understood.
    pub(crate) format: u32,
    /// For people.
    #[serde(default)]
    pub(crate) agent_version: String,
    /// What the agent can do for the node's pods, in the words of [`warren_core::world::Capabilities`].
    #[serde(default)]
    pub(crate) capabilities: Vec<String>,
    /// For the mesh's certificate authority, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<Identity>,
}

/// What the node trusts, and who signed what it uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Digest of the trust bundle.
    pub(crate) bundle: String,
    /// Intermediates above the SVIDs in use.
    #[serde(default)]
    pub(crate) issuers: Vec<String>,
}

impl MeshNode {
    fn new(metadata: ObjectMeta, spec: MeshNodeSpec) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), metadata, spec }
    }

    /// The node's name.
    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The node's UID: an object of a node that was deleted may be there for a while.
    pub(crate) fn node_uid(&self) -> Option<&str> {
        let owners = self.metadata.owner_references.iter().flatten();
        owners.into_iter().find(|owner| owner.kind == "Node").map(|owner| owner.uid.as_str())
    }

    /// Whether its agent takes connections.
    pub(crate) fn serves(&self) -> bool {
        self.spec.capabilities.iter().any(|one| one == Capabilities::HBONE)
    }
}

impl Resource for MeshNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const CRD: &str = include_str!("../../../deploy/crds/meshnodes.yaml");

    /// Every field of the schema has its twin in the value, and the other way round.
    fn check(path: &str, schema: &Value, value: &Value) {
        let Some(fields) = value.as_object() else { return };
        let properties = schema["properties"].as_object().unwrap_or_else(|| panic!("{path} has no properties"));
        let (mut wanted, mut found): (Vec<_>, Vec<_>) = (fields.keys().collect(), properties.keys().collect());
        wanted.sort();
        found.sort();
        assert_eq!(wanted, found, "{path}");
        assert_eq!(schema.get("x-kubernetes-preserve-unknown-fields"), None, "{path}: unknown fields are not kept");
        for (name, value) in fields {
            check(&format!("{path}.{name}"), &properties[name], value);
        }
    }

    #[test]
    fn the_crd_has_the_fields_of_the_type_and_no_others() {
        let crd: Value = serde_saphyr::from_str(CRD).unwrap();
        let spec = &crd["spec"];
        let names = &spec["names"];
        assert_eq!((&spec["group"], &names["kind"], &names["plural"]), (&GROUP.into(), &KIND.into(), &PLURAL.into()));
        assert_eq!(spec["scope"], "Cluster");
        let version = &spec["versions"][0];
        assert_eq!(version["name"], VERSION);
        let whole = MeshNodeSpec {
            format: FORMAT,
            agent_version: "1".into(),
            capabilities: vec!["hbone".into()],
            identity: Some(Identity { bundle: "b".into(), issuers: vec!["i".into()] }),
        };
        let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        check("spec", schema, &serde_json::to_value(whole).unwrap());
    }
}
