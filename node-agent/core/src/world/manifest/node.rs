//! A YAML document as a tree that knows the line of every part, so that an
//! error found later, by type or by meaning, still points into the file.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// One value and the line it stands on.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::world) struct Node {
    /// 1-based, in the parsed text until [`Node::shift`] makes it the file's.
    pub(in crate::world) line: usize,
    pub(in crate::world) value: Value,
}

/// A YAML value of the JSON model.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::world) enum Value {
    Scalar(serde_json::Value),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// One key of a mapping, with the line of the key.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::world) struct Entry {
    pub(in crate::world) key: String,
    pub(in crate::world) line: usize,
    pub(in crate::world) node: Node,
}

/// A document that is not YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// 1-based, in the parsed text.
    pub(super) line: usize,
    pub(super) reason: String,
}

/// A manifest nests no deeper; the parser's own stack is bounded by it.
const MAX_DEPTH: usize = 64;
/// Enough for a `List` of some tens of thousands of pods.
const MAX_NODES: usize = 8_000_000;
const MAX_ALIASES: usize = 1_000;

impl From<serde_json::Value> for Node {
    /// A value that was never on a line.
    fn from(value: serde_json::Value) -> Self {
        let value = match value {
            serde_json::Value::Array(items) => Value::Sequence(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(entries) => Value::Mapping(
                entries.into_iter().map(|(key, value)| Entry { key, line: 0, node: Self::from(value) }).collect(),
            ),
            scalar => Value::Scalar(scalar),
        };
        Self { line: 0, value }
    }
}

impl Node {
    /// Parses one document.
    pub(super) fn parse(text: &str) -> Result<Self, SyntaxError> {
        let options = serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
            budget: serde_saphyr::budget! {
                max_depth: MAX_DEPTH,
                max_nodes: MAX_NODES,
                max_events: 2 * MAX_NODES,
                max_aliases: MAX_ALIASES,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: 100_000,
            },
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(1, |l| line_number(l.line()));
            let reason = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            SyntaxError { line, reason: first_line(&reason) }
        })
    }

    /// Adds `lines` to every line of the tree.
    pub(super) fn shift(&mut self, lines: usize) {
        self.line += lines;
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::Sequence(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Mapping(entries) => {
                for entry in entries {
                    entry.line += lines;
                    entry.node.shift(lines);
                }
            }
        }
    }

    /// The value of a key, if this is a mapping that has it.
    pub(in crate::world) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    /// The text, if this is a string.
    pub(in crate::world) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => scalar.as_str(),
            _ => None,
        }
    }

    /// The text of any scalar but null, as it would be without quotes.
    pub(super) fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Scalar(serde_json::Value::String(text)) => Some(text.clone()),
            Value::Scalar(serde_json::Value::Null) => None,
            Value::Scalar(scalar) => Some(scalar.to_string()),
            _ => None,
        }
    }

    /// The items, if this is a sequence.
    pub(in crate::world) fn items(&self) -> Option<&[Self]> {
        match &self.value {
            Value::Sequence(items) => Some(items),
            _ => None,
        }
    }

    /// The line of a field such as `spec.rules[0].from`, or of the deepest
    /// part of that path which exists.
    pub(in crate::world) fn line_of(&self, field: &str) -> usize {
        self.walk(field, self.line)
    }

    fn walk(&self, field: &str, here: usize) -> usize {
        let field = field.strip_prefix('.').unwrap_or(field);
        match &self.value {
            Value::Mapping(entries) => {
                // Keys may contain dots themselves: the longest that fits.
                let fits = entries.iter().filter_map(|e| Some((e, after_key(field, &e.key)?)));
                match fits.max_by_key(|(entry, _)| entry.key.len()) {
                    Some((entry, rest)) => entry.node.walk(rest, entry.line),
                    None => here,
                }
            }
            Value::Sequence(items) => match after_index(field) {
                Some((index, rest)) => match items.get(index) {
                    Some(item) => item.walk(rest, item.line),
                    None => here,
                },
                None => here,
            },
            Value::Scalar(_) => here,
        }
    }

    /// The path of the first null below this node, which is at `path`.
    pub(in crate::world) fn find_null(&self, path: &str) -> Option<String> {
        match &self.value {
            Value::Scalar(serde_json::Value::Null) => Some(path.to_owned()),
            Value::Scalar(_) => None,
            Value::Sequence(items) => {
                let mut items = items.iter().enumerate();
                items.find_map(|(i, item)| item.find_null(&format!("{path}[{i}]")))
            }
            Value::Mapping(entries) => {
                let mut entries = entries.iter();
                entries.find_map(|e| e.node.find_null(&format!("{path}.{}", e.key)))
            }
        }
    }

    /// The value without lines and without fields that are null, which
    /// Kubernetes takes as absent.
    pub(in crate::world) fn to_json(&self) -> serde_json::Value {
        let is_null = |node: &Self| node.value == Value::Scalar(serde_json::Value::Null);
        match &self.value {
            Value::Scalar(scalar) => scalar.clone(),
            Value::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Value::Mapping(entries) => {
                let entries = entries.iter().filter(|e| !is_null(&e.node));
                entries.map(|e| (e.key.clone(), e.node.to_json())).collect()
            }
        }
    }
}

fn after_key<'a>(field: &'a str, key: &str) -> Option<&'a str> {
    let rest = field.strip_prefix(key)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
}

fn after_index(field: &str) -> Option<(usize, &str)> {
    let (index, rest) = field.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

fn line_number(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX).max(1)
}

/// Parser messages may go on with a picture of the text; the place is told by
/// the rejection already.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: line_number(spanned.referenced.line()), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has too")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(serde_json::Value::Null))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(serde_json::Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = access.next_entry::<Spanned<String>, Node>()? {
            let line = line_number(key.referenced.line());
            entries.push(Entry { key: key.value, line, node });
        }
        Ok(Value::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
kind: X
metadata:
  labels:
    app.kubernetes.io/name: a
    app: b
spec:
  ports:
    - 80
    - \"81\"
    - name: x
      empty:
  8080: {a: 1, b: [true, null]}
";

    #[test]
    fn every_part_knows_its_line() {
        let node = Node::parse(TEXT).unwrap();
        for (field, line) in [
            ("", 1),
            ("kind", 1),
            ("metadata.labels.app.kubernetes.io/name", 4),
            ("metadata.labels.app", 5),
            ("spec", 6),
            ("spec.ports[1]", 9),
            ("spec.ports[2].empty", 11),
            ("spec.ports[2].missing", 10),
            ("spec.ports[7].missing", 7),
            ("spec.8080.b[1]", 12),
            ("nothing", 1),
        ] {
            assert_eq!(node.line_of(field), line, "{field}");
        }
    }

    #[test]
    fn becomes_json_without_nulls() {
        let json = Node::parse(TEXT).unwrap().to_json();
        assert_eq!(json["spec"]["ports"][0], 80);
        assert_eq!(json["spec"]["ports"][1], "81");
        assert_eq!(json["spec"]["8080"]["a"], 1);
        assert!(json["spec"]["ports"][2].get("empty").is_none());
    }

    #[test]
    fn finds_nulls() {
        let node = Node::parse(TEXT).unwrap();
        assert_eq!(node.find_null("").as_deref(), Some(".spec.ports[2].empty"));
    }

    #[test]
    fn syntax_errors_have_a_line_and_one_sentence() {
        let error = Node::parse("a: 1\nb: [1\nc: 2\n").unwrap_err();
        assert!(error.line >= 2, "{error:?}");
        assert!(!error.reason.is_empty() && !error.reason.contains('\n'), "{error:?}");
    }

    #[test]
    fn repeated_keys_are_refused() {
        let error = Node::parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(error.line, 3, "{error:?}");
    }

    #[test]
    fn alias_bombs_and_towers_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..9 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb += &format!("a{i}: &a{i} [{list}]\n");
        }
        assert!(Node::parse(&bomb).is_err());
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
        assert!(Node::parse(&"a:\n ".repeat(5_000)).is_err());
    }
}
