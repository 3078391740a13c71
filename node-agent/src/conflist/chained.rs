// SPDX-License-Identifier: Apache-2.0
//! The configuration behind another plugin: its list, with ours at the end, in a file that sorts before its own.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use isthmus_cni::SUPPORTED_VERSIONS;
use serde_json::{Map, Value, json};

/// More than any list of plugins needs.
const MAX_BYTES: u64 = 1 << 20;
const OURS: &str = "isthmus-cni";

/// Another plugin's configuration: the first that a runtime would take if ours were not there, and none if there is none.
///
/// # Errors
/// Ours cannot be put behind it, perhaps since it is just being written; why.
pub(super) fn primary(directory: &Path, own: &[&str]) -> io::Result<Option<(PathBuf, Value)>> {
    for path in candidates(directory, own)? {
        match read(&path).and_then(|bytes| behind(&bytes)) {
            Ok(Some(list)) => return Ok(Some((path, list))),
            Ok(None) => {}
            Err(why) => {
                let why = format!("isthmus-cni cannot come behind {}: {why}", path.display());
                return Err(io::Error::other(why));
            }
        }
    }
    Ok(None)
}

/// What runtimes read, in their order (libcni, ConfFiles).
fn candidates(directory: &Path, own: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_read = matches!(path.extension().and_then(OsStr::to_str), Some("conf" | "conflist" | "json"));
        let name = path.file_name().and_then(OsStr::to_str);
        if is_read && name.is_some_and(|name| !own.contains(&name)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_BYTES { Err("it is longer than 1 MiB".to_owned()) } else { Ok(bytes) }
}

/// A list, or a single plugin's configuration, as a list with ours at its end. All else stays as it is. None for that of the
/// loopback interface.
fn behind(primary: &[u8]) -> Result<Option<Value>, String> {
    let value: Value = serde_json::from_slice(primary).map_err(|error| error.to_string())?;
    let Value::Object(mut list) = value else { return Err("it is no JSON object".to_owned()) };
    if list.contains_key("type") && !list.contains_key("plugins") {
        list = alone(list);
    }
    let version = list.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    if !SUPPORTED_VERSIONS.contains(&version) {
        return Err(format!(
            "its cniVersion is {version}, and isthmus-cni speaks {}",
            SUPPORTED_VERSIONS.join(", ")
        ));
    }
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let plugins = plugins.ok_or("it lists no plugins")?;
    let kinds: Vec<&str> = plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
    match kinds.first() {
        None => return Err("it lists no plugins".to_owned()),
        Some(&"loopback") => return Ok(None),
        Some(_) if kinds.contains(&OURS) => {
            return Err(format!("it names {OURS} itself; take that out, the agent puts it there"));
        }
        Some(_) => {}
    }
    plugins.push(json!({ "type": OURS }));
    Ok(Some(Value::Object(list)))
}

/// A list of one plugin (libcni, ConfListFromConf).
fn alone(plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        list.extend(plugin.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    list.insert("plugins".to_owned(), json!([plugin]));
    list
}

/// Whether it is such a list, from whatever the other plugin's configuration was then.
pub(super) fn has_our_shape(found: &[u8]) -> bool {
    let list: Value = serde_json::from_slice(found).unwrap_or_default();
    let plugins = list["plugins"].as_array();
    plugins.is_some_and(|plugins| plugins.len() > 1 && plugins.last() == Some(&json!({ "type": OURS })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(primary: Value) -> Result<Option<Value>, String> {
        behind(primary.to_string().as_bytes())
    }

    #[test]
    fn azures_list_stays_as_it_is_but_for_ours_at_the_end() {
        let azure = json!({"cniVersion": "0.3.0", "name": "azure", "adapterName": "", "plugins": [
            {"type": "azure-vnet", "mode": "transparent", "ipsToRouteViaHost": ["169.254.20.10"], "ipam": {"type": "azure-vnet-ipam"}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]});
        let mut expected = azure.clone();
        expected["plugins"].as_array_mut().unwrap().push(json!({"type": "isthmus-cni"}));
        assert_eq!(merged(azure).unwrap().unwrap(), expected);
        assert!(has_our_shape(expected.to_string().as_bytes()));
    }

    #[test]
    fn a_single_plugins_configuration_becomes_a_list_of_its_name_and_version() {
        let conf = json!({"cniVersion": "1.0.0", "name": "n", "type": "ptp", "ipam": {"type": "host-local"}});
        let list = merged(conf.clone()).unwrap().unwrap();
        assert_eq!(
            (&list["name"], &list["cniVersion"], &list["plugins"][0]),
            (&json!("n"), &json!("1.0.0"), &conf)
        );
        assert_eq!(list["plugins"][1]["type"], "isthmus-cni");
    }

    #[test]
    fn what_ours_cannot_be_put_behind_is_refused_with_the_reason() {
        let list =
            |version: Value, plugins: Value| json!({"cniVersion": version, "name": "n", "plugins": plugins});
        let ptp = json!([{"type": "ptp"}]);
        for (primary, words) in [
            (list(json!("0.2.0"), ptp.clone()), "0.2.0"),
            (list(Value::Null, ptp), "0.1.0"),
            (list(json!("1.0.0"), json!([])), "no plugins"),
            (list(json!("1.0.0"), json!([{"type": "ptp"}, {"type": "isthmus-cni"}])), "itself"),
            (json!([]), "no JSON object"),
        ] {
            let why = merged(primary).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
