// SPDX-License-Identifier: Apache-2.0
//! The CEL rules, evaluated here: a mistake in a rule shows within milliseconds. `tests/api` asks the real server.

use std::collections::BTreeMap;
use std::path::Path;

use isthmus_api::crds;
use kube::core::cel::Validator;
use serde_json::Value;

/// The objects of a folder of the repository with the files that they stand in.
fn objects(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let files = std::fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .flat_map(|path| {
            let text = std::fs::read_to_string(&path).expect("the file");
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
            documents.into_iter().map(move |document| (text.clone(), document))
        })
        .collect()
}

/// Schemas of the stored versions, by kind.
fn schemas() -> BTreeMap<String, Value> {
    let kind = |crd: &Value| crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    let schema = |crd: &Value| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    crds::all().iter().map(|crd| (kind(crd), schema(crd))).collect()
}

fn refusals(schemas: &BTreeMap<String, Value>, object: &Value) -> Vec<String> {
    let schema = &schemas[object["kind"].as_str().expect("a kind")];
    match Validator::new().validate(schema, object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => vec![errors.to_string()],
    }
}

#[test]
fn no_rule_refuses_a_sample() {
    let schemas = schemas();
    for (text, object) in objects("config/samples") {
        assert_eq!(refusals(&schemas, &object), [""; 0], "{text}");
    }
}

#[test]
fn every_mistake_that_a_rule_is_about_is_refused_by_it() {
    let schemas = schemas();
    let rules = serde_json::to_string(&schemas).expect("JSON");
    let mut asked = 0;
    for (text, object) in objects("tests/api/wrong") {
        let expected =
            text.lines().find_map(|line| line.strip_prefix("# refused: ")).expect("a line `# refused: …`");
        // What types, bounds and enums refuse is the server's own message, in no rule.
        if rules.contains(expected) {
            asked += 1;
            let said = refusals(&schemas, &object).concat();
            assert!(said.contains(expected), "expected: {expected}; got: {said}\n{text}");
        }
    }
    assert!(asked > 20, "only {asked} wrong samples are about rules");
}
