//! Text to documents: which objects a file holds, and on which lines.
//!
//! Nothing here looks inside an object beyond its kind and name; that is the
//! work of [`object`](super::object).

mod key;
mod kind;
mod node;
mod split;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub use kind::{Kind, ObjectKey};
pub(super) use node::{Node, Value};

use key::{guess_key, misspelt_policy};
pub(super) use key::{lenient_key, read_key};

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
    /// 1-based line in the file; 0 where there are no lines, because the object came from the API server.
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
        match self.line {
            0 => write!(f, "{}: ", self.file)?,
            line => write!(f, "{}:{line}: ", self.file)?,
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.reason)
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
            let key = misspelt_policy(&api_version, &kind).map(|kind| lenient_key(&root, kind));
            return self.refuse(file, root.line, None, None, reason, key);
        }
        if kind == "List" || kind.ends_with("List") && root.get("items").is_some() {
            return self.add_list(file, root);
        }
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let known = Kind::ALL.into_iter().find(|k| k.as_str() == kind && k.api().0 == group);
        match (known, misspelt_policy(&api_version, &kind)) {
            (Some(kind), _) => self.add_known(file, root, kind, version),
            (None, Some(meant)) => {
                let key = lenient_key(&root, meant);
                let reason = format!("{api_version} has no kind {kind}");
                self.refuse(file, root.line_of("kind"), Some(key.to_string()), Some("kind"), reason, Some(key));
            }
            (None, None) => self.ignore(file, &root, &api_version, &kind),
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
