//! What the API server sends: events of a watch, one JSON object a line, and pages of a list.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use warren_core::world::{Kind, Projected, Projection};

use super::error::WatchError;

/// One event of a watch.
#[derive(Debug)]
pub(crate) enum Event {
    /// An object is there, new or changed.
    Put(Box<Projected>),
    /// An object is gone.
    Delete(Box<Projected>),
    /// Nothing happened up to that version.
    Bookmark {
        /// The version.
        version: String,
        /// Every object that there was has been told.
        ends_list: bool,
    },
    /// The watch ends.
    Error(WatchError),
}

/// Reads one line.
pub(crate) fn event(kind: Kind, line: &[u8]) -> Result<Event, WatchError> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let event = EventSeed(kind).deserialize(&mut json).map_err(nonsense)?;
    json.end().map_err(nonsense)?;
    Ok(event)
}

/// A page of a list.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) items: Vec<Projected>,
    pub(crate) version: String,
    /// Where the next page begins; empty for the last one.
    pub(crate) next: String,
}

/// Reads a page. What is no list of the server's is an error: taken for an empty one it would delete the world.
pub(crate) fn page(kind: Kind, body: &[u8]) -> Result<Page, WatchError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let page = PageSeed(kind).deserialize(&mut json).map_err(nonsense)?;
    json.end().map_err(nonsense)?;
    Ok(page)
}

fn nonsense(error: serde_json::Error) -> WatchError {
    WatchError::Nonsense(error.to_string())
}

/// The error that a Status object means.
fn of_status(status: &Value) -> WatchError {
    let code = status.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
    let reason = status.get("reason").and_then(Value::as_str).unwrap_or_default();
    let message = status.get("message").and_then(Value::as_str).unwrap_or_default();
    match (code, reason) {
        (410, _) | (_, "Expired" | "Gone") => WatchError::Gone,
        (status, _) => WatchError::Status { status, message: message.chars().take(200).collect() },
    }
}

struct EventSeed(Kind);

impl<'de> DeserializeSeed<'de> for EventSeed {
    type Value = Event;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Event, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventSeed {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Event, A::Error> {
        let mut word = String::new();
        let mut event = None;
        while let Some(key) = access.next_key::<String>()? {
            match (key.as_str(), word.as_str()) {
                ("type", _) => word = access.next_value()?,
                ("object", "ADDED" | "MODIFIED") => {
                    event = Some(Event::Put(Box::new(access.next_value_seed(Projection(self.0))?)));
                }
                ("object", "DELETED") => {
                    event = Some(Event::Delete(Box::new(access.next_value_seed(Projection(self.0))?)));
                }
                ("object", "BOOKMARK") => event = Some(bookmark(&access.next_value()?)),
                ("object", "ERROR") => event = Some(Event::Error(of_status(&access.next_value()?))),
                // The server writes the type first; what to keep of an object cannot be known before.
                ("object", other) => return Err(A::Error::custom(format!("an event of type {other:?}"))),
                _ => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        event.ok_or_else(|| A::Error::missing_field("object"))
    }
}

fn bookmark(object: &Value) -> Event {
    let metadata = object.get("metadata");
    let version = metadata.and_then(|m| m.get("resourceVersion")).and_then(Value::as_str).unwrap_or_default();
    let ends_list = metadata.and_then(|m| m.get("annotations")?.get("k8s.io/initial-events-end"));
    Event::Bookmark { version: version.to_owned(), ends_list: ends_list.and_then(Value::as_str) == Some("true") }
}

struct PageSeed(Kind);

impl<'de> DeserializeSeed<'de> for PageSeed {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageSeed {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Page, A::Error> {
        let mut page = Page::default();
        let (mut is_list, mut has_items) = (false, false);
        while let Some(key) = access.next_key::<String>()? {
            match key.as_str() {
                "kind" => is_list = access.next_value::<String>()? == format!("{}List", self.0.as_str()),
                "metadata" => {
                    let metadata: Value = access.next_value()?;
                    let text = |field| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
                    (page.version, page.next) = (text("resourceVersion"), text("continue"));
                }
                "items" => {
                    page.items = access.next_value_seed(ItemsSeed(self.0))?;
                    has_items = true;
                }
                _ => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        if !is_list || !has_items || page.version.is_empty() {
            return Err(A::Error::custom(format!("no {}List with items and a version", self.0.as_str())));
        }
        Ok(page)
    }
}

struct ItemsSeed(Kind);

impl<'de> DeserializeSeed<'de> for ItemsSeed {
    type Value = Vec<Projected>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Projected>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed {
    type Value = Vec<Projected>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    /// How a server written in Go may spell an empty list.
    fn visit_unit<E>(self) -> Result<Vec<Projected>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<Projected>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Projection(self.0))? {
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_every_type() {
        let read = |line: &str| event(Kind::Pod, line.as_bytes());
        let put =
            read(r#"{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"n"},"spec":{"x":1}}}"#).unwrap();
        assert!(matches!(put, Event::Put(pod) if (pod.name(), pod.namespace()) == (Some("a"), Some("n"))));
        let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7",
            "annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        assert!(matches!(read(end).unwrap(), Event::Bookmark { version, ends_list: true } if version == "7"));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#;
        assert!(matches!(read(gone).unwrap(), Event::Error(WatchError::Gone)));
        for line in ["", "<html>", "{}", r#"{"object":{},"type":"ADDED"}"#, r#"{"type":"ADDED"}"#, "[1]", "{} {}"] {
            assert!(matches!(read(line), Err(WatchError::Nonsense(_))), "{line}");
        }
    }

    #[test]
    fn what_is_no_list_is_no_empty_list() {
        let read = |body: &str| page(Kind::Pod, body.as_bytes());
        let empty = read(r#"{"kind":"PodList","metadata":{"resourceVersion":"3"},"items":[]}"#).unwrap();
        assert_eq!((empty.items.len(), empty.version.as_str()), (0, "3"));
        for body in [
            "{}",
            r#"{"kind":"PodList","items":[]}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"3"}}"#,
            r#"{"kind":"Status","metadata":{"resourceVersion":"3"},"items":[]}"#,
            r#"{"kind":"NodeList","metadata":{"resourceVersion":"3"},"items":[]}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"3"},"items":[{}"#,
        ] {
            assert!(matches!(read(body), Err(WatchError::Nonsense(_))), "{body}");
        }
    }
}
