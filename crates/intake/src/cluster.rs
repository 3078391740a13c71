// SPDX-License-Identifier: Apache-2.0
//! What the operator takes from the cluster.

mod addresses;
mod nodes;
mod parts;
mod peerings;
mod services;

pub(crate) use addresses::set_aside;
pub use addresses::{block, egress, pool, service_cidrs};
pub use nodes::{is_importable_namespace, node, node_network};
pub use parts::{NamespacePart, NodePart, ServicePart, StatefulSetPart};
pub use peerings::{invitation, issued, peering, token};
pub use services::{derived, export, import, mirrored, service, service_of, slice};

use isthmus_planner::{Problem, Seen};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The frame around an object's wish: what the API server says of it.
fn seen<T, S: Clone + Default>(
    meta: &ObjectMeta,
    status: Option<&S>,
    value: Result<T, Problem>,
) -> Seen<T, S> {
    Seen {
        uid: meta.uid.clone().unwrap_or_default(),
        version: meta.resource_version.clone(),
        generation: meta.generation,
        created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        deleting: meta.deletion_timestamp.is_some(),
        status: status.cloned().unwrap_or_default(),
        value,
    }
}

/// A label's value.
fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}
