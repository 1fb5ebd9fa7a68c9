//! `crds`: writes the CustomResourceDefinitions of `deploy/crds` from the table below: those of policies, for clusters
//! without Istio's own, and Warren's MeshNode.
//!
//! Of a policy, fields that are not in the table are kept by the API server, not pruned: a misspelt constraint must reach
//! the agent, which refuses the object aloud, and not vanish on the way. A MeshNode has no other fields: who writes one
//! is refused (`fieldValidation=Strict`, kubectl's default) or warned. Tests of `warren-core` and `warren-agent` hold the
//! files against the types that read the objects.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::exit;
use crate::outcome::Outcome;
use crate::workspace::Workspace;

const DIRECTORY: &str = "deploy/crds";
const ISTIO: &str = "security.istio.io";

/// The type of a field.
enum Field {
    /// One of these words.
    Word(&'static [&'static str]),
    Text,
    Texts,
    /// Text of no more characters than this.
    Short(u32),
    /// Short texts, each once, and no more of them than this.
    Set(u32),
    /// A number of at least this.
    Number(u32),
    /// Labels and their values.
    Labels,
    Object(&'static [(&'static str, Field)]),
    /// A list of objects.
    Objects(&'static [(&'static str, Field)]),
    /// Objects by port number.
    ByPort(&'static [(&'static str, Field)]),
}

use Field::{ByPort, Labels, Number, Object, Objects, Set, Short, Text, Texts, Word};

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

const MESH_NODE: Field = Object(&[
    ("format", Number(1)),
    ("agentVersion", Short(128)),
    ("capabilities", Set(32)),
    ("identity", Object(&[("bundle", Short(128)), ("issuers", Set(64))])),
]);

/// A kind: where it belongs, its names, and its spec.
struct Definition {
    origin: Origin,
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    spec: Field,
}

/// Whose kind it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Istio's policies, which others read as well.
    Istio,
    /// Warren's own, one for each node.
    Warren,
}

const DEFINITIONS: [Definition; 3] = [
    Definition {
        origin: Origin::Istio,
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: "ap",
        spec: AUTHORIZATION_POLICY,
    },
    Definition {
        origin: Origin::Istio,
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        short: "pa",
        spec: PEER_AUTHENTICATION,
    },
    Definition { origin: Origin::Warren, kind: "MeshNode", plural: "meshnodes", short: "mn", spec: MESH_NODE },
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
    let named = |one: &Definition| (format!("{DIRECTORY}/{}.yaml", one.plural), document(one));
    DEFINITIONS.iter().map(named).collect()
}

fn document(one: &Definition) -> String {
    let (about, value) = match one.origin {
        Origin::Istio => ("For clusters without Istio's own definition of the kind.", istio(one)),
        Origin::Warren => ("What the agent of a node says of it; no other field is kept.", warren(one)),
    };
    let mut text = format!("# Written by `cargo xtask crds`. {about}\n");
    yaml(&value, 0, &mut text);
    text
}

fn istio(one: &Definition) -> Value {
    let schema = json!({"type": "object", "properties": {
        "spec": schema(&one.spec, true),
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}}})
    };
    let versions = json!([version("v1", true), version("v1beta1", false)]);
    definition(one, ISTIO, "Namespaced", &["istio-io", "security-istio-io"], &versions)
}

/// Without a status: nobody but the node's own agent has anything to say.
fn warren(one: &Definition) -> Value {
    let mut spec = schema(&one.spec, false);
    spec["required"] = json!(["format"]);
    spec["properties"]["identity"]["required"] = json!(["bundle"]);
    let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": spec}});
    let column = |name: &str, path: &str| json!({"name": name, "type": "string", "jsonPath": path});
    let versions = json!([{"name": "v1alpha1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [column("Capabilities", ".spec.capabilities"), column("Agent", ".spec.agentVersion")]}]);
    definition(one, "warren.dev", "Cluster", &[], &versions)
}

fn definition(one: &Definition, group: &str, scope: &str, categories: &[&str], versions: &Value) -> Value {
    let mut names = json!({"kind": one.kind, "listKind": format!("{}List", one.kind), "plural": one.plural,
        "singular": one.kind.to_lowercase(), "shortNames": [one.short]});
    if !categories.is_empty() {
        names["categories"] = json!(categories);
    }
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{group}", one.plural)},
        "spec": {"group": group, "scope": scope, "names": names, "versions": versions}})
}

/// The schema of a field; `open` keeps fields that are not in the table.
fn schema(field: &Field, open: bool) -> Value {
    let text = || json!({"type": "string"});
    match field {
        Text => text(),
        Word(words) => json!({"type": "string", "enum": words}),
        Texts => json!({"type": "array", "items": text()}),
        Labels => json!({"type": "object", "additionalProperties": text()}),
        Short(most) => json!({"type": "string", "maxLength": most}),
        Set(most) => json!({"type": "array", "items": schema(&Short(128), open), "maxItems": most,
            "x-kubernetes-list-type": "set"}),
        Number(least) => json!({"type": "integer", "format": "int32", "minimum": least}),
        Object(fields) => object(fields, open),
        Objects(fields) => json!({"type": "array", "items": object(fields, open)}),
        ByPort(fields) => json!({"type": "object", "additionalProperties": object(fields, open)}),
    }
}

fn object(fields: &[(&str, Field)], open: bool) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|(name, field)| ((*name).to_owned(), schema(field, open))).collect();
    let mut object = json!({"type": "object", "properties": properties});
    if open {
        object["x-kubernetes-preserve-unknown-fields"] = json!(true);
    }
    object
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
