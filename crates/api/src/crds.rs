// SPDX-License-Identifier: Apache-2.0
//! The CustomResourceDefinitions as they are installed: what the types say, plus what the derive macro cannot say.

use crate::about::ClusterProperty;
use crate::mcs::{ServiceExport, ServiceImport};
use crate::shape;
use crate::v1alpha1::{ClusterPeering, EgressPolicy, IPBlock, IPPool, NodeNetwork, PeeringInvitation};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Every CustomResourceDefinition that Isthmus installs, ordered by name.
pub fn all() -> Vec<Value> {
    let mut crds = vec![
        named_like_a_label(ours::<ClusterPeering>()),
        ours::<EgressPolicy>(),
        ours::<IPBlock>(),
        ours::<IPPool>(),
        ours::<NodeNetwork>(),
        named_like_a_label(with_default_spec(ours::<PeeringInvitation>())),
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

/// A kind of ours: the columns that every kind with conditions has stand around its own.
fn ours<T: CustomResourceExt>() -> Value {
    let mut crd = plain::<T>();
    for version in versions(&mut crd) {
        let columns = version["additionalPrinterColumns"].as_array_mut().expect("each kind has columns");
        columns.push(condition_column("Ready", "status", 0));
        columns.push(condition_column("Reason", "reason", 0));
        columns.push(condition_column("Message", "message", 1));
        columns.push(age());
    }
    crd
}

fn plain<T: CustomResourceExt>() -> Value {
    let mut crd = serde_json::to_value(T::crd()).expect("a definition is JSON");
    crd["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "isthmus" });
    for version in versions(&mut crd) {
        let root = &mut version["schema"]["openAPIV3Schema"];
        finish(root);
        describe_root(root);
    }
    crd
}

fn condition_column(name: &str, field: &str, priority: i32) -> Value {
    let path = format!(".status.conditions[?(@.type=='Ready')].{field}");
    let mut column = json!({ "name": name, "type": "string", "jsonPath": path });
    if priority > 0 {
        column["priority"] = json!(priority);
    }
    column
}

fn age() -> Value {
    json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" })
}

/// The derive macro describes the root by its own name; a person wants to read what the kind is.
fn describe_root(root: &mut Value) {
    root["description"] = root["properties"]["spec"]["description"].take();
    let fields = &mut root["properties"];
    fields["spec"]["description"] = json!("What shall be.");
    if fields.get("status").is_some() {
        fields["status"]["description"] = json!("What is, as Isthmus sees it.");
    }
    let text = |description: &str| json!({ "type": "string", "description": description });
    fields["apiVersion"] = text("Group and version of the schema that this object is written in.");
    fields["kind"] = text("The kind of this object.");
    fields["metadata"] = json!({ "type": "object" });
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

/// The object's name becomes a label's value and part of other names.
fn named_like_a_label(mut crd: Value) -> Value {
    for version in versions(&mut crd) {
        let root = &mut version["schema"]["openAPIV3Schema"];
        let mut shaped = schemars::Schema::try_from(root.take()).expect("the root is a schema");
        shape::labelled(&mut shaped);
        *root = shaped.into();
    }
    crd
}

/// KEP-2149. The group is protected, so the API server wants to know who approved the definition.
fn cluster_property() -> Value {
    let mut crd = plain::<ClusterProperty>();
    crd["metadata"]["annotations"] =
        json!({ "api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/3084" });
    let mut beta = crd["spec"]["versions"][0].clone();
    beta["name"] = json!("v1beta1");
    beta["subresources"] = json!({ "status": {} });
    let root = &mut beta["schema"]["openAPIV3Schema"];
    root["properties"]["status"] =
        json!({ "type": "object", "description": "What is. Nothing is said here yet." });
    optional_spec(root);
    crd["spec"]["versions"][0]["storage"] = json!(false);
    crd["spec"]["versions"].as_array_mut().expect("versions").push(beta);
    crd
}

/// KEP-1645: v1beta1 is stored, v1alpha1 with the same schema is served, because CoreDNS reads that.
fn multicluster<T: CustomResourceExt>() -> Value {
    let mut crd = plain::<T>();
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

/// Drops what a schema in Kubernetes does not say: a field that may be absent is not thereby nullable, widths of
/// integers other than int32 and int64 have no meaning, and a bound of an integer is one.
fn finish(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.remove("title");
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            for bound in ["minimum", "maximum"] {
                if let Some(value) = fields.get_mut(bound).filter(|value| value.is_f64()) {
                    *value = json!(value.as_f64().map(|whole| whole as i64));
                }
            }
            fields.values_mut().for_each(finish);
        }
        Value::Array(items) => items.iter_mut().for_each(finish),
        _ => {}
    }
}
