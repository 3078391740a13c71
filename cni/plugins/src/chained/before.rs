// SPDX-License-Identifier: Apache-2.0
//! What `tuning` puts back: a file for each attachment.

use serde::{Deserialize, Serialize};

/// What an interface had before, as far as it was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Before {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tx_queue_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allmulti: Option<bool>,
}

impl Before {
    /// Reads a file. One that is none, such as after a full disk, says nothing.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// The file's content.
    pub(crate) fn bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_is_read_back_as_it_was_written() {
        let before =
            Before { mac: Some("0a:58:00:00:00:01".to_owned()), mtu: Some(1500), ..Before::default() };
        let text = before.bytes().unwrap();
        assert_eq!(text, br#"{"mac":"0a:58:00:00:00:01","mtu":1500}"#);
        assert_eq!(Before::parse(&text), before);
        assert_eq!(Before::parse(b"{\"mtu\":"), Before::default());
    }
}
