//! Kind, namespace and name of a document, from its tree or, where it is not
//! even YAML, from the look of its text.

use super::kind::{Kind, ObjectKey};
use super::node::{Node, Value};

/// The name that every Mesh object has in a key.
const MESH: &str = "mesh";

/// The key of a document of that kind, or the field at fault.
pub(in crate::world) fn read_key(root: &Node, kind: Kind) -> Result<ObjectKey, (&'static str, String)> {
    let metadata = root.get("metadata");
    let text = |field: &'static str| match metadata.and_then(|m| m.get(field)) {
        None => Ok(None),
        Some(node) => match (&node.value, node.as_str()) {
            (_, Some(text)) => Ok(Some(text)),
            (Value::Scalar(serde_json::Value::Null), None) => Ok(None),
            _ => Err("not a string; put it in quotes".to_owned()),
        },
    };
    let field_error = |field| move |reason| (field, reason);
    let name = match (text("name").map_err(field_error("metadata.name"))?, kind) {
        (Some(name), _) => name,
        (None, Kind::Mesh) => MESH,
        (None, _) => return Err(("metadata.name", "missing".to_owned())),
    };
    check_name(name).map_err(field_error("metadata.name"))?;
    let namespace = text("namespace").map_err(field_error("metadata.namespace"))?;
    let namespace = if kind.is_cluster_wide() { "" } else { namespace.unwrap_or("default") };
    if !kind.is_cluster_wide() {
        check_name(namespace).map_err(field_error("metadata.namespace"))?;
    }
    // There is one mesh, whatever it is called.
    let name = if kind == Kind::Mesh { MESH } else { name };
    Ok(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// DNS subdomain, the rule of the names that become part of an identity.
fn check_name(name: &str) -> Result<(), String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let legal = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
    let ends = edge(name.chars().next()) && edge(name.chars().next_back());
    if ends && name.len() <= 253 && name.chars().all(legal) {
        Ok(())
    } else {
        Err(format!("{name:?} is not a Kubernetes name: a-z 0-9 - . only, at most 253"))
    }
}

/// The key of a policy whose name cannot be used, so that its pods deny.
pub(in crate::world) fn lenient_key(root: &Node, kind: Kind) -> ObjectKey {
    let metadata = root.get("metadata");
    let text = |field| metadata.and_then(|m| m.get(field)).and_then(Node::scalar_text);
    let namespace = text("namespace").unwrap_or_else(|| "default".to_owned());
    ObjectKey { kind, namespace, name: text("name").unwrap_or_else(|| UNNAMED.to_owned()) }
}

/// Stands for the name of a policy that could not be read; no Kubernetes name
/// looks like it.
const UNNAMED: &str = "(unnamed)";

/// The kind of policy that an object seems to be meant as, although its kind
/// or group is not one of Istio's. Such a misspelling must not make a
/// restriction vanish.
pub(super) fn misspelt_policy(api_version: &str, kind: &str) -> Option<Kind> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let policies = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
    let found = policies.into_iter().find(|k| k.as_str() == kind);
    match (group, found) {
        // Another mesh's policy of the same name.
        ("policy.linkerd.io", _) => None,
        ("security.istio.io", None) if kind != "RequestAuthentication" => Some(Kind::AuthorizationPolicy),
        (_, found) => found,
    }
}

/// Guesses which object a text that is not YAML was meant to be.
pub(super) fn guess_key(text: &str) -> Option<ObjectKey> {
    let written = value_of(text, "kind").and_then(|kind| Kind::ALL.into_iter().find(|k| k.as_str() == kind));
    let policies = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
    let mentioned = || policies.into_iter().find(|k| text.contains(k.as_str()));
    let kind = written.or_else(mentioned)?;
    let metadata = text.find("metadata").map_or(text, |at| &text[at..]);
    let namespace = match kind.is_cluster_wide() {
        true => "",
        false => value_of(metadata, "namespace").unwrap_or("default"),
    };
    let name = match (kind, value_of(metadata, "name")) {
        (Kind::Mesh, _) => MESH,
        (_, Some(name)) => name,
        (_, None) if kind.is_policy() => UNNAMED,
        (_, None) => return None,
    };
    Some(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// The first word behind `key:`.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.match_indices(key).find_map(|(at, _)| {
        let before = text[..at].chars().next_back();
        let alone = before.is_none_or(|c| c.is_whitespace() || "{,\"'".contains(c));
        let rest = text[at + key.len()..].trim_start_matches(['"', '\'']).strip_prefix(':')?;
        let rest = rest.trim_start_matches([' ', '\t', '"', '\'']);
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-.".contains(c)));
        let value = &rest[..end.unwrap_or(rest.len())];
        (alone && !value.is_empty()).then_some(value)
    })
}
