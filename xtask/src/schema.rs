//! The published JSON Schemas, as far as they use the language: enough to hold
//! objects against them without a library. Stricter in one point: consumers are
//! to accept fields they do not know, but Warren may write none that is not
//! published.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// A schema document.
#[derive(Debug)]
pub(crate) struct Schema {
    root: Value,
}

impl Schema {
    /// Reads it.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Self { root: serde_json::from_str(&text).with_context(|| path.display().to_string())? })
    }

    /// What a value violates; empty when it fits.
    pub(crate) fn faults(&self, value: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        self.visit(&self.root, value, "object", &mut faults);
        faults
    }

    fn visit(&self, schema: &Value, value: &Value, place: &str, faults: &mut Vec<String>) {
        let schema = self.resolved(schema);
        if let Some(constant) = schema.get("const").filter(|constant| *constant != value) {
            faults.push(format!("{place} is not {constant}"));
        }
        if let Some(choices) = schema["enum"].as_array().filter(|choices| !choices.contains(value)) {
            faults.push(format!("{place} is none of {}", Value::from(choices.clone())));
        }
        if !has_type(&schema["type"], value) {
            faults.push(format!("{place} is not of type {}", schema["type"]));
        }
        if let Some(object) = value.as_object() {
            self.visit_object(schema, object, place, faults);
        }
    }

    fn visit_object(
        &self,
        schema: &Value,
        object: &serde_json::Map<String, Value>,
        place: &str,
        faults: &mut Vec<String>,
    ) {
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(required) {
                faults.push(format!("{place}.{required} is missing"));
            }
        }
        for (name, value) in object {
            match schema["properties"].get(name) {
                Some(property) => self.visit(property, value, &format!("{place}.{name}"), faults),
                None => faults.push(format!("{place}.{name} is not in the schema")),
            }
        }
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let target = schema["$ref"].as_str().and_then(|reference| self.root.pointer(reference.strip_prefix('#')?));
        target.unwrap_or(schema)
    }
}

fn has_type(expected: &Value, value: &Value) -> bool {
    let one = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => false,
    };
    match expected {
        Value::String(name) => one(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(one),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema {
            root: json!({
                "type": "object", "required": ["who"],
                "properties": {"who": {"type": ["string", "null"]}, "how": {"enum": ["a", "b"]}, "end": {"$ref": "#/$defs/end"}},
                "$defs": {"end": {"type": "object", "properties": {"port": {"type": "integer"}}}},
            }),
        }
    }

    #[test]
    fn what_fits_has_no_faults() {
        assert!(schema().faults(&json!({"who": null, "how": "a", "end": {"port": 1}})).is_empty());
    }

    #[test]
    fn each_violation_is_named() {
        let faults = schema().faults(&json!({"how": "c", "end": {"port": "1"}, "more": 1}));
        assert_eq!(faults.len(), 4, "{faults:?}");
    }

    #[test]
    fn the_published_schemas_are_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/schema");
        for name in [
            "audit-event.schema.json",
            "handshake-record.schema.json",
            "enrolment-event.schema.json",
            "issuance-event.schema.json",
        ] {
            assert!(!Schema::load(&directory.join(name)).unwrap().faults(&json!({})).is_empty(), "{name}");
        }
    }
}
