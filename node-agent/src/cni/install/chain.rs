//! A primary plugin's configuration with ours behind it.

use serde_json::{Map, Value};

use crate::cni::PLUGIN;

/// The list that embeds `primary`, with `ours` as its last plugin. The network's name stays: address management keeps
/// its books under it. A single plugin becomes a list of one. Ours is never in it twice.
pub(super) fn chained(primary: &[u8], ours: &Value) -> Result<Vec<u8>, String> {
    let value: Value = serde_json::from_slice(primary).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut list) = value else { return Err("not an object".to_owned()) };
    if !list.contains_key("plugins") {
        list = as_list(list)?;
    }
    let Some(Value::Array(plugins)) = list.get_mut("plugins") else {
        return Err("plugins: not a list".to_owned());
    };
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    if plugins.is_empty() {
        return Err("plugins: there is none that would make an interface".to_owned());
    }
    if plugins.iter().any(|plugin| plugin.get("type").and_then(Value::as_str).is_none()) {
        return Err("plugins: one has no type".to_owned());
    }
    plugins.push(ours.clone());
    for field in ["cniVersion", "name"] {
        if list.get(field).and_then(Value::as_str).is_none() {
            return Err(format!("{field} is missing"));
        }
    }
    let mut text = serde_json::to_vec_pretty(&Value::Object(list)).map_err(|error| error.to_string())?;
    text.push(b'\n');
    Ok(text)
}

/// A single plugin's configuration as a list of one: version and name are the list's.
fn as_list(mut plugin: Map<String, Value>) -> Result<Map<String, Value>, String> {
    if !plugin.contains_key("type") {
        return Err("neither a plugin, which has a type, nor a list, which has plugins".to_owned());
    }
    let mut list = Map::new();
    for field in ["cniVersion", "name"] {
        if let Some(value) = plugin.remove(field) {
            list.insert(field.to_owned(), value);
        }
    }
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin)]));
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours() -> Value {
        json!({"type": PLUGIN, "socket": "/s"})
    }

    fn chain(primary: &Value) -> Result<Value, String> {
        chained(primary.to_string().as_bytes(), &ours()).map(|text| serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn a_list_gets_one_plugin_more_and_keeps_the_rest() {
        let primary = json!({"cniVersion": "1.0.0", "name": "net", "disableCheck": true,
            "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]});
        let wanted = json!({"cniVersion": "1.0.0", "name": "net", "disableCheck": true,
            "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}, ours()]});
        assert_eq!(chain(&primary).unwrap(), wanted);
        assert_eq!(chain(&wanted).unwrap(), wanted, "ours is in it already");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_the_same_name() {
        let primary = json!({"cniVersion": "0.4.0", "name": "net", "type": "bridge", "mtu": 1400});
        let wanted =
            json!({"cniVersion": "0.4.0", "name": "net", "plugins": [{"type": "bridge", "mtu": 1400}, ours()]});
        assert_eq!(chain(&primary).unwrap(), wanted);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for primary in [
            json!([]),
            json!({"cniVersion": "1.0.0", "name": "net"}),
            json!({"cniVersion": "1.0.0", "name": "net", "plugins": {}}),
            json!({"cniVersion": "1.0.0", "name": "net", "plugins": []}),
            json!({"cniVersion": "1.0.0", "name": "net", "plugins": [ours()]}),
            json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"mtu": 1}]}),
            json!({"cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}),
            json!({"name": "net", "plugins": [{"type": "bridge"}]}),
        ] {
            assert!(chain(&primary).is_err(), "{primary}");
        }
        assert!(chained(b"{\"cniVersion\":", &ours()).is_err());
    }
}
