// SPDX-License-Identifier: Apache-2.0
//! Everything that the operator watches, and the snapshot that a plan is made of.

use std::sync::Arc;

use isthmus_api::about::{CLUSTER_ID, ClusterProperty};
use isthmus_api::v1alpha1::{IPBlock, IPPool, NodeNetwork};
use isthmus_intake::cluster;
use isthmus_planner::{ClusterFacts, Kind, ObjectKey, Snapshot};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::serde::Serialize;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt};
use tokio::sync::Notify;

use crate::apply::{Look, Observed, version};
use crate::table::{Objects, Table};

/// Our copies of all kinds.
pub(crate) struct World {
    nodes: Table<Node>,
    namespaces: Table<Namespace>,
    pools: Table<IPPool>,
    blocks: Table<IPBlock>,
    node_networks: Table<NodeNetwork>,
    properties: Table<ClusterProperty>,
}

/// All kinds at one moment.
pub(crate) struct Moment {
    nodes: Objects<Node>,
    namespaces: Objects<Namespace>,
    pools: Objects<IPPool>,
    blocks: Objects<IPBlock>,
    node_networks: Objects<NodeNetwork>,
    properties: Objects<ClusterProperty>,
}

impl World {
    /// Starts every watch; `wake` is told of every change.
    pub(crate) fn follow(client: &Client, wake: &Arc<Notify>) -> Self {
        let all = Config::default;
        let wake = || Arc::clone(wake);
        Self {
            nodes: Table::follow(Api::all(client.clone()), all(), wake()),
            namespaces: Table::follow(Api::all(client.clone()), all(), wake()),
            pools: Table::follow(Api::all(client.clone()), all(), wake()),
            blocks: Table::follow(Api::all(client.clone()), all(), wake()),
            node_networks: Table::follow(Api::all(client.clone()), all(), wake()),
            properties: Table::follow(Api::all(client.clone()), all(), wake()),
        }
    }

    /// Everything now; none before every watch has listed once, since a missing object would look deleted.
    pub(crate) fn moment(&self) -> Option<Moment> {
        let listed = self.nodes.listed()
            && self.namespaces.listed()
            && self.pools.listed()
            && self.blocks.listed()
            && self.node_networks.listed()
            && self.properties.listed();
        listed.then(|| Moment {
            nodes: self.nodes.read(),
            namespaces: self.namespaces.read(),
            pools: self.pools.read(),
            blocks: self.blocks.read(),
            node_networks: self.node_networks.read(),
            properties: self.properties.read(),
        })
    }
}

impl Moment {
    /// What a plan is made of.
    pub(crate) fn snapshot(&self, wished_id: Option<&str>, now: Timestamp) -> Snapshot {
        Snapshot {
            now,
            cluster: self.cluster_facts(wished_id),
            nodes: taken(&self.nodes, cluster::node),
            node_networks: taken(&self.node_networks, cluster::node_network),
            pools: taken(&self.pools, cluster::pool),
            blocks: taken(&self.blocks, cluster::block),
        }
    }

    fn cluster_facts(&self, wished_id: Option<&str>) -> ClusterFacts {
        let without_namespace = |name: &str| (String::new(), name.to_owned());
        let system = self.namespaces.get(&without_namespace("kube-system"));
        ClusterFacts {
            property: self
                .properties
                .get(&without_namespace(CLUSTER_ID))
                .map(|found| found.spec.value.clone()),
            wished_id: wished_id.map(str::to_owned),
            system_uid: system.and_then(|namespace| namespace.uid()).unwrap_or_default(),
        }
    }
}

/// Objects without namespace by name, through one function.
fn taken<K, T>(objects: &Objects<K>, take: impl Fn(&K) -> T) -> std::collections::BTreeMap<String, T> {
    objects.iter().map(|((_, name), object)| (name.clone(), take(object))).collect()
}

impl Look for Moment {
    fn look(&self, key: &ObjectKey) -> Option<Observed> {
        match key.kind {
            Kind::ClusterProperty => found(&self.properties, key),
            Kind::NodeNetwork => found(&self.node_networks, key),
            Kind::IpPool => found(&self.pools, key),
            Kind::IpBlock => found(&self.blocks, key),
            _ => None,
        }
    }
}

fn found<K>(objects: &Objects<K>, key: &ObjectKey) -> Option<Observed>
where
    K: Serialize + ResourceExt + Send + Sync + 'static,
{
    let object = objects.get(&(key.namespace.clone().unwrap_or_default(), key.name.clone()))?;
    let object = Arc::clone(object);
    Some(Observed {
        version: version(object.as_ref()),
        body: Box::new(move || serde_json::to_value(object.as_ref()).unwrap_or_default()),
    })
}
