//! `crds`: writes the CustomResourceDefinitions of `deploy/crds`, for clusters without Istio's own, from the table
//! below.
//!
//! Fields that are not in the table are kept by the API server, not pruned: a misspelt constraint must reach the agent,
//! which refuses the object aloud, and not vanish on the way. A test of `warren-core` holds the files against the types
//! that read the objects.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::exit;
use crate::outcome::Outcome;
use crate::workspace::Workspace;

const DIRECTORY: &str = "deploy/crds";
const GROUP: &str = "security.istio.io";

/// The type of a field.
enum Field {
    /// One of these words.
    Word(&'static [&'static str]),
    Text,
    Texts,
    /// Labels and their values.
    Labels,
    Object(&'static [(&'static str, Field)]),
    /// A list of objects.
    Objects(&'static [(&'static str, Field)]),
    /// Objects by port number.
    ByPort(&'static [(&'static str, Field)]),
}

use Field::{ByPort, Labels, Object, Objects, Text, Texts, Word};

const SELECTOR: Field = Object(&[("matchLabels", Labels)]);
const TARGET: &[(&str, Field)] = &[("group", Text), ("kind", Text), ("name", Text), ("namespace", Text)];
const MUTUAL_TLS: &[(&str, Field)] = &[("mode", Word(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]))];

const SOURCE: Field = Object(&[
    ("principals", Texts),
    ("notPrincipals", Texts),
    ("requestPrincipals", Texts),
    ("notRequestPrincipals", Texts),
    ("namespaces", Texts),
    ("notNamespaces", Texts),
    ("serviceAccounts", Texts),
    ("notServiceAccounts", Texts),
    ("trustDomains", Texts),
    ("notTrustDomains", Texts),
    ("ipBlocks", Texts),
    ("notIpBlocks", Texts),
    ("remoteIpBlocks", Texts),
    ("notRemoteIpBlocks", Texts),
]);

const OPERATION: Field = Object(&[
    ("hosts", Texts),
    ("notHosts", Texts),
    ("ports", Texts),
    ("notPorts", Texts),
    ("methods", Texts),
    ("notMethods", Texts),
    ("paths", Texts),
    ("notPaths", Texts),
]);

const AUTHORIZATION_POLICY: Field = Object(&[
    ("selector", SELECTOR),
    ("targetRef", Object(TARGET)),
    ("targetRefs", Objects(TARGET)),
    ("action", Word(&["ALLOW", "DENY", "AUDIT", "CUSTOM"])),
    ("provider", Object(&[("name", Text)])),
    (
        "rules",
        Objects(&[
            ("from", Objects(&[("source", SOURCE)])),
            ("to", Objects(&[("operation", OPERATION)])),
            ("when", Objects(&[("key", Text), ("values", Texts), ("notValues", Texts)])),
        ]),
    ),
]);

const PEER_AUTHENTICATION: Field =
    Object(&[("selector", SELECTOR), ("mtls", Object(MUTUAL_TLS)), ("portLevelMtls", ByPort(MUTUAL_TLS))]);

/// A kind: its plural, its short name, and its spec.
struct Definition {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    spec: Field,
}

const DEFINITIONS: [Definition; 2] = [
    Definition {
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: "ap",
        spec: AUTHORIZATION_POLICY,
    },
    Definition { kind: "PeerAuthentication", plural: "peerauthentications", short: "pa", spec: PEER_AUTHENTICATION },
];

/// `cargo xtask crds`: writes the files, or says which are stale.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if a file is not what it should be.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.check {
        let outcome = fresh(workspace);
        outcome.print("deploy/crds");
        return if matches!(outcome, Outcome::Failed(_)) { Err(exit::told()) } else { Ok(()) };
    }
    for (path, text) in files() {
        let path = workspace.path(&path);
        let folder = path.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Whether the files are what the table says.
pub(crate) fn fresh(workspace: &Workspace) -> Outcome {
    let stale: Vec<String> = files()
        .into_iter()
        .filter(|(path, text)| fs::read_to_string(workspace.path(path)).ok().as_ref() != Some(text))
        .map(|(path, _)| path)
        .collect();
    if stale.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("not what the table says, run `cargo xtask crds`: {}", stale.join(", ")))
    }
}

fn files() -> Vec<(String, String)> {
    let named = |one: &Definition| (format!("{DIRECTORY}/{}.yaml", one.plural), document(&definition(one)));
    DEFINITIONS.iter().map(named).collect()
}

fn document(value: &Value) -> String {
    let mut text =
        "# Written by `cargo xtask crds`. For clusters without Istio's own definition of the kind.\n".to_owned();
    yaml(value, 0, &mut text);
    text
}

fn definition(one: &Definition) -> Value {
    let singular = one.kind.to_lowercase();
    let schema = json!({"type": "object", "properties": {
        "spec": schema(&one.spec),
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{GROUP}", one.plural)},
        "spec": {"group": GROUP, "scope": "Namespaced",
            "names": {"kind": one.kind, "listKind": format!("{}List", one.kind), "plural": one.plural,
                "singular": singular, "shortNames": [one.short], "categories": ["istio-io", "security-istio-io"]},
            "versions": [version("v1", true), version("v1beta1", false)]}})
}

fn schema(field: &Field) -> Value {
    let text = || json!({"type": "string"});
    match field {
        Text => text(),
        Word(words) => json!({"type": "string", "enum": words}),
        Texts => json!({"type": "array", "items": text()}),
        Labels => json!({"type": "object", "additionalProperties": text()}),
        Object(fields) => object(fields),
        Objects(fields) => json!({"type": "array", "items": object(fields)}),
        ByPort(fields) => json!({"type": "object", "additionalProperties": object(fields)}),
    }
}

fn object(fields: &[(&str, Field)]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|(name, field)| ((*name).to_owned(), schema(field))).collect();
    json!({"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": true})
}

/// Block style, as people write manifests; strings as JSON has them, which YAML takes.
fn yaml(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let is_flat = |value: &Value| match value {
        Value::Object(entries) => entries.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    };
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                if is_flat(value) {
                    text.push_str(&format!("{indent}{key}: {value}\n"));
                } else {
                    text.push_str(&format!("{indent}{key}:\n"));
                    yaml(value, depth + 1, text);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                yaml(item, depth + 1, &mut inner);
                let rest = inner.trim_start_matches(' ');
                text.push_str(&format!("{indent}- {rest}"));
            }
        }
        scalar => text.push_str(&format!("{indent}{scalar}\n")),
    }
}
