// SPDX-License-Identifier: Apache-2.0
//! One line of the report for each object.

use std::collections::BTreeMap;

use isthmus_api::condition::READY;
use isthmus_api::mcs::{ServiceExport, ServiceImport};
use isthmus_api::v1alpha1::{ClusterPeering, EgressPolicy, IPPool, NodeNetwork, TunnelStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;

use super::condition;

/// `namespace/name`.
pub(crate) fn full_name(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn is_true(conditions: &[Condition], kind: &str) -> Option<bool> {
    condition(conditions, kind).map(|found| found.status == "True")
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRow {
    pub(crate) node: String,
    /// Of the agent, not of the kubelet.
    pub(crate) ready: bool,
    /// The node's own addresses inside tunnels.
    pub(crate) mesh_addresses: Vec<String>,
    /// Blocks of addresses that it holds.
    pub(crate) blocks: usize,
    /// Addresses of them that pods have.
    pub(crate) allocated: i64,
}

/// Nodes with what their agents say.
pub(crate) fn nodes(nodes: &[Node], networks: &[NodeNetwork]) -> Vec<NodeRow> {
    let networks: BTreeMap<String, &NodeNetwork> =
        networks.iter().map(|network| (network.name_any(), network)).collect();
    let row = |node: &Node| {
        let status =
            networks.get(&node.name_any()).and_then(|network| network.status.clone()).unwrap_or_default();
        NodeRow {
            node: node.name_any(),
            ready: is_true(&status.conditions, READY).unwrap_or(false),
            mesh_addresses: status.mesh_addresses,
            blocks: status.blocks.len(),
            allocated: status.blocks.iter().map(|block| block.allocated).sum(),
        }
    };
    nodes.iter().map(row).collect()
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolRow {
    pub(crate) pool: String,
    pub(crate) cidr: String,
    pub(crate) ready: bool,
    pub(crate) blocks: i32,
    pub(crate) allocated: i64,
    pub(crate) capacity: Option<String>,
}

impl PoolRow {
    pub(crate) fn of(pool: &IPPool) -> Self {
        let status = pool.status.clone().unwrap_or_default();
        Self {
            pool: pool.name_any(),
            cidr: pool.spec.cidr.clone(),
            ready: is_true(&status.conditions, READY).unwrap_or(false),
            blocks: status.blocks,
            allocated: status.allocated,
            capacity: status.capacity,
        }
    }
}

/// A peering.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeeringRow {
    pub(crate) peering: String,
    pub(crate) cluster_id: Option<String>,
    /// The identity that the peer proved: SHA-256 of its root key.
    pub(crate) identity: Option<String>,
    pub(crate) ready: bool,
    /// The stream between the operators stands.
    pub(crate) connected: Option<bool>,
    /// The peer was heard lately.
    pub(crate) fresh: Option<bool>,
    /// Tunnels that are up, and all.
    pub(crate) tunnels: Option<String>,
    #[serde(rename = "remoteCIDRs")]
    pub(crate) remote_cidrs: Vec<String>,
    pub(crate) local_gateways: Vec<String>,
    pub(crate) last_heard: Option<String>,
}

impl PeeringRow {
    pub(crate) fn of(peering: &ClusterPeering) -> Self {
        let status = peering.status.clone().unwrap_or_default();
        Self {
            peering: peering.name_any(),
            cluster_id: status.cluster_id,
            identity: status.identity,
            ready: is_true(&status.conditions, READY).unwrap_or(false),
            connected: is_true(&status.conditions, "Connected"),
            fresh: is_true(&status.conditions, "Fresh"),
            tunnels: status.tunnels,
            remote_cidrs: status.remote_cidrs,
            local_gateways: status.local_gateways,
            last_heard: status.last_heard,
        }
    }
}

/// A tunnel, as its node measures it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TunnelRow {
    pub(crate) node: String,
    pub(crate) device: String,
    pub(crate) peering: String,
    /// The remote gateway.
    pub(crate) gateway: String,
    /// Which lane of the node carries it, and to which of the gateway it leads, counted from 0.
    pub(crate) lane: i32,
    pub(crate) remote_lane: i32,
    pub(crate) endpoint: Option<String>,
    pub(crate) up: bool,
    pub(crate) rtt_micros: Option<i64>,
    pub(crate) loss_percent: Option<i32>,
    pub(crate) mtu: Option<i32>,
    /// Seconds since the last handshake.
    pub(crate) handshake_age_seconds: Option<i64>,
    pub(crate) mode: Option<String>,
}

/// The tunnels of one node.
pub(crate) fn tunnels(network: &NodeNetwork, now: Timestamp) -> Vec<TunnelRow> {
    let node = network.name_any();
    let tunnels = network.status.as_ref().map(|status| status.tunnels.as_slice()).unwrap_or_default();
    let row = |tunnel: &TunnelStatus| TunnelRow {
        node: node.clone(),
        device: tunnel.device.clone(),
        peering: tunnel.peering.clone(),
        gateway: tunnel.gateway.clone(),
        lane: tunnel.lane.unwrap_or(0),
        remote_lane: tunnel.remote_lane.unwrap_or(0),
        endpoint: tunnel.endpoint.clone(),
        up: tunnel.up,
        rtt_micros: tunnel.rtt_micros,
        loss_percent: tunnel.loss_percent,
        mtu: tunnel.mtu,
        handshake_age_seconds: tunnel.last_handshake.as_deref().and_then(|time| age_seconds(time, now)),
        mode: tunnel.mode.clone(),
    };
    tunnels.iter().map(row).collect()
}

/// Seconds from an RFC 3339 time until now; clocks that differ a little never give a negative age.
fn age_seconds(time: &str, now: Timestamp) -> Option<i64> {
    let then: Timestamp = time.parse().ok()?;
    Some((now.as_second() - then.as_second()).max(0))
}

/// A service of ours that others may use.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExportRow {
    pub(crate) export: String,
    pub(crate) valid: Option<bool>,
    pub(crate) ready: Option<bool>,
    pub(crate) conflict: Option<bool>,
}

impl ExportRow {
    pub(crate) fn of(export: &ServiceExport) -> Self {
        let conditions =
            export.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        Self {
            export: full_name(export),
            valid: is_true(conditions, "Valid"),
            ready: is_true(conditions, READY),
            conflict: is_true(conditions, "Conflict"),
        }
    }
}

/// A service of the clusterset, as it is reached here.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImportRow {
    /// Its name in DNS.
    pub(crate) name: String,
    pub(crate) r#type: String,
    pub(crate) ips: Vec<String>,
    pub(crate) clusters: Vec<String>,
}

impl ImportRow {
    pub(crate) fn of(import: &ServiceImport) -> Self {
        let clusters = import.status.as_ref().map(|status| status.clusters.as_slice()).unwrap_or_default();
        Self {
            name: format!(
                "{}.{}.svc.clusterset.local",
                import.name_any(),
                import.namespace().unwrap_or_default()
            ),
            r#type: format!("{:?}", import.spec.type_),
            ips: import.spec.ips.clone(),
            clusters: clusters.iter().map(|cluster| cluster.cluster.clone()).collect(),
        }
    }
}

/// An egress policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EgressRow {
    pub(crate) policy: String,
    pub(crate) ready: bool,
    #[serde(rename = "egressIPs")]
    pub(crate) egress_ips: Vec<String>,
    pub(crate) gateway_node: Option<String>,
}

impl EgressRow {
    pub(crate) fn of(policy: &EgressPolicy) -> Self {
        let status = policy.status.clone().unwrap_or_default();
        Self {
            policy: policy.name_any(),
            ready: is_true(&status.conditions, READY).unwrap_or(false),
            egress_ips: policy.spec.egress_ips.clone(),
            gateway_node: status.gateway_node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_in_the_future_is_zero_seconds_old() {
        let now: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();

        assert_eq!(age_seconds("2026-11-24T08:00:30Z", now), Some(0));
        assert_eq!(age_seconds("2026-11-24T07:58:00Z", now), Some(120));
        assert_eq!(age_seconds("yesterday", now), None);
    }
}
