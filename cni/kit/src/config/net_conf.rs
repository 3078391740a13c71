// SPDX-License-Identifier: Apache-2.0
//! The configuration of one plugin, as it comes on standard input (CNI 1.1.0, section 1 and section 3).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::capabilities::{Capability, spelled};
use super::object;
use crate::error::{Error, code};
use crate::result::{AddResult, Dns};
use crate::version::Version;

/// Key of the attachments that GC has to keep.
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The same, as earlier runtimes spelled it.
pub const OLD_ATTACHMENTS: &str = "cni.dev/attachments";

/// A plugin's configuration. Every field that came is kept, known or not.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    raw: Map<String, Value>,
    version: Version,
}

/// An attachment that GC has to keep.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// Container id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Name of the interface inside the container.
    pub ifname: String,
}

fn mistyped(key: &str, wanted: &str) -> Error {
    Error::new(code::INVALID_CONFIG, format!("{key} of the configuration is not {wanted}"))
}

impl NetConf {
    /// Reads a configuration. Code 6 for what is no JSON object, code 1 for a version that is not known. Without
    /// `cniVersion` it is of 0.1.0.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_map(object(bytes, "the configuration")?)
    }

    /// The same from an object that is read already.
    pub fn from_map(raw: Map<String, Value>) -> Result<Self, Error> {
        let version = match raw.get("cniVersion") {
            None | Some(Value::Null) => Version::OLDEST,
            Some(Value::String(text)) if text.is_empty() => Version::OLDEST,
            Some(Value::String(text)) => text
                .parse::<Version>()
                .map_err(|error| Error::new(code::INCOMPATIBLE_VERSION, error.to_string()))?,
            Some(_) => return Err(mistyped("cniVersion", "a string")),
        };
        Ok(Self { raw, version })
    }

    /// Every field, as it came.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The version that the configuration is written in, and results are to be printed in.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A field that is text; empty if it is absent or something else.
    fn text(&self, key: &str) -> &str {
        self.raw.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// Name of the network; may be empty.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// Type of the plugin, the name of its file; may be empty.
    pub fn plugin_type(&self) -> &str {
        self.text("type")
    }

    /// Type of the IPAM plugin, if one is set.
    pub fn ipam_type(&self) -> Option<&str> {
        self.raw.get("ipam")?.get("type")?.as_str().filter(|text| !text.is_empty())
    }

    /// Name resolution that the administrator set. Code 7 if it has another shape.
    pub fn dns(&self) -> Result<Dns, Error> {
        match self.raw.get("dns") {
            None | Some(Value::Null) => Ok(Dns::default()),
            Some(value) => serde_json::from_value(value.clone()).map_err(|error| {
                mistyped("dns", "of the specification's shape").with_details(error.to_string())
            }),
        }
    }

    /// Result of the plugin before this one, or of ADD. Code 6 if it cannot be read.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        match self.raw.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => AddResult::from_json(value, self.version).map(|(_, result)| Some(result)),
        }
    }

    /// The plugin's own fields, as a type that passes over all others. Code 7 if one has another shape.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(Value::Object(self.raw.clone())).map_err(|error| {
            let msg = "a field of the configuration has another shape";
            Error::new(code::INVALID_CONFIG, msg).with_details(error.to_string())
        })
    }

    /// Whether the plugin declares a capability.
    pub fn has_capability(&self, name: &str) -> bool {
        self.raw.get("capabilities").and_then(|all| all.get(name)) == Some(&Value::Bool(true))
    }

    /// What the runtime supplied for a capability.
    pub fn runtime_config(&self, name: &str) -> Option<&Value> {
        self.raw.get("runtimeConfig")?.get(name)
    }

    /// The same with its type, such as [`PortMappings`](super::capabilities::PortMappings). None if nothing was supplied; code 7 if it
    /// has another shape.
    pub fn capability<T: Capability>(&self) -> Result<Option<T>, Error> {
        match self.runtime_config(T::NAME) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(spelled(value, T::FIELDS)).map(Some).map_err(|error| {
                let msg = format!("{} of runtimeConfig is not of the conventions' shape", T::NAME);
                Error::new(code::INVALID_CONFIG, msg).with_details(error.to_string())
            }),
        }
    }

    /// A field of `args.cni`, which goes before the same in `CNI_ARGS`.
    pub fn arg(&self, name: &str) -> Option<&Value> {
        self.raw.get("args")?.get("cni")?.get(name)
    }

    /// What GC has to keep, under the new key or else the old one. Code 7 if there is neither, or it has another
    /// shape: an absent list must not be taken for an empty one, which would take everything away.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        let listed = [VALID_ATTACHMENTS, OLD_ATTACHMENTS].into_iter().find_map(|key| self.raw.get(key));
        match listed {
            None => Err(mistyped(VALID_ATTACHMENTS, "there")),
            // Go writes an empty list as null.
            Some(Value::Null) => Ok(Vec::new()),
            Some(value) => serde_json::from_value(value.clone()).map_err(|error| {
                mistyped(VALID_ATTACHMENTS, "a list of attachments").with_details(error.to_string())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_a_configuration_without_a_version_is_of_0_1_0() {
        assert_eq!(NetConf::parse(b"{}").map(|conf| conf.version()), Ok(Version::V0_1_0));
        assert_eq!(NetConf::parse(b"{\"cniVersion\":\"8.0.0\"}").map_err(|error| error.code), Err(1));
        assert_eq!(NetConf::parse(b"[]").map_err(|error| error.code), Err(6));
    }

    #[test]
    fn p15_unknown_fields_are_kept_and_runtime_config_and_args_are_found() {
        let conf = NetConf::parse(
            br#"{"x":{"y":1},"capabilities":{"mac":true,"dns":false},"runtimeConfig":{"mac":"a"},"args":{"cni":{"ips":[]}},"ipam":{"type":"static"}}"#,
        )
        .unwrap();
        assert_eq!(conf.raw()["x"]["y"], 1);
        assert!(conf.has_capability("mac") && !conf.has_capability("dns"));
        assert_eq!(conf.runtime_config("mac"), Some(&Value::from("a")));
        assert!(conf.arg("ips").is_some());
        assert_eq!(conf.ipam_type(), Some("static"));
    }

    #[test]
    fn p15_a_plugins_own_fields_are_read_and_one_of_another_shape_is_refused_with_code_7() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Own {
            mtu: u32,
        }
        let read = |text: &str| NetConf::parse(text.as_bytes()).unwrap().settings::<Own>();
        assert_eq!(read(r#"{"type":"x","mtu":1400}"#), Ok(Own { mtu: 1400 }));
        assert_eq!(read(r#"{"type":"x","mtu":"wide"}"#).map_err(|error| error.code), Err(7));
    }

    #[test]
    fn p12_valid_attachments_are_read_under_both_keys_and_must_not_be_absent() {
        let read = |text: &str| NetConf::parse(text.as_bytes()).unwrap().valid_attachments();
        let one = Attachment { container_id: "a".to_owned(), ifname: "eth0".to_owned() };
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let text = format!("{{\"{key}\":[{{\"containerID\":\"a\",\"ifname\":\"eth0\"}}]}}");
            assert_eq!(read(&text), Ok(vec![one.clone()]));
        }
        assert_eq!(read("{\"cni.dev/valid-attachments\":null}"), Ok(Vec::new()));
        assert_eq!(read("{}").map_err(|error| error.code), Err(7));
        assert_eq!(read("{\"cni.dev/valid-attachments\":[{}]}").map_err(|error| error.code), Err(7));
    }

    #[test]
    fn too_large_and_too_deep_configurations_are_refused() {
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(super::super::MAX_BYTES));
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        for bad in [large, deep] {
            assert_eq!(NetConf::parse(bad.as_bytes()).map_err(|error| error.code), Err(6));
        }
    }
}
