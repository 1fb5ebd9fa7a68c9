//! The CRDs that Warren ships know exactly the fields that it reads.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{loaded, texts};

const CRDS: [&str; 2] = [
    include_str!("../../../../../deploy/crds/authorizationpolicies.yaml"),
    include_str!("../../../../../deploy/crds/peerauthentications.yaml"),
];

/// An object whose `spec` has `inner` at the end of a path of fields; `[]` is a list, `8080` a port.
fn at(path: &[String], inner: Value) -> Value {
    path.iter().rev().fold(inner, |inner, step| match step.as_str() {
        "[]" => json!([inner]),
        field => json!({field: inner}),
    })
}

/// What the reader says it would have expected at a path.
fn expected(kind: &str, path: &[String]) -> BTreeSet<String> {
    let spec = at(path, json!({"bogus": 1}));
    let object = json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec});
    let text = texts(&loaded(&object.to_string()).rejections).join("\n");
    let (_, names) = text.split_once("unknown field `bogus`, expected ").unwrap_or_else(|| panic!("{path:?}: {text}"));
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn check(kind: &str, schema: &Value, path: &mut Vec<String>, seen: &mut usize) {
    if let Some(items) = schema.get("items").filter(|items| items["type"] == "object") {
        path.push("[]".to_owned());
        check(kind, items, path, seen);
        path.pop();
    }
    if let Some(each) = schema.get("additionalProperties").filter(|each| each["type"] == "object") {
        path.push("8080".to_owned());
        check(kind, each, path, seen);
        path.pop();
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let names: BTreeSet<String> = properties.keys().cloned().collect();
    assert_eq!(names, expected(kind, path), "{kind} {path:?}");
    assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{kind} {path:?}: a misspelt field must be seen");
    *seen += 1;
    for (name, inner) in properties {
        path.push(name.clone());
        check(kind, inner, path, seen);
        path.pop();
    }
}

#[test]
fn they_have_the_fields_of_the_readers_and_no_others() {
    let mut seen = 0;
    for text in CRDS {
        let crd: Value = serde_saphyr::from_str(text).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
            check(kind, spec, &mut Vec::new(), &mut seen);
        }
    }
    assert!(seen > 20, "{seen}");
}
