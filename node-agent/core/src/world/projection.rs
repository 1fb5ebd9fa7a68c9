//! Which fields of an object are read at all: everything else is dropped while the API server's answer is being parsed,
//! so that an object never exists in memory as a whole.
//!
//! A test holds that nothing that the readers of [`object`](super::object) look at is dropped.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::manifest::Kind;

/// What is kept of a value. Lists are looked through: the same is kept of each of their items.
#[derive(Debug)]
enum Keep {
    /// All of it.
    All,
    /// Nothing.
    Nothing,
    /// Of a mapping these keys.
    Only(&'static [(&'static str, Keep)]),
    /// Of a mapping everything, but of these keys only so much.
    Except(&'static [(&'static str, Keep)]),
}

use Keep::{All, Except, Nothing, Only};

const OWNERS: Keep = Only(&[("kind", All), ("name", All), ("controller", All)]);

/// `warren.dev/netns` and `warren.dev/ips` are not among a pod's annotations: whoever may write a pod could name the
/// node's own namespace there, or somebody else's address. They are for files, which an operator writes.
const POD_METADATA: Keep = Only(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("labels", All),
    (
        "annotations",
        Only(&[
            ("sidecar.istio.io/status", All),
            ("linkerd.io/proxy-version", All),
            ("ambient.istio.io/redirection", All),
        ]),
    ),
    ("ownerReferences", OWNERS),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    ("resourceVersion", All),
]);

const METADATA: Keep = Only(&[
    ("name", All),
    ("namespace", All),
    ("labels", All),
    ("annotations", Only(&[("istio.io/dry-run", All)])),
    ("creationTimestamp", All),
    ("resourceVersion", All),
]);

const ASKED: Keep = Only(&[("port", All), ("host", All)]);

const PROBE: Keep = Only(&[("httpGet", ASKED), ("tcpSocket", ASKED), ("grpc", Only(&[("port", All)]))]);

const HOOK: Keep = Only(&[("httpGet", ASKED), ("tcpSocket", ASKED)]);

const CONTAINERS: Keep = Only(&[
    ("ports", Only(&[("name", All), ("containerPort", All), ("hostPort", All), ("protocol", All)])),
    ("restartPolicy", All),
    ("livenessProbe", PROBE),
    ("readinessProbe", PROBE),
    ("startupProbe", PROBE),
    ("lifecycle", Only(&[("postStart", HOOK), ("preStop", HOOK)])),
]);

const POD: Keep = Only(&[
    ("metadata", POD_METADATA),
    (
        "spec",
        Only(&[
            ("nodeName", All),
            ("serviceAccountName", All),
            ("hostNetwork", All),
            ("runtimeClassName", All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    (
        "status",
        Only(&[
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
            ("hostIP", All),
            ("hostIPs", All),
            ("conditions", Only(&[("type", All), ("status", All)])),
        ]),
    ),
]);

const NAMESPACE: Keep = Only(&[("metadata", METADATA)]);

const SERVICE: Keep = Only(&[
    ("metadata", METADATA),
    (
        "spec",
        Only(&[
            ("type", All),
            ("clusterIP", All),
            ("clusterIPs", All),
            ("externalIPs", All),
            ("ports", All),
            ("selector", All),
            ("publishNotReadyAddresses", All),
        ]),
    ),
    ("status", Only(&[("loadBalancer", Only(&[("ingress", Only(&[("ip", All)]))]))])),
]);

const ENDPOINT_SLICE: Keep = Only(&[
    ("metadata", METADATA),
    ("addressType", All),
    ("endpoints", Only(&[("addresses", All), ("conditions", Only(&[("ready", All)]))])),
    ("ports", All),
]);

const NODE: Keep = Only(&[("metadata", METADATA), ("status", Only(&[("addresses", All)]))]);

const SERVICE_CIDR: Keep = Only(&[("metadata", METADATA), ("spec", Only(&[("cidrs", All)]))]);

const MESH_NODE: Keep = Only(&[("metadata", METADATA), ("spec", Only(&[("format", All), ("capabilities", All)]))]);

/// Policies are read strictly: what is not known must be seen, to be refused.
const POLICY: Keep = Except(&[("metadata", METADATA), ("status", Nothing)]);

fn kept_of(kind: Kind) -> &'static Keep {
    match kind {
        Kind::Pod => &POD,
        Kind::Namespace | Kind::ServiceAccount => &NAMESPACE,
        Kind::Service => &SERVICE,
        Kind::EndpointSlice => &ENDPOINT_SLICE,
        Kind::Node => &NODE,
        Kind::ServiceCidr => &SERVICE_CIDR,
        Kind::MeshNode => &MESH_NODE,
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => &POLICY,
        Kind::Mesh => &All,
    }
}

/// An object with the fields that are read, as [`ObjectStore::put`](super::ObjectStore::put) takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Projected {
    pub(super) kind: Kind,
    pub(super) value: Value,
}

impl Projected {
    /// `metadata.name`, as far as it is a string.
    pub fn name(&self) -> Option<&str> {
        self.metadata("name")
    }

    /// `metadata.namespace`, as far as it is a string.
    pub fn namespace(&self) -> Option<&str> {
        self.metadata("namespace")
    }

    /// `metadata.resourceVersion`, as far as it is a string.
    pub fn resource_version(&self) -> Option<&str> {
        self.metadata("resourceVersion")
    }

    fn metadata(&self, field: &str) -> Option<&str> {
        self.value.get("metadata")?.get(field)?.as_str()
    }
}

/// Deserializes an object of a kind, keeping the fields that are read.
#[derive(Debug, Clone, Copy)]
pub struct Projection(pub Kind);

impl<'de> DeserializeSeed<'de> for Projection {
    type Value = Projected;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Projected, D::Error> {
        let value = kept_of(self.0).deserialize(deserializer)?;
        Ok(Projected { kind: self.0, value })
    }
}

impl<'de> DeserializeSeed<'de> for &Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Keep::Nothing => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| Value::Null),
            keep => deserializer.deserialize_any(KeepVisitor(keep)),
        }
    }
}

struct KeepVisitor<'a>(&'a Keep);

impl KeepVisitor<'_> {
    fn of(&self, key: &str) -> &'static Keep {
        let (listed, others): (&'static [(&'static str, Keep)], &'static Keep) = match self.0 {
            All => (&[], &All),
            Nothing => (&[], &Nothing),
            Only(listed) => (listed, &Nothing),
            Except(listed) => (listed, &All),
        };
        listed.iter().find(|(known, _)| *known == key).map_or(others, |(_, keep)| keep)
    }
}

impl<'de> Visitor<'de> for KeepVisitor<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self.0)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = access.next_key::<std::borrow::Cow<'de, str>>()? {
            let keep = self.of(&key);
            let value = access.next_value_seed(keep)?;
            if !matches!(keep, Nothing) {
                entries.insert(key.into_owned(), value);
            }
        }
        Ok(Value::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(kind: Kind, value: &Value) -> Value {
        let text = value.to_string();
        Projection(kind).deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap().value
    }

    #[test]
    fn a_pod_is_left_with_what_is_read() {
        let pod = serde_json::json!({
            "kind": "Pod",
            "metadata": {"name": "a", "managedFields": [{"x": 1}], "annotations": {
                "warren.dev/netns": "/proc/1/ns/net", "warren.dev/ips": "10.0.0.1",
                "sidecar.istio.io/status": "{}", "b": "c"
            }},
            "spec": {"nodeName": "n", "containers": [
                {"image": "i", "env": [], "ports": [{"containerPort": 1, "hostIP": ""}],
                 "livenessProbe": {"httpGet": {"port": 1, "path": "/", "scheme": "HTTP"}, "periodSeconds": 1},
                 "lifecycle": {"preStop": {"tcpSocket": {"port": "a"}, "exec": {}}}}
            ]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}], "qosClass": "B"}
        });
        let wanted = serde_json::json!({
            "metadata": {"name": "a", "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"containerPort": 1}],
                "livenessProbe": {"httpGet": {"port": 1}}, "lifecycle": {"preStop": {"tcpSocket": {"port": "a"}}}}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        });
        assert_eq!(project(Kind::Pod, &pod), wanted);
    }

    #[test]
    fn of_a_policy_nothing_vanishes_that_might_restrict() {
        let policy = serde_json::json!({
            "metadata": {"name": "a", "managedFields": []},
            "spec": {"rules": [{"form": null}]}, "status": {}, "speck": 1
        });
        let wanted = serde_json::json!({
            "metadata": {"name": "a"}, "spec": {"rules": [{"form": null}]}, "speck": 1
        });
        assert_eq!(project(Kind::AuthorizationPolicy, &policy), wanted);
    }
}
