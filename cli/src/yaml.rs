// SPDX-License-Identifier: Apache-2.0
//! The only place that knows the YAML library. It prints; what users write is parsed by the API server.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One YAML document.
pub(crate) fn print<T: Serialize>(value: &T) -> Result<String> {
    serde_yaml::to_string(value).context("print as YAML")
}

/// The documents of a manifest that our own operator wrote, as JSON values.
pub(crate) fn documents(manifest: &str) -> Result<Vec<serde_json::Value>> {
    serde_yaml::Deserializer::from_str(manifest)
        .map(|document| serde_json::Value::deserialize(document).context("read the manifest"))
        .filter(|document| !matches!(document, Ok(serde_json::Value::Null)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_documents_of_a_manifest_are_left_out() {
        let found = documents("---\nkind: Secret\n---\n# nothing\n---\nkind: ClusterPeering\n").unwrap();

        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[1]["kind"], "ClusterPeering");
    }
}
