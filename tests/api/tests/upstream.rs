// SPDX-License-Identifier: Apache-2.0
//! Our definitions of the Multi-Cluster Services API beside upstream's, field by field.

use std::path::PathBuf;
use std::process::Command;

use isthmus_api::crds;
use isthmus_api_tests::repository;
use serde_json::Value;

#[test]
fn service_export_is_what_upstream_defines() {
    same_as_upstream("serviceexports");
}

#[test]
fn service_import_is_what_upstream_defines() {
    same_as_upstream("serviceimports");
}

fn same_as_upstream(plural: &str) {
    let file = upstream_module().join(format!("config/crd/multicluster.x-k8s.io_{plural}.yaml"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let theirs: Value = serde_saphyr::from_str(&text).expect("YAML");
    let name = format!("{plural}.multicluster.x-k8s.io");
    let ours = crds::all().into_iter().find(|crd| crds::name(crd) == name).expect("our definition");

    let mut differences = Vec::new();
    compare(plural, &ours, &theirs, &mut differences);

    assert_eq!(differences, [""; 0]);
}

/// Compares everything but words for people, and labels that only ours has.
fn compare(path: &str, ours: &Value, theirs: &Value, differences: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let mut keys: Vec<_> = ours.keys().chain(theirs.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let is_text =
                    key == "description" && theirs.get(key).or(ours.get(key)).is_some_and(Value::is_string);
                if !is_text && key != "app.kubernetes.io/part-of" {
                    let none = Value::Null;
                    let (our, their) = (ours.get(key).unwrap_or(&none), theirs.get(key).unwrap_or(&none));
                    compare(&format!("{path}.{key}"), our, their, differences);
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (at, (our, their)) in ours.iter().zip(theirs).enumerate() {
                compare(&format!("{path}[{at}]"), our, their, differences);
            }
        }
        _ if ours == theirs => {}
        _ => differences.push(format!("{path}: ours {ours}, upstream's {theirs}")),
    }
}

/// Where Go keeps the module that `upstream/go.mod` pins.
fn upstream_module() -> PathBuf {
    let go = |arguments: &[&str]| {
        let output =
            Command::new("go").args(arguments).current_dir(repository().join("tests/api/upstream")).output();
        let output = output.expect("go runs; cargo xtask deps says how to install it");
        assert!(output.status.success(), "go {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    go(&["mod", "download", "sigs.k8s.io/mcs-api"]);
    PathBuf::from(go(&["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/mcs-api"]))
}
