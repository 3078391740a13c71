// SPDX-License-Identifier: Apache-2.0
//! Egress policies, and which pods of this node they select.

use std::collections::BTreeMap;

use isthmus_api::v1alpha1::EgressPolicy;
use isthmus_compiler::{Egress, NodeIntent};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use super::pools::cidr;
use super::{NodeObjects, Problem, accept};

pub(super) fn egress(objects: &NodeObjects, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    let standing = objects.egress.iter().filter(|(_, object)| object.metadata.deletion_timestamp.is_none());
    for (name, object) in standing {
        let Some(policy) = accept(policy(object, objects), || format!("EgressPolicy/{name}"), problems)
        else {
            continue;
        };
        intent.egress.insert(name.clone(), policy);
    }
}

fn policy(object: &EgressPolicy, objects: &NodeObjects) -> Result<Egress, String> {
    let spec = &object.spec;
    let (of_namespace, of_pod) =
        (selector(spec.namespace_selector.as_ref())?, selector(spec.pod_selector.as_ref())?);
    let destinations = spec.destination_cidrs.iter().map(|text| cidr(text)).collect::<Result<_, _>>()?;
    let address =
        |text: &String| text.parse().map_err(|_| format!("{text:?} in spec.egressIPs is no address"));
    let addresses = spec.egress_ips.iter().map(address).collect::<Result<_, String>>()?;
    let named = object.status.as_ref().and_then(|status| status.gateway_node.as_deref());
    let gateway =
        named.map(str::parse).transpose().map_err(|error| format!("status.gatewayNode: {error}"))?;
    let empty = BTreeMap::new();
    let in_namespace = |name: &str| {
        let labels = objects.namespaces.get(name).and_then(|namespace| namespace.metadata.labels.as_ref());
        of_namespace.matches(labels.unwrap_or(&empty))
    };
    let selected = objects.pods.iter().filter(|((namespace, _), pod)| {
        in_namespace(namespace) && of_pod.matches(pod.metadata.labels.as_ref().unwrap_or(&empty))
    });
    Ok(Egress { pods: selected.map(|(key, _)| key.clone()).collect(), destinations, gateway, addresses })
}

/// An absent selector selects everything.
pub(super) fn selector(selector: Option<&LabelSelector>) -> Result<Selector, String> {
    let selector = selector.cloned().unwrap_or_default();
    selector.try_into().map_err(|error| format!("a selector is not valid: {error}"))
}
