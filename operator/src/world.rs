// SPDX-License-Identifier: Apache-2.0
//! Everything that the operator watches, and the snapshot that a plan is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use isthmus_api::about::{CLUSTER_ID, ClusterProperty};
use isthmus_api::mcs::{ServiceExport, ServiceImport};
use isthmus_api::v1alpha1::{ClusterPeering, EgressPolicy, IPBlock, IPPool, NodeNetwork, PeeringInvitation};
use isthmus_intake::cluster::{self, NamespacePart, NodePart, ServicePart, StatefulSetPart};
use isthmus_mesh::grant::ServiceName;
use isthmus_planner::{ClusterFacts, Corefile, Kind, LocalSlice, ObjectKey, Snapshot};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::serde::Serialize;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt};
use tokio::sync::Notify;

use crate::apply::{Look, Observed, version};
use crate::table::{Objects, Table};

/// One table for each kind, the same list in every place that needs it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $api:expr, $config:expr, $required:expr;)*) => {
        /// Our copies of all kinds.
        pub(crate) struct World {
            $($(#[$doc])* pub(crate) $field: Table<$kind>,)*
        }

        /// All kinds at one moment.
        pub(crate) struct Moment {
            $($field: Objects<$kind>,)*
        }

        impl World {
            /// Starts every watch; `wake` is told of every change.
            pub(crate) fn follow(client: &Client, system_namespace: &str, wake: &Arc<Notify>) -> Self {
                $(let $field = {
                    let api: fn(Client, &str) -> Api<$kind> = $api;
                    Table::follow(api(client.clone(), system_namespace), $config, Arc::clone(wake))
                };)*
                Self { $($field,)* }
            }

            /// Everything now; none before every watch has listed once, since a missing object would look deleted.
            pub(crate) fn moment(&self) -> Option<Moment> {
                let listed = true $(&& (!$required || self.$field.listed()))*;
                listed.then(|| Moment { $($field: self.$field.read(),)* })
            }
        }
    };
}

kinds! {
    /// Nodes.
    nodes: NodePart = |client, _| Api::all(client), Config::default(), true;
    /// Namespaces.
    namespaces: NamespacePart = |client, _| Api::all(client), Config::default(), true;
    /// StatefulSets: their pods' addresses may be kept with them.
    stateful_sets: StatefulSetPart = |client, _| Api::all(client), Config::default(), true;
    /// IPPools.
    pools: IPPool = |client, _| Api::all(client), Config::default(), true;
    /// IPBlocks.
    blocks: IPBlock = |client, _| Api::all(client), Config::default(), true;
    /// NodeNetworks.
    node_networks: NodeNetwork = |client, _| Api::all(client), Config::default(), true;
    /// ClusterProperties.
    properties: ClusterProperty = |client, _| Api::all(client), Config::default(), true;
    /// EgressPolicies.
    egress: EgressPolicy = |client, _| Api::all(client), Config::default(), true;
    /// ClusterPeerings.
    peerings: ClusterPeering = |client, _| Api::all(client), Config::default(), true;
    /// PeeringInvitations.
    invitations: PeeringInvitation = |client, _| Api::all(client), Config::default(), true;
    /// Secrets of our own namespace.
    secrets: Secret = |client, system| Api::namespaced(client, system), Config::default(), true;
    /// ServiceExports.
    exports: ServiceExport = |client, _| Api::all(client), Config::default(), true;
    /// ServiceImports.
    imports: ServiceImport = |client, _| Api::all(client), Config::default(), true;
    /// Services.
    services: ServicePart = |client, _| Api::all(client), Config::default(), true;
    /// EndpointSlices.
    slices: EndpointSlice = |client, _| Api::all(client), Config::default(), true;
    /// CoreDNS' configuration: not every cluster has it.
    corefile: ConfigMap = |client, _| Api::namespaced(client, "kube-system"),
        Config::default().fields("metadata.name=coredns"), false;
    /// Ranges of Service addresses: Kubernetes 1.33 and later.
    service_cidrs: ServiceCIDR = |client, _| Api::all(client), Config::default(), false;
}

/// What a plan depends on and no watch brings.
pub(crate) struct Beside {
    /// The moment.
    pub(crate) now: Timestamp,
    /// The cluster's facts as far as this process knows them.
    pub(crate) facts: ClusterFacts,
    /// Address of this replica.
    pub(crate) host_ip: IpAddr,
    /// What the links know.
    pub(crate) peers: BTreeMap<String, isthmus_planner::PeerView>,
}

impl Moment {
    /// What a plan is made of.
    pub(crate) fn snapshot(&self, beside: Beside) -> Snapshot {
        let exports = named(&self.exports, cluster::export);
        let exported = |name: &ServiceName| exports.contains_key(name);
        let services =
            self.services.iter().map(|((namespace, name), object)| (service_name(namespace, name), object));
        let services: Vec<(ServiceName, &Arc<ServicePart>)> = services.collect();
        Snapshot {
            now: beside.now,
            cluster: self.cluster_facts(beside.facts, beside.host_ip),
            nodes: taken(&self.nodes, cluster::node),
            node_networks: taken(&self.node_networks, cluster::node_network),
            pools: taken(&self.pools, cluster::pool),
            blocks: taken(&self.blocks, cluster::block),
            egress: taken(&self.egress, cluster::egress),
            peerings: taken(&self.peerings, cluster::peering),
            peers: beside.peers,
            invitations: taken(&self.invitations, cluster::invitation),
            issued: self.secrets.values().filter_map(|secret| cluster::issued(secret)).collect(),
            stateful_sets: self.stateful_sets.values().filter_map(|one| one.uid()).collect(),
            namespace_labels: taken(&self.namespaces, |one| one.metadata.labels.clone().unwrap_or_default()),
            namespaces: self
                .namespaces
                .values()
                .filter(|one| cluster::is_importable_namespace(one))
                .map(|one| one.name_any())
                .collect(),
            services: services
                .iter()
                .filter(|(name, _)| exported(name))
                .map(|(name, object)| (name.clone(), cluster::service(object)))
                .collect(),
            slices: self.exported_slices(&exported),
            imports: named(&self.imports, cluster::import),
            derived: services
                .into_iter()
                .filter_map(|(name, object)| Some((name, cluster::derived(object)?)))
                .collect(),
            mirrored: self
                .slices
                .iter()
                .filter_map(|((namespace, name), object)| {
                    Some((service_name(namespace, name), cluster::mirrored(object)?))
                })
                .collect(),
            corefile: self.corefile(),
            exports,
        }
    }

    fn cluster_facts(&self, facts: ClusterFacts, host_ip: IpAddr) -> ClusterFacts {
        let without_namespace = |name: &str| (String::new(), name.to_owned());
        let system = self.namespaces.get(&without_namespace("kube-system"));
        ClusterFacts {
            property: self
                .properties
                .get(&without_namespace(CLUSTER_ID))
                .map(|found| found.spec.value.clone()),
            system_uid: system.and_then(|namespace| namespace.uid()).unwrap_or_default(),
            service_cidrs: self.service_cidrs.values().flat_map(|one| cluster::service_cidrs(one)).collect(),
            leader_addresses: self.leader_addresses(host_ip),
            ..facts
        }
    }

    /// The first address of each family of the node that has this one.
    fn leader_addresses(&self, host_ip: IpAddr) -> Vec<IpAddr> {
        let nodes = self.nodes.values().map(|node| cluster::node(node).addresses);
        let mut mine = nodes.into_iter().find(|addresses| addresses.contains(&host_ip)).unwrap_or_default();
        mine.retain(|address| *address == host_ip || address.is_ipv4() != host_ip.is_ipv4());
        mine.dedup_by_key(|address| address.is_ipv4());
        if mine.is_empty() { vec![host_ip] } else { mine }
    }

    fn exported_slices(
        &self,
        exported: &impl Fn(&ServiceName) -> bool,
    ) -> BTreeMap<ServiceName, BTreeMap<String, LocalSlice>> {
        let mut slices: BTreeMap<ServiceName, BTreeMap<String, LocalSlice>> = BTreeMap::new();
        for object in self.slices.values() {
            let Some(service) = cluster::service_of(object).filter(exported) else { continue };
            let Some(slice) = cluster::slice(object, &service) else { continue };
            slices.entry(service).or_default().insert(object.name_any(), slice);
        }
        slices
    }

    fn corefile(&self) -> Option<Corefile> {
        let object = self.corefile.values().next()?;
        let text = object.data.as_ref()?.get("Corefile")?.clone();
        Some(Corefile { text, version: object.resource_version()? })
    }

    /// The Secret of this name in our own namespace.
    pub(crate) fn secret(&self, system_namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(&(system_namespace.to_owned(), name.to_owned()))
    }
}

fn service_name(namespace: &str, name: &str) -> ServiceName {
    ServiceName { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Objects without namespace by name, through one function.
fn taken<K, T>(objects: &Objects<K>, take: impl Fn(&K) -> T) -> BTreeMap<String, T> {
    objects.iter().map(|((_, name), object)| (name.clone(), take(object))).collect()
}

/// Objects with namespace by name, through one function.
fn named<K, T>(objects: &Objects<K>, take: impl Fn(&K) -> T) -> BTreeMap<ServiceName, T> {
    objects.iter().map(|((namespace, name), object)| (service_name(namespace, name), take(object))).collect()
}

impl Look for Moment {
    fn look(&self, key: &ObjectKey) -> Option<Observed> {
        match key.kind {
            Kind::ClusterProperty => found(&self.properties, key),
            Kind::NodeNetwork => found(&self.node_networks, key),
            Kind::IpPool => found(&self.pools, key),
            Kind::IpBlock => found(&self.blocks, key),
            Kind::ClusterPeering => found(&self.peerings, key),
            Kind::PeeringInvitation => found(&self.invitations, key),
            Kind::EgressPolicy => found(&self.egress, key),
            Kind::ServiceExport => found(&self.exports, key),
            Kind::ServiceImport => found(&self.imports, key),
            Kind::Service => found(&self.services, key),
            Kind::EndpointSlice => found(&self.slices, key),
            Kind::ConfigMap => found(&self.corefile, key),
            Kind::Secret => found(&self.secrets, key),
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
