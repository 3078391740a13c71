// SPDX-License-Identifier: Apache-2.0
//! What the API server checks about a field: bounds, list types and CEL rules, each with a message that says what to do.
//!
//! Each function yields a transform for `#[schemars(transform = …)]`. A person's mistakes are told by CEL rules, because
//! their messages are ours; what only Isthmus itself writes is held by bounds.

mod rules;

pub(crate) use rules::*;

use schemars::Schema;
use serde_json::{Value, json};

/// A string of at most `chars_max` characters.
pub(crate) fn text(chars_max: u32) -> impl Fn(&mut Schema) {
    move |schema| put(schema, "maxLength", json!(chars_max))
}

/// A number between two bounds, both included.
pub(crate) fn range(min: i64, max: i64) -> impl Fn(&mut Schema) {
    move |schema| {
        put(schema, "minimum", json!(min));
        put(schema, "maximum", json!(max));
    }
}

/// The name of an object in Kubernetes (RFC 1123 subdomain).
pub(crate) fn name(schema: &mut Schema) {
    text(253)(schema);
    put(schema, "minLength", json!(1));
    rule(
        schema,
        r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        "must be the name of an object: lower case letters, digits, '-' and '.'",
    );
}

/// The name of a namespace (RFC 1123 label).
pub(crate) fn namespace(schema: &mut Schema) {
    text(63)(schema);
    put(schema, "minLength", json!(1));
    rule(
        schema,
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "must be the name of a namespace; list each namespace by its name, there are no wildcards",
    );
}

/// A network in CIDR notation without host bits.
pub(crate) fn cidr(schema: &mut Schema) {
    text(43)(schema);
    rule(schema, "isCIDR(self)", "must be a network in CIDR notation, such as 10.1.0.0/16 or fd00:10:1::/56");
    rule(
        schema,
        "!isCIDR(self) || cidr(self) == cidr(self).masked()",
        "has bits set behind the prefix; write the network's first address, such as 10.1.0.0/16 instead of 10.1.2.3/16",
    );
}

/// An address that a packet of a pod may carry.
pub(crate) fn unicast_ip(schema: &mut Schema) {
    text(39)(schema);
    rule(schema, "isIP(self)", "must be an address, such as 192.0.2.10 or 2001:db8::10");
    rule(
        schema,
        "!isIP(self) || ip(self).isGlobalUnicast()",
        "must be a unicast address, not a loopback, link-local, multicast or unspecified one",
    );
}

/// `host:port`, where host is a DNS name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn host_port(schema: &mut Schema) {
    text(261)(schema);
    rule(
        schema,
        r"self.matches(r'^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]):[1-9][0-9]{0,4}$')",
        "must be host:port, such as 192.0.2.1:30743, [2001:db8::1]:30743 or mesh.example.org:30743",
    );
    rule(
        schema,
        "!self.matches(':[1-9][0-9]{0,4}$') || int(self.substring(self.lastIndexOf(':') + 1)) <= 65535",
        "has a port above 65535",
    );
}

/// SHA-256 in lower case hexadecimal digits.
pub(crate) fn sha256(schema: &mut Schema) {
    text(64)(schema);
    rule(
        schema,
        "self.matches('^[0-9a-f]{64}$')",
        "must be 64 hexadecimal digits in lower case; isthmus status shows a cluster's identity",
    );
}

/// A duration between one minute and one day.
pub(crate) fn minutes_to_a_day(schema: &mut Schema) {
    text(16)(schema);
    let form = "self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$') && size(self) > 0";
    rule(schema, form, "must be a duration such as 15m, 90s or 1h30m");
    rule(
        schema,
        &format!("!({form}) || (duration(self) >= duration('1m') && duration(self) <= duration('24h'))"),
        "must be between 1m and 24h",
    );
}

/// A list without duplicates whose entries several writers may own.
pub(crate) fn set(items_max: u32, item: impl Fn(&mut Schema)) -> impl Fn(&mut Schema) {
    list("set", items_max, item)
}

/// A list that is written as a whole.
pub(crate) fn atomic(items_max: u32, item: impl Fn(&mut Schema)) -> impl Fn(&mut Schema) {
    list("atomic", items_max, item)
}

/// A list of objects with one for each value of a key.
pub(crate) fn map(items_max: u32, key: &'static str) -> impl Fn(&mut Schema) {
    move |schema| {
        list("map", items_max, |_| {})(schema);
        put(schema, "x-kubernetes-list-map-keys", json!([key]));
    }
}

/// A list that has at least one item.
pub(crate) fn filled(schema: &mut Schema) {
    put(schema, "minItems", json!(1));
}

/// Conditions with the bounds of `metav1.Condition`, which `k8s-openapi` does not carry.
pub(crate) fn conditions(schema: &mut Schema) {
    put(schema, "maxItems", json!(16));
    open_conditions(schema);
}

/// Conditions with the bounds of `metav1.Condition` and none on their number.
pub(crate) fn open_conditions(schema: &mut Schema) {
    put(schema, "x-kubernetes-list-type", json!("map"));
    put(schema, "x-kubernetes-list-map-keys", json!(["type"]));
    let fields = &mut schema.ensure_object()["items"]["properties"];
    fields["message"]["maxLength"] = json!(32768);
    fields["observedGeneration"]["minimum"] = json!(0);
    fields["reason"]["maxLength"] = json!(1024);
    fields["reason"]["minLength"] = json!(1);
    fields["reason"]["pattern"] = json!("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$");
    fields["status"]["enum"] = json!(["True", "False", "Unknown"]);
    fields["type"]["maxLength"] = json!(316);
    fields["type"]["pattern"] = json!(
        r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
    );
}

/// A label selector with bounds, by the limits of labels in Kubernetes.
pub(crate) fn selector(schema: &mut Schema) {
    let fields = &mut schema.ensure_object()["properties"];
    let labels = &mut fields["matchLabels"];
    labels["maxProperties"] = json!(64);
    labels["additionalProperties"]["maxLength"] = json!(63);
    let expressions = &mut fields["matchExpressions"];
    expressions["maxItems"] = json!(64);
    expressions["x-kubernetes-list-type"] = json!("atomic");
    expressions["items"]["x-kubernetes-validations"] = json!([{
        "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
        "message": "In and NotIn need values; Exists and DoesNotExist take none",
        "reason": "FieldValueInvalid",
    }]);
    let expression = &mut expressions["items"]["properties"];
    expression["key"]["maxLength"] = json!(317);
    expression["operator"]["enum"] = json!(["In", "NotIn", "Exists", "DoesNotExist"]);
    expression["values"]["maxItems"] = json!(64);
    expression["values"]["x-kubernetes-list-type"] = json!("atomic");
    expression["values"]["items"]["maxLength"] = json!(63);
}

/// A CEL rule with its message.
pub(crate) fn holds(cel: &'static str, message: &'static str) -> impl Fn(&mut Schema) {
    move |schema| rule(schema, cel, message)
}

/// A field that is always there and never changes.
pub(crate) fn immutable(message: &'static str) -> impl Fn(&mut Schema) {
    holds("self == oldSelf", message)
}

fn list(kind: &'static str, items_max: u32, item: impl Fn(&mut Schema)) -> impl Fn(&mut Schema) {
    move |schema| {
        put(schema, "maxItems", json!(items_max));
        put(schema, "x-kubernetes-list-type", json!(kind));
        let items = schema.ensure_object().entry("items").or_insert_with(|| json!({}));
        let mut shaped = Schema::try_from(items.take()).expect("items are a schema");
        item(&mut shaped);
        *items = shaped.into();
    }
}

fn rule(schema: &mut Schema, cel: &str, message: &str) {
    push(schema, json!({ "rule": cel, "message": message, "reason": "FieldValueInvalid" }));
}

/// A rule about an object that blames one of its fields.
fn rule_at(schema: &mut Schema, field: &str, cel: &str, message: &str) {
    push(
        schema,
        json!({ "rule": cel, "message": message, "reason": "FieldValueInvalid", "fieldPath": field }),
    );
}

fn push(schema: &mut Schema, rule: Value) {
    let rules = schema.ensure_object().entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    rules.as_array_mut().expect("rules are a list").push(rule);
}

fn put(schema: &mut Schema, key: &str, value: Value) {
    schema.insert(key.to_owned(), value);
}
