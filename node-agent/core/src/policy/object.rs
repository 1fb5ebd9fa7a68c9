//! AuthorizationPolicy and PeerAuthentication as users write them
//! (`security.istio.io`, v1 and v1beta1 alike; policy.md §1, §2, §7).
//!
//! Unknown fields are refused: a constraint that is not understood must not
//! vanish. What the types cannot express is checked by `validate`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::world::Labels;

/// A whole AuthorizationPolicy that passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Annotation `istio.io/dry-run` is `true`.
    pub dry_run: bool,
    /// `spec`; the default (allow nothing) when absent.
    pub spec: AuthorizationPolicySpec,
}

/// `spec` of an AuthorizationPolicy. The default, `{}`, allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationPolicySpec {
    /// Pods it applies to; all of its scope when absent.
    pub selector: Option<WorkloadSelector>,
    /// Older spelling of a single `targetRefs` entry.
    pub target_ref: Option<TargetRef>,
    /// Waypoints, gateways or services it applies to instead of pods.
    pub target_refs: Vec<TargetRef>,
    /// What a match means.
    pub action: Action,
    /// The external authorizer of a CUSTOM policy.
    pub provider: Option<Provider>,
    /// Alternatives; none means that the policy never matches.
    pub rules: Vec<Rule>,
}

impl AuthorizationPolicySpec {
    /// Whether it is addressed to a waypoint or gateway rather than to pods.
    pub fn has_targets(&self) -> bool {
        self.target_ref.is_some() || !self.target_refs.is_empty()
    }
}

/// `action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Allow what matches, and nothing else unless another ALLOW does.
    #[default]
    Allow,
    /// Deny what matches.
    Deny,
    /// Log what matches.
    Audit,
    /// Ask an external authorizer about what matches.
    Custom,
}

impl Action {
    /// As the object spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// `selector`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadSelector {
    /// Labels that a pod must have, all of them, with equal values.
    pub match_labels: BTreeMap<String, String>,
}

impl WorkloadSelector {
    /// Whether a pod with these labels is selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value.as_str()))
    }
}

/// One entry of `targetRefs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group; empty for core.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; only the policy's own is possible, so it must be absent.
    #[serde(default)]
    pub namespace: String,
}

/// `provider`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Name of the mesh's extension provider.
    pub name: String,
}

/// One alternative: any `from` AND any `to` AND every `when`. A missing part
/// matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    /// Who.
    pub from: Vec<From>,
    /// What.
    pub to: Vec<To>,
    /// Under which further conditions.
    pub when: Vec<Condition>,
}

/// One entry of `from`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// The source; its absence is refused by validation.
    #[serde(default)]
    pub source: Option<Source>,
}

/// One entry of `to`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// The operation; its absence is refused by validation.
    #[serde(default)]
    pub operation: Option<Operation>,
}

/// Fields are AND-ed, values of one field OR-ed; a `not…` field holds if none
/// of its values matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the names are Istio's; policy.md §2 tells them")]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// As [`Source`], for the request. L4 sees the ports only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the names are Istio's; policy.md §2 tells them")]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// One entry of `when`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The attribute.
    pub key: String,
    /// Any of these.
    #[serde(default)]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default)]
    pub not_values: Vec<String>,
}

/// A whole PeerAuthentication that passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp`: the oldest of a scope counts. One without
    /// (a file that no API server has seen) comes after those with one.
    pub created: Option<CreationTime>,
    /// `spec`; the default (everything UNSET) when absent.
    pub spec: PeerAuthenticationSpec,
}

impl PeerAuthentication {
    /// Oldest first; equal ages by name, so that the answer does not depend on
    /// the order of reading.
    pub fn age_order(&self, other: &Self) -> Ordering {
        let key = |p: &Self| (p.created.is_none(), p.created);
        key(self)
            .cmp(&key(other))
            .then_with(|| self.name.cmp(&other.name))
            .then_with(|| self.namespace.cmp(&other.namespace))
    }
}

/// `spec` of a PeerAuthentication.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PeerAuthenticationSpec {
    /// Pods it applies to; all of its scope when absent or empty.
    pub selector: Option<WorkloadSelector>,
    /// Mode of every port without its own.
    pub mtls: Option<MutualTls>,
    /// Modes of single ports of the pod.
    #[serde(deserialize_with = "ports")]
    pub port_level_mtls: Option<BTreeMap<u16, MutualTls>>,
}

impl PeerAuthenticationSpec {
    /// The selector, unless it selects everything.
    pub fn narrowing_selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref().filter(|s| !s.match_labels.is_empty())
    }

    /// The mode, UNSET when absent.
    pub fn mode(&self) -> Mode {
        self.mtls.unwrap_or_default().mode
    }
}

/// A `mtls` setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MutualTls {
    /// The mode, UNSET when absent.
    pub mode: Mode,
}

/// `mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Inherit from the wider scope.
    #[default]
    Unset,
    /// At L4 the same as PERMISSIVE: mTLS is still accepted and used.
    Disable,
    /// mTLS and plaintext.
    Permissive,
    /// mTLS only.
    Strict,
}

/// `metadata.creationTimestamp`, RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CreationTime(OffsetDateTime);

impl FromStr for CreationTime {
    type Err = CreationTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(Self).map_err(CreationTimeError)
    }
}

/// The text is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time: {0}")]
pub struct CreationTimeError(time::error::Parse);

/// Ports are map keys: strings in JSON, integers in YAML. Both are read.
fn ports<'de, D, T>(deserializer: D) -> Result<Option<BTreeMap<u16, T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Ports<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Ports<T> {
        type Value = BTreeMap<u16, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map from port number to mode")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut ports = BTreeMap::new();
            while let Some((Port(port), value)) = map.next_entry()? {
                if ports.insert(port, value).is_some() {
                    return Err(de::Error::custom(format_args!("port {port} is given twice")));
                }
            }
            Ok(ports)
        }
    }

    deserializer.deserialize_map(Ports(std::marker::PhantomData)).map(Some)
}

struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;

        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Port, E> {
                u16::try_from(value)
                    .ok()
                    .filter(|p| *p != 0)
                    .map(Port)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Port, E> {
                u64::try_from(value)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
                    .and_then(|v| self.visit_u64(v))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Port, E> {
                super::matcher::parse_port(value)
                    .map(Port)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }

        deserializer.deserialize_any(PortVisitor)
    }
}
