//! Text to documents: which objects a file holds, and on which lines.
//!
//! Nothing here looks inside an object beyond its kind and name; that is the
//! work of [`object`](super::object).

mod node;
mod split;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub(super) use node::{Node, Value};

/// One manifest file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// Name for messages; usually the path as the user gave it.
    pub file: String,
    /// The whole content.
    pub text: String,
}

/// Whether a rejection is a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The user wrote something that cannot be honoured.
    Error,
    /// The object is none of Warren's business, or a hint.
    Ignored,
}

/// A document, or a part of one, that is not in the world, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The file.
    pub file: String,
    /// 1-based line in the file.
    pub line: usize,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: Option<String>,
    /// Path of the field inside the object, e.g. `spec.rules[0].from`.
    pub field: Option<String>,
    /// Why, and what becomes of it.
    pub reason: String,
    /// Whether it is a fault.
    pub severity: Severity,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.reason)
    }
}

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
    /// `security.istio.io`.
    AuthorizationPolicy,
    /// `security.istio.io`.
    PeerAuthentication,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Mesh,
        Self::Namespace,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
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
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// API group and the versions that are read.
    fn api(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Mesh => ("warren.dev", &["v1alpha1"]),
            Self::EndpointSlice => ("discovery.k8s.io", &["v1"]),
            Self::AuthorizationPolicy | Self::PeerAuthentication => ("security.istio.io", &["v1", "v1beta1"]),
            _ => ("", &["v1"]),
        }
    }

    /// Objects of these kinds have no namespace.
    fn is_cluster_wide(self) -> bool {
        matches!(self, Self::Mesh | Self::Namespace)
    }

    /// Whether a refused object of the kind must make pods deny.
    pub(super) fn is_policy(self) -> bool {
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

/// One object of a known kind, not yet looked into.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file.
    pub file: Arc<str>,
    /// Which object it is.
    pub key: ObjectKey,
    pub(super) root: Node,
}

/// A document of which not even kind and name could be used.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// What to tell the user.
    pub rejection: Rejection,
    /// Which object it probably is, if that could be guessed.
    pub key: Option<ObjectKey>,
}

/// What a file holds.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// Objects of known kinds.
    pub documents: Vec<Document>,
    /// Faults.
    pub unreadable: Vec<Unreadable>,
    /// Objects of kinds that are none of Warren's business.
    pub ignored: Vec<Rejection>,
}

/// Reads a file. Never fails as a whole: every document stands for itself.
pub fn parse(source: &SourceText) -> Parsed {
    let mut parsed = Parsed::default();
    let file: Arc<str> = source.file.as_str().into();
    for chunk in split::documents(&source.text) {
        match Node::parse(chunk.text) {
            Ok(mut root) => {
                root.shift(chunk.line - 1);
                parsed.add(&file, root);
            }
            Err(error) => {
                let key = guess_key(chunk.text);
                let object = key.as_ref().map(ToString::to_string);
                let line = chunk.line - 1 + error.line;
                let reason = format!("not YAML: {}", error.reason);
                parsed.refuse(&file, line, object, None, reason, key);
            }
        }
    }
    parsed
}

impl Parsed {
    fn add(&mut self, file: &Arc<str>, root: Node) {
        if let Value::Scalar(serde_json::Value::Null) = root.value {
            return;
        }
        let text = |field| root.get(field).and_then(Node::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if kind.is_empty() {
            let reason = "not a Kubernetes object: it has no kind".to_owned();
            return self.refuse(file, root.line, None, None, reason, None);
        }
        if kind == "List" || kind.ends_with("List") && root.get("items").is_some() {
            return self.add_list(file, root);
        }
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let known = Kind::ALL.into_iter().find(|k| k.as_str() == kind && k.api().0 == group);
        match known {
            None => self.ignore(file, &root, &api_version, &kind),
            Some(kind) => self.add_known(file, root, kind, version),
        }
    }

    fn add_list(&mut self, file: &Arc<str>, root: Node) {
        let Value::Mapping(entries) = root.value else { return };
        let items = entries.into_iter().find(|e| e.key == "items");
        match items.map(|e| (e.line, e.node.value)) {
            None | Some((_, Value::Scalar(serde_json::Value::Null))) => {}
            Some((_, Value::Sequence(items))) => {
                items.into_iter().for_each(|item| self.add(file, item));
            }
            Some((line, _)) => {
                let reason = "not a list".to_owned();
                self.refuse(file, line, None, Some("items"), reason, None);
            }
        }
    }

    fn add_known(&mut self, file: &Arc<str>, root: Node, kind: Kind, version: &str) {
        let key = match read_key(&root, kind) {
            Ok(key) => key,
            Err((field, reason)) => {
                let (line, object) = (root.line_of(field), Some(kind.as_str().to_owned()));
                let key = kind.is_policy().then(|| lenient_key(&root, kind));
                return self.refuse(file, line, object, Some(field), reason, key);
            }
        };
        let (_, versions) = kind.api();
        if versions.contains(&version) {
            self.documents.push(Document { file: Arc::clone(file), key, root });
        } else {
            let reason = format!("version {version:?} is not known; known: {}", versions.join(", "));
            let line = root.line_of("apiVersion");
            self.refuse(file, line, Some(key.to_string()), Some("apiVersion"), reason, Some(key));
        }
    }

    fn ignore(&mut self, file: &Arc<str>, root: &Node, api_version: &str, kind: &str) {
        let metadata = root.get("metadata");
        let text = |field| metadata.and_then(|m| m.get(field)).and_then(Node::as_str);
        let name = match (text("namespace"), text("name")) {
            (Some(namespace), Some(name)) => format!(" {namespace}/{name}"),
            (None, Some(name)) => format!(" {name}"),
            _ => String::new(),
        };
        let (severity, reason) = why_ignored(api_version, kind);
        self.ignored.push(Rejection {
            file: file.to_string(),
            line: root.line,
            object: Some(format!("{kind}{name}")),
            field: None,
            reason,
            severity,
        });
    }

    fn refuse(
        &mut self,
        file: &str,
        line: usize,
        object: Option<String>,
        field: Option<&str>,
        reason: String,
        key: Option<ObjectKey>,
    ) {
        let (file, field) = (file.to_owned(), field.map(str::to_owned));
        let severity = Severity::Error;
        let rejection = Rejection { file, line, object, field, reason, severity };
        self.unreadable.push(Unreadable { rejection, key });
    }
}

/// A kind that would restrict connections, and does not, is a fault.
fn why_ignored(api_version: &str, kind: &str) -> (Severity, String) {
    match kind {
        "RequestAuthentication" => {
            (Severity::Error, "not enforced: tokens are checked by a waypoint, and there is none here".to_owned())
        }
        "NetworkPolicy" => (
            Severity::Ignored,
            "not enforced by Warren: that is the work of the network plugin, which must let the \
             tunnel port 15008 pass"
                .to_owned(),
        ),
        _ => (Severity::Ignored, format!("{api_version} {kind} has no part in the world")),
    }
}

fn read_key(root: &Node, kind: Kind) -> Result<ObjectKey, (&'static str, String)> {
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
        (None, Kind::Mesh) => "mesh",
        (None, _) => return Err(("metadata.name", "missing".to_owned())),
    };
    check_name(name).map_err(field_error("metadata.name"))?;
    let namespace = text("namespace").map_err(field_error("metadata.namespace"))?;
    let namespace = if kind.is_cluster_wide() { "" } else { namespace.unwrap_or("default") };
    if !kind.is_cluster_wide() {
        check_name(namespace).map_err(field_error("metadata.namespace"))?;
    }
    // There is one mesh, whatever it is called.
    let name = if kind == Kind::Mesh { "mesh" } else { name };
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
fn lenient_key(root: &Node, kind: Kind) -> ObjectKey {
    let metadata = root.get("metadata");
    let text = |field| metadata.and_then(|m| m.get(field)).and_then(Node::as_str);
    let namespace = text("namespace").unwrap_or("default").to_owned();
    ObjectKey { kind, namespace, name: text("name").unwrap_or("unnamed").to_owned() }
}

/// Finds kind and name in a text that is not YAML, by the look of its lines.
fn guess_key(text: &str) -> Option<ObjectKey> {
    let value = |key: &str| {
        let values = text.match_indices(key).filter_map(|(at, _)| {
            let before = text[..at].chars().next_back();
            let alone = before.is_none_or(|c| c.is_whitespace() || "{,\"'".contains(c));
            let rest = text[at + key.len()..].trim_start_matches(['"', '\'']).strip_prefix(':')?;
            let rest = rest.trim_start_matches([' ', '\t', '"', '\'']);
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-.".contains(c)));
            let value = &rest[..end.unwrap_or(rest.len())];
            (alone && !value.is_empty()).then_some(value)
        });
        values.map(str::to_owned).next()
    };
    let kind = value("kind")?;
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind)?;
    let namespace = match kind.is_cluster_wide() {
        true => String::new(),
        false => value("namespace").unwrap_or_else(|| "default".to_owned()),
    };
    let name = if kind == Kind::Mesh { Some("mesh".to_owned()) } else { value("name") };
    Some(ObjectKey { kind, namespace, name: name? })
}
