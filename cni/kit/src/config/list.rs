// SPDX-License-Identifier: Apache-2.0
//! A network: a list of plugins that are called one after the other (CNI 1.1.0, section 1).

use serde_json::{Map, Value};

use super::object;
use crate::error::{Error, code};
use crate::names::{check_network_name, check_plugin_type};
use crate::version::Version;

/// A network's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Name of the network.
    pub name: String,
    /// The version spoken with all of its plugins.
    pub version: Version,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// Only the plugins of the list count, no files beside it.
    pub only_inlined: bool,
    /// The plugins' configurations, in the order of ADD, as they were written.
    pub plugins: Vec<Map<String, Value>>,
    /// The whole list, as it was written.
    pub raw: Map<String, Value>,
}

fn invalid(msg: impl Into<String>) -> Error {
    Error::new(code::INVALID_CONFIG, msg)
}

/// A switch: true, false, or one of them as text.
fn switch(raw: &Map<String, Value>, key: &str) -> Result<bool, Error> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(invalid(format!("{key} is neither true nor false: {other}"))),
    }
}

fn version(raw: &Map<String, Value>, own: Version) -> Result<Version, Error> {
    let mut offered: Vec<&str> = Vec::new();
    match raw.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => offered.extend(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => return Err(invalid("cniVersion is not a string")),
    }
    match raw.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(all)) => {
            for one in all {
                offered.push(
                    one.as_str().ok_or_else(|| invalid("cniVersions has something that is not a string"))?,
                );
            }
        }
        Some(_) => return Err(invalid("cniVersions is not a list")),
    }
    if offered.is_empty() {
        return Ok(Version::OLDEST);
    }
    Version::negotiate(offered.iter().copied(), own).ok_or_else(|| {
        Error::new(
            code::INCOMPATIBLE_VERSION,
            format!("none of the versions {offered:?} is spoken up to {own}"),
        )
    })
}

/// A plugin of a list must be an object with a `type`.
pub(super) fn plugin(value: Value) -> Result<Map<String, Value>, Error> {
    let Value::Object(map) = value else { return Err(invalid("a plugin of the list is not an object")) };
    check_plugin_type(map.get("type").and_then(Value::as_str).unwrap_or_default())?;
    Ok(map)
}

impl NetworkList {
    /// Reads the text of a `.conflist`. Takes the highest version offered that is not above `own`. Code 6 for what
    /// is no JSON object, code 1 for versions that are not spoken, code 7 for what breaks the list's form.
    pub fn parse(bytes: &[u8], own: Version) -> Result<Self, Error> {
        let raw = object(bytes, "the network list")?;
        let name = raw.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        check_network_name(&name)?;
        let only_inlined = switch(&raw, "loadOnlyInlinedPlugins")?;
        let plugins = match raw.get("plugins") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(all)) => all.iter().cloned().map(plugin).collect::<Result<_, _>>()?,
            Some(_) => return Err(invalid("plugins is not a list")),
        };
        if only_inlined && plugins.is_empty() {
            return Err(invalid(format!("network {name} loads only inlined plugins and has none")));
        }
        Ok(Self {
            version: version(&raw, own)?,
            disable_check: switch(&raw, "disableCheck")?,
            disable_gc: switch(&raw, "disableGC")?,
            name,
            only_inlined,
            plugins,
            raw,
        })
    }

    /// Makes a list out of the text of a `.conf`, the configuration of a single plugin. Errors as for a list.
    pub fn of_single(bytes: &[u8], own: Version) -> Result<Self, Error> {
        let conf = object(bytes, "the network configuration")?;
        let name = conf.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        check_network_name(&name)?;
        let version = version(&conf, own)?;
        let plugin = plugin(Value::Object(conf))?;
        let mut raw = Map::new();
        raw.insert("cniVersion".to_owned(), Value::from(version.as_str()));
        raw.insert("name".to_owned(), Value::from(name.as_str()));
        raw.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin.clone())]));
        let plugins = vec![plugin];
        Ok(Self { name, version, disable_check: false, disable_gc: false, only_inlined: true, plugins, raw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkList, Error> {
        NetworkList::parse(text.as_bytes(), Version::NEWEST)
    }

    #[test]
    fn r8_a_list_is_spoken_in_the_highest_version_it_offers() {
        let text = r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","3.0.0"],"name":"a","plugins":[{"type":"x"}]}"#;
        assert_eq!(parse(text).unwrap().version, Version::V1_1_0);
        let older = NetworkList::parse(text.as_bytes(), Version::V1_0_0).unwrap();
        assert_eq!(older.version, Version::V1_0_0);
        assert_eq!(parse(r#"{"cniVersion":"3.0.0","name":"a"}"#).map_err(|error| error.code), Err(1));
    }

    #[test]
    fn r9_switches_are_read_as_booleans_and_as_text() {
        let list = parse(r#"{"name":"a","disableCheck":"true","disableGC":true}"#).unwrap();
        assert!(list.disable_check && list.disable_gc && !list.only_inlined);
        assert!(!parse(r#"{"name":"a","disableCheck":"false"}"#).unwrap().disable_check);
        assert_eq!(parse(r#"{"name":"a","disableGC":"maybe"}"#).map_err(|error| error.code), Err(7));
    }

    #[test]
    fn r9_only_inlined_plugins_without_any_is_an_error() {
        let text = r#"{"name":"a","loadOnlyInlinedPlugins":true,"plugins":[]}"#;
        assert_eq!(parse(text).map_err(|error| error.code), Err(7));
    }

    #[test]
    fn p4_a_list_with_a_bad_name_or_a_plugin_that_is_a_path_is_refused_with_code_7() {
        for bad in [
            r#"{"name":"a/b"}"#,
            r#"{}"#,
            r#"{"name":"a","plugins":[{"type":"../sh"}]}"#,
            r#"{"name":"a","plugins":[{}]}"#,
        ] {
            assert_eq!(parse(bad).map_err(|error| error.code), Err(7), "{bad}");
        }
    }

    #[test]
    fn r9_a_single_configuration_becomes_a_list_of_one() {
        let text = br#"{"cniVersion":"0.4.0","name":"a","type":"x","own":1}"#;
        let list = NetworkList::of_single(text, Version::NEWEST).unwrap();
        assert_eq!((list.name.as_str(), list.version), ("a", Version::V0_4_0));
        assert_eq!(list.plugins[0]["own"], 1);
    }
}
