// SPDX-License-Identifier: Apache-2.0
//! Rules that hold for every field of every kind of ours.

use isthmus_api::crds;
use serde_json::Value;

/// Calls `check` with the path and schema of every field of the kinds of group isthmus.dev.
fn each_field(check: &mut dyn FnMut(&str, &Value)) {
    for crd in crds::all() {
        if crd["spec"]["group"] == "isthmus.dev" {
            for version in crd["spec"]["versions"].as_array().unwrap() {
                walk(
                    crd["spec"]["names"]["kind"].as_str().unwrap(),
                    &version["schema"]["openAPIV3Schema"],
                    check,
                );
            }
        }
    }
}

fn walk(path: &str, schema: &Value, check: &mut dyn FnMut(&str, &Value)) {
    check(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, check);
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&format!("{path}{mark}"), &schema[key], check);
        }
    }
}

fn wrong(mut is_wrong: impl FnMut(&str, &Value) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    each_field(&mut |path, schema| {
        if is_wrong(path, schema) {
            found.push(path.to_owned());
        }
    });
    found
}

#[test]
fn every_field_has_a_description() {
    let ours_to_say =
        |path: &str| !path.ends_with(".metadata") && !path.ends_with("[]") && !path.ends_with("{}");
    assert_eq!(
        wrong(|path, schema| ours_to_say(path) && schema["description"].as_str().is_none_or(str::is_empty)),
        [""; 0]
    );
}

#[test]
fn every_list_has_a_type_and_a_bound() {
    let open = |schema: &Value| schema["x-kubernetes-list-type"].is_null() || schema["maxItems"].is_null();
    assert_eq!(wrong(|_, schema| schema["type"] == "array" && open(schema)), [""; 0]);
}

#[test]
fn every_string_and_map_is_bounded() {
    let typed_by_kubernetes =
        |path: &str| path.ends_with(".apiVersion") || path.ends_with(".kind") || path.ends_with(".metadata");
    let bounded = |schema: &Value| {
        schema["maxLength"].is_u64() || schema["enum"].is_array() || schema["format"] == "date-time"
    };
    assert_eq!(
        wrong(|path, schema| schema["type"] == "string" && !typed_by_kubernetes(path) && !bounded(schema)),
        [""; 0]
    );
    assert_eq!(
        wrong(|_, schema| schema["additionalProperties"].is_object() && schema["maxProperties"].is_null()),
        [""; 0]
    );
}

#[test]
fn no_item_of_a_list_has_a_default() {
    assert_eq!(wrong(|path, schema| path.contains("[]") && !schema["default"].is_null()), [""; 0]);
}

#[test]
fn every_rule_has_a_message_that_names_no_expression() {
    let mut found = Vec::new();
    each_field(&mut |path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default();
            if message.is_empty() || message.contains("self") || rule["reason"].is_null() {
                found.push(format!("{path}: {rule}"));
            }
        }
    });
    assert_eq!(found, [""; 0]);
}

#[test]
fn every_kind_shows_whether_it_is_ready_and_why_not() {
    for crd in crds::all().iter().filter(|crd| crd["spec"]["group"] == "isthmus.dev") {
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let names: Vec<_> = columns.iter().filter_map(|column| column["name"].as_str()).collect();
        assert!(names.ends_with(&["Ready", "Reason", "Message", "Age"]), "{}: {names:?}", crds::name(crd));
        assert_eq!(crd["spec"]["names"]["categories"][0], "isthmus", "{}", crds::name(crd));
        assert!(crd["spec"]["names"]["shortNames"][0].is_string(), "{}", crds::name(crd));
        assert_eq!(
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
                ["x-kubernetes-list-map-keys"][0],
            "type",
            "{}",
            crds::name(crd)
        );
    }
}
