// SPDX-License-Identifier: Apache-2.0
//! The way to the leader: EndpointSlices of the Service isthmus-peering, which has no selector because a readiness
//! probe cannot tell who leads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::imports::SLICE_MANAGER;
use crate::plan::Plan;
use crate::snapshot::Snapshot;

/// The Service through which peers reach the leader.
pub(crate) const PEERING_SERVICE: &str = "isthmus-peering";

pub(crate) fn plan(snapshot: &Snapshot, plan: &mut Plan) {
    for address in &snapshot.cluster.leader_addresses {
        plan.ensure(&slice(snapshot, *address));
    }
}

fn slice(snapshot: &Snapshot, address: IpAddr) -> EndpointSlice {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{PEERING_SERVICE}-{}", family.to_lowercase())),
            namespace: Some(snapshot.cluster.system_namespace.clone()),
            labels: Some(BTreeMap::from([
                ("kubernetes.io/service-name".to_owned(), PEERING_SERVICE.to_owned()),
                ("endpointslice.kubernetes.io/managed-by".to_owned(), SLICE_MANAGER.to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), serving: None, terminating: None }),
            ..Endpoint::default()
        }]),
        ports: Some(vec![EndpointPort {
            name: Some("peering".to_owned()),
            protocol: Some("TCP".to_owned()),
            port: Some(i32::from(snapshot.cluster.peering_port)),
            app_protocol: None,
        }]),
    }
}
