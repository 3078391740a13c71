// SPDX-License-Identifier: Apache-2.0
//! The files of `crds/` as text.

use isthmus_api::crds;
use std::path::{Path, PathBuf};

const HEADER: &str = "# SPDX-License-Identifier: Apache-2.0\n\
    # Generated from crates/api: cargo run -p isthmus-api --example crdgen. Do not edit.\n";

/// Every file of `crds/` with its text.
pub(crate) fn files() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    let mut index =
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n".to_owned();
    let mut files = Vec::new();
    for crd in crds::all() {
        let name = format!("{}.yaml", crds::name(&crd));
        index += &format!("  - {name}\n");
        let body = serde_yaml::to_string(&crd).expect("a definition is YAML");
        files.push((folder.join(name), format!("{HEADER}{body}")));
    }
    files.push((folder.join("kustomization.yaml"), format!("{HEADER}{index}")));
    files
}
