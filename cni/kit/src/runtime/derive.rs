// SPDX-License-Identifier: Apache-2.0
//! What one plugin of a list is sent (CNI 1.1.0, section 3, "Deriving request configuration from plugin
//! configuration").

use serde_json::{Map, Value};

use crate::config::list::NetworkList;

/// Derives the request for one plugin: `cniVersion`, `name`, `runtimeConfig` and `prevResult` are set, `capabilities`
/// and the user's keys that begin with `cni.dev/` are gone, and everything else is as it was written.
///
/// `supplied` holds what the runtime has for each capability; a plugin gets what it declares as `true`.
pub fn request(
    list: &NetworkList,
    plugin: &Map<String, Value>,
    supplied: &Map<String, Value>,
    prev_result: Option<&Value>,
) -> Map<String, Value> {
    let mut request = plugin.clone();
    request.retain(|key, _| !key.starts_with("cni.dev/"));
    let declared = request.remove("capabilities");
    let declared = declared.as_ref().and_then(Value::as_object);
    let wanted = |name: &str| declared.and_then(|all| all.get(name)) == Some(&Value::Bool(true));
    let granted: Map<String, Value> = supplied
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !granted.is_empty() {
        request.insert("runtimeConfig".to_owned(), Value::Object(granted));
    }
    request.insert("cniVersion".to_owned(), Value::from(list.version.as_str()));
    request.insert("name".to_owned(), Value::from(list.name.as_str()));
    // What a file says about a previous result is never true.
    request.remove("prevResult");
    if let Some(result) = prev_result {
        request.insert("prevResult".to_owned(), result.clone());
    }
    request
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::version::Version;

    fn derive(plugin: Value, supplied: Value, prev: Option<&Value>) -> Value {
        let text = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}).to_string();
        let list = NetworkList::parse(text.as_bytes(), Version::NEWEST).unwrap();
        Value::Object(request(&list, &list.plugins[0], supplied.as_object().unwrap(), prev))
    }

    #[test]
    fn r7_only_capabilities_that_are_declared_and_supplied_become_runtime_config() {
        let plugin = json!({"type": "x", "capabilities": {"mac": true, "ips": false, "dns": true}});
        let request = derive(plugin, json!({"mac": "a", "ips": [], "aliases": []}), None);
        let expected =
            json!({"type": "x", "cniVersion": "1.0.0", "name": "net", "runtimeConfig": {"mac": "a"}});
        assert_eq!(request, expected);
    }

    #[test]
    fn r7_reserved_keys_are_dropped_and_every_other_field_is_unchanged() {
        let plugin = json!({"type": "x", "cni.dev/valid-attachments": [], "prevResult": {}, "name": "lie", "own": {"a": [1, null]}});
        let expected = json!({"type": "x", "cniVersion": "1.0.0", "name": "net", "own": {"a": [1, null]}});
        assert_eq!(derive(plugin, json!({}), None), expected);
    }

    #[test]
    fn r7_the_previous_result_is_set() {
        let prev = json!({"cniVersion": "1.0.0"});
        assert_eq!(derive(json!({"type": "x"}), json!({}), Some(&prev))["prevResult"], prev);
    }
}
