// SPDX-License-Identifier: Apache-2.0
//! The CustomResourceDefinitions as they are installed: what the types say, plus what the derive macro cannot say.

use crate::about::ClusterProperty;
use crate::mcs::{ServiceExport, ServiceImport};
use crate::v1alpha1::{ClusterPeering, EgressPolicy, IPBlock, IPPool, NodeNetwork, PeeringInvitation};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Every CustomResourceDefinition that Isthmus installs, ordered by name.
pub fn all() -> Vec<Value> {
    let mut crds = vec![
        ours::<ClusterPeering>(),
        ours::<EgressPolicy>(),
        ours::<IPBlock>(),
        ours::<IPPool>(),
        ours::<NodeNetwork>(),
        with_default_spec(ours::<PeeringInvitation>()),
        cluster_property(),
        multicluster::<ServiceExport>(),
        multicluster::<ServiceImport>(),
    ];
    crds.sort_by_key(|crd| name(crd).to_owned());
    crds
}

/// The name of a CustomResourceDefinition, `<plural>.<group>`.
pub fn name(crd: &Value) -> &str {
    crd["metadata"]["name"].as_str().unwrap_or_default()
}

fn ours<T: CustomResourceExt>() -> Value {
    let mut crd = serde_json::to_value(T::crd()).expect("a definition is JSON");
    crd["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "isthmus" });
    for version in versions(&mut crd) {
        finish(&mut version["schema"]["openAPIV3Schema"]);
    }
    crd
}

/// Every field of the spec has a default, so a person may leave all of it out.
fn with_default_spec(mut crd: Value) -> Value {
    for version in versions(&mut crd) {
        let root = &mut version["schema"]["openAPIV3Schema"];
        root["properties"]["spec"]["default"] = json!({});
        optional_spec(root);
    }
    crd
}

/// KEP-2149. The group is protected, so the API server wants to know who approved the definition.
fn cluster_property() -> Value {
    let mut crd = ours::<ClusterProperty>();
    crd["metadata"]["annotations"] =
        json!({ "api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/3084" });
    let mut beta = crd["spec"]["versions"][0].clone();
    beta["name"] = json!("v1beta1");
    crd["spec"]["versions"][0]["storage"] = json!(false);
    crd["spec"]["versions"].as_array_mut().expect("versions").push(beta);
    crd
}

/// KEP-1645: v1beta1 is stored, v1alpha1 with the same schema is served, because CoreDNS reads that.
fn multicluster<T: CustomResourceExt>() -> Value {
    let mut crd = ours::<T>();
    crd["metadata"]["labels"]["multicluster.x-k8s.io/release-version"] = json!("v0.5.2");
    crd["metadata"]["labels"]["multicluster.x-k8s.io/crd-schema-revision"] = json!("0");
    for version in versions(&mut crd) {
        optional_spec(&mut version["schema"]["openAPIV3Schema"]);
    }
    let mut alpha = crd["spec"]["versions"][0].clone();
    alpha["name"] = json!("v1alpha1");
    alpha["storage"] = json!(false);
    crd["spec"]["versions"].as_array_mut().expect("versions").insert(0, alpha);
    crd
}

fn versions(crd: &mut Value) -> impl Iterator<Item = &mut Value> {
    crd["spec"]["versions"].as_array_mut().expect("versions").iter_mut()
}

fn optional_spec(root: &mut Value) {
    root.as_object_mut().expect("a schema").remove("required");
}

/// Drops what a schema in Kubernetes does not say: a field that may be absent is not thereby nullable, and widths of
/// integers other than int32 and int64 have no meaning.
fn finish(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.remove("title");
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(finish);
        }
        Value::Array(items) => items.iter_mut().for_each(finish),
        _ => {}
    }
}
