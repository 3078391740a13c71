// SPDX-License-Identifier: Apache-2.0
//! What the agent of a node watches, to the intent that it compiles.

mod egress;
mod peers;
mod pools;
mod wishes;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use isthmus_api::v1alpha1::{ClusterPeering, EgressPolicy, IPBlock, IPPool, NodeNetwork};
use isthmus_compiler::{Node as IntentNode, NodeIntent};
use isthmus_model::ids::NodeName;
use isthmus_model::kernel::MacAddress;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};

/// What a node's agent sees of the API, by name (pods: namespace and name).
#[derive(Clone, Debug, Default)]
pub struct NodeObjects {
    /// All nodes.
    pub nodes: BTreeMap<String, Node>,
    /// All pools.
    pub pools: BTreeMap<String, IPPool>,
    /// All blocks.
    pub blocks: BTreeMap<String, IPBlock>,
    /// All peerings.
    pub peerings: BTreeMap<String, ClusterPeering>,
    /// All egress policies.
    pub egress: BTreeMap<String, EgressPolicy>,
    /// What the agents of all nodes measured.
    pub networks: BTreeMap<String, NodeNetwork>,
    /// Pods of this node.
    pub pods: BTreeMap<(String, String), Pod>,
    /// All namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
}

/// An object, or a part of one, that the intent does without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Kind and name, such as `IPPool/pods`.
    pub object: String,
    /// What is wrong, and what would change it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// The intent for `node`, and what was left out of it.
pub fn intake(node: &NodeName, objects: &NodeObjects) -> (NodeIntent, Vec<Problem>) {
    let mut intent = NodeIntent { node: Some(node.clone()), ..NodeIntent::default() };
    let mut problems = Vec::new();
    nodes(objects, &mut intent, &mut problems);
    pools::pools(objects, &mut intent, &mut problems);
    pools::blocks(objects, &mut intent, &mut problems);
    peers::peers(objects, &mut intent, &mut problems);
    peers::tunnel_mtus(objects, &mut intent);
    egress::egress(objects, &mut intent, &mut problems);
    wishes::wishes(objects, &mut intent);
    let own = objects.networks.get(node.as_str());
    intent.key_generation = own.map_or(0, |network| network.spec.key_generation.unsigned_abs());
    (intent, problems)
}

fn nodes(objects: &NodeObjects, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    for (name, object) in &objects.nodes {
        let Some(name) = accept(name.parse::<NodeName>(), || format!("Node/{name}"), problems) else {
            continue;
        };
        let listed = object.status.iter().filter_map(|status| status.addresses.as_ref()).flatten();
        let addresses: Vec<IpAddr> = listed
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect();
        let network = objects.networks.get(name.as_str()).and_then(|network| network.status.as_ref());
        let vxlan_mac = network.and_then(|status| status.vxlan_mac.as_deref()).and_then(mac);
        intent.nodes.insert(name, IntentNode { addresses, vxlan_mac, ..IntentNode::default() });
    }
}

/// The value, or a problem of the object.
fn accept<T, E: fmt::Display>(
    value: Result<T, E>,
    object: impl FnOnce() -> String,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    match value {
        Ok(value) => Some(value),
        Err(error) => {
            problems.push(Problem { object: object(), message: error.to_string() });
            None
        }
    }
}

/// Six hexadecimal bytes separated by colons, unicast.
fn mac(text: &str) -> Option<MacAddress> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    let mac: MacAddress = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests;
