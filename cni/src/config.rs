// SPDX-License-Identifier: Apache-2.0
//! The network configuration on standard input, as far as we read it; unknown fields are ignored by the specification.

use serde::Deserialize;
use serde_json::Value;

use crate::error::CniError;
use crate::{SUPPORTED_VERSIONS, code};

/// A plugin configuration with what the runtime derived into it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Version of the specification; absent means 0.1.0.
    #[serde(default = "oldest")]
    pub cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// The plugin for addresses.
    pub ipam: Option<IpamConfig>,
    /// Result of the plugin before, or of the whole ADD (CHECK, DEL).
    pub prev_result: Option<Value>,
    /// GC: attachments that shall stay.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same under the key of libcni 1.2 (containernetworking/cni#1101).
    #[serde(rename = "cni.dev/attachments")]
    pub attachments: Option<Vec<ValidAttachment>>,
}

/// What a configuration says of addresses, as far as we read it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct IpamConfig {
    /// Name of the plugin; empty for ours.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Routes in place of the default ones.
    pub routes: Option<Value>,
}

/// An attachment that a GC call leaves alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ValidAttachment {
    /// Container ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Interface name in the container.
    pub ifname: String,
}

fn oldest() -> String {
    "0.1.0".to_owned()
}

impl NetworkConfig {
    /// Decodes and checks a configuration for `command`.
    ///
    /// # Errors
    /// Code 6 for what is no JSON object, 1 for a version that is not spoken or lacks the command, 7 for a bad network name.
    pub fn parse(stdin: &[u8], command: &str) -> Result<Self, CniError> {
        let config: Self = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(code::DECODING_FAILURE, format!("the network configuration is not valid: {error}"))
        })?;
        if !SUPPORTED_VERSIONS.contains(&config.cni_version.as_str()) {
            let msg = format!("cniVersion {:?} is not supported", config.cni_version);
            let details = format!("supported: {}", SUPPORTED_VERSIONS.join(", "));
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg).with_details(details));
        }
        let since = match command {
            "CHECK" => "0.4.0",
            "GC" | "STATUS" => "1.1.0",
            _ => "0.3.0",
        };
        if position(&config.cni_version) < position(since) {
            let msg = format!(
                "{command} does not exist in cniVersion {}; it came with {since}",
                config.cni_version
            );
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg));
        }
        if !is_identifier(&config.name) {
            let msg = format!("invalid network name {:?}", config.name);
            let details = "use letters, digits, '_', '.' and '-', beginning with a letter or digit";
            return Err(CniError::new(code::INVALID_CONFIG, msg).with_details(details));
        }
        Ok(config)
    }

    /// The attachments that GC leaves alone; `None` if the runtime did not say.
    pub fn kept(&self) -> Option<&[ValidAttachment]> {
        self.valid_attachments.as_deref().or(self.attachments.as_deref())
    }
}

fn position(version: &str) -> Option<usize> {
    SUPPORTED_VERSIONS.iter().position(|known| *known == version)
}

/// The form of container IDs and network names: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(stdin: &str, command: &str) -> CniError {
        NetworkConfig::parse(stdin.as_bytes(), command).unwrap_err()
    }

    #[test]
    fn a_missing_version_means_the_oldest_which_is_not_spoken() {
        assert_eq!(refused(r#"{"name":"pods"}"#, "ADD").code, code::INCOMPATIBLE_VERSION);
    }

    #[test]
    fn a_command_younger_than_the_configuration_is_refused() {
        let config = r#"{"cniVersion":"1.0.0","name":"pods"}"#;
        assert_eq!(refused(config, "GC").code, code::INCOMPATIBLE_VERSION);
        assert_eq!(refused(config, "STATUS").code, code::INCOMPATIBLE_VERSION);
        assert!(NetworkConfig::parse(config.as_bytes(), "CHECK").is_ok());
    }

    #[test]
    fn an_unknown_network_name_or_no_json_is_refused_with_its_code() {
        assert_eq!(refused(r#"{"cniVersion":"1.1.0","name":"../x"}"#, "ADD").code, code::INVALID_CONFIG);
        assert_eq!(refused("", "ADD").code, code::DECODING_FAILURE);
    }

    #[test]
    fn both_keys_of_valid_attachments_are_read() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let json = format!(
                r#"{{"cniVersion":"1.1.0","name":"p","{key}":[{{"containerID":"c","ifname":"eth0"}}]}}"#
            );
            let config = NetworkConfig::parse(json.as_bytes(), "GC").unwrap();
            assert_eq!(config.kept().unwrap()[0].container_id, "c", "{key}");
        }
    }
}
