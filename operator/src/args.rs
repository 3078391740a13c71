// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::net::{IpAddr, SocketAddr};

use clap::Parser;
use isthmus_model::ids::ClusterId;
use isthmus_model::ownership::{PEERING_NODE_PORT, PEERING_PORT, SYSTEM_NAMESPACE};

/// The Isthmus operator: decides for the cluster and writes its decisions down.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Namespace of the operator's own objects.
    #[arg(long, env = "POD_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub(crate) namespace: String,
    /// Name of this replica, unique among the replicas.
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,
    /// Address under which this replica is reached by the cluster's nodes.
    #[arg(long, env = "HOST_IP")]
    pub(crate) host_ip: IpAddr,
    /// The cluster's ID in its clusterset, where no ClusterProperty names one.
    #[arg(long, env = "ISTHMUS_CLUSTER_ID", value_parser = cluster_id)]
    pub(crate) cluster_id: Option<ClusterIdWish>,
    /// Where peers' operators connect to.
    #[arg(long, env = "ISTHMUS_PEERING_ADDRESS", default_value_t = SocketAddr::from(([0u16; 8], PEERING_PORT)))]
    pub(crate) peering_address: SocketAddr,
    /// Port of every node that leads to `--peering-address` of the leader, as invitations give it.
    #[arg(long, env = "ISTHMUS_PEERING_NODE_PORT", default_value_t = PEERING_NODE_PORT)]
    pub(crate) peering_node_port: u16,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[arg(long, env = "ISTHMUS_HEALTH_ADDRESS", default_value = "127.0.0.1:9470")]
    pub(crate) health_address: SocketAddr,
    /// Which log lines to print, as in `info,isthmus_operator=debug`.
    #[arg(long, env = "ISTHMUS_LOG", default_value = "info")]
    pub(crate) log: String,
}

/// A cluster ID that the installation asks for; an empty setting asks for none.
#[derive(Clone, Debug)]
pub(crate) struct ClusterIdWish(pub(crate) Option<ClusterId>);

fn cluster_id(text: &str) -> Result<ClusterIdWish, String> {
    if text.is_empty() {
        return Ok(ClusterIdWish(None));
    }
    text.parse().map(|id| ClusterIdWish(Some(id))).map_err(|error| format!("{error}"))
}
