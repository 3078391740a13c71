// SPDX-License-Identifier: Apache-2.0
//! Addresses that a pod asks for by themselves. The operator gives the node a block of one address for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::ids::PoolName;

use super::{Asked, AskingPod, PoolsByFamily, Unserved, is_open_to, refused};
use crate::intent::{NodeIntent, PodId, is_v6};

/// What a pod asks the operator for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The pod.
    pub pod: PodId,
    /// Addresses by themselves.
    pub addresses: Vec<IpAddr>,
    /// UID of the StatefulSet with which addresses shall be kept.
    pub keep_with: Option<String>,
    /// The pools that these may come from.
    pub keep_from: Vec<PoolName>,
}

impl NodeIntent {
    /// What pods of this node ask for and may have: what the operator is asked for.
    pub fn requests(&self) -> impl Iterator<Item = Request> {
        let pods = self.pods.iter().flat_map(|(namespace, pods)| {
            pods.iter().map(move |(name, pod)| (namespace.as_str(), name.as_str(), pod))
        });
        pods.filter_map(|(namespace, name, AskingPod { uid, asks })| {
            let asked = asks.as_ref().ok()?;
            let may = asked.addresses.iter().all(|address| self.may_ask(*address, namespace).is_ok());
            let pod = PodId { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.clone() };
            let keep_with = asked.keep_with.clone();
            let keeping = || self.keeping(namespace, self.named(namespace, asked));
            let from = keep_with.as_ref().map(|_| keeping()).unwrap_or_default();
            let (addresses, keep_from) = (asked.addresses.clone(), from.into_values().flatten().collect());
            let request = Request { pod, addresses, keep_with, keep_from };
            let asks = !request.addresses.is_empty() || !request.keep_from.is_empty();
            (may && asks && !uid.is_empty()).then_some(request)
        })
    }

    /// Addresses that pods of this node may be given now, and to whom each: the pod has the block and still asks.
    pub fn own_addresses_of_pods(&self) -> impl Iterator<Item = (IpAddr, &PodId)> {
        self.own_blocks().filter_map(|(cidr, block)| {
            let pod = block.pod.as_ref()?;
            let known = self.pods.get(&pod.namespace)?.get(&pod.name).filter(|known| known.uid == pod.uid)?;
            let asks = known
                .asks
                .as_ref()
                .is_ok_and(|asked| asked.addresses.contains(&cidr.addr()) || asked.keep_with.is_some());
            asks.then_some((cidr.addr(), pod))
        })
    }

    /// Whether the pod has the address: its block is there.
    pub(super) fn own(&self, address: IpAddr, pod: &PodId) -> Result<(), Unserved> {
        self.may_ask(address, &pod.namespace)?;
        let asks = |why: String, remedy: &str| refused(format!("the pod asks for {address}, {why}"), remedy);
        let around = self.blocks.iter().find(|(cidr, _)| cidr.contains(&address));
        let Some((cidr, block)) = around else {
            let what = format!(
                "the operator has not given {address} to this node yet; `kubectl get ipblocks` shows what nodes hold"
            );
            return Err(Unserved::Unknown { what });
        };
        let Some(holder) = &block.pod else {
            let why = format!("which lies in the block {cidr} of node {}", block.node);
            return Err(asks(why, "ask for one that lies in no block, see `kubectl get ipblocks`"));
        };
        if holder == pod && self.is_self(&block.node) {
            return Ok(());
        }
        let told = format!("{}/{} on node {}", holder.namespace, holder.name, block.node);
        if (&holder.namespace, &holder.name) == (&pod.namespace, &pod.name) {
            return Err(Unserved::Unknown {
                what: format!("{address} is still held by the pod {told} that was before"),
            });
        }
        Err(asks(format!("which the pod {told} holds"), "delete that pod, or ask for another address"))
    }

    /// Of each family the pools out of which addresses of a pod of the namespace are kept: those that it names; else those for
    /// its namespace; else those for all.
    fn keeping(&self, namespace: &str, named: &BTreeSet<PoolName>) -> PoolsByFamily {
        let mut classes: [PoolsByFamily; 3] = Default::default();
        for (name, pool) in self.open_to(namespace).filter(|(_, pool)| !pool.on_request.is_empty()) {
            let class = if named.contains(name) { 0 } else { 1 + usize::from(pool.namespaces.is_none()) };
            classes[class].entry(is_v6(&pool.cidr)).or_default().insert(name.clone());
        }
        let [by_name, of_namespace, of_all] = classes;
        let mut keeping = of_all;
        keeping.extend(of_namespace);
        keeping.extend(by_name);
        keeping
    }

    /// The pools that the pod names, or its namespace for it.
    fn named<'a>(&'a self, namespace: &str, asked: &'a Asked) -> &'a BTreeSet<PoolName> {
        let of_namespace = self.namespaces.get(namespace).and_then(|wish| wish.as_ref().ok());
        of_namespace.filter(|_| asked.pools.is_empty()).unwrap_or(&asked.pools)
    }

    /// The addresses that are kept for the pod, by family.
    pub(super) fn kept(&self, pod: &PodId, asked: &Asked) -> Result<BTreeMap<bool, IpAddr>, Unserved> {
        let families = self.keeping(&pod.namespace, self.named(&pod.namespace, asked));
        if families.is_empty() {
            return Err(refused(
                "the pod asks for addresses that are kept, and no IPPool of this node has any for it"
                    .to_owned(),
                "give a pool that is for the namespace a range in spec.onRequest",
            ));
        }
        let of_name = |holder: &PodId| (&holder.namespace, &holder.name) == (&pod.namespace, &pod.name);
        let mut kept = BTreeMap::new();
        for (cidr, block) in &self.blocks {
            let Some(holder) = block.pod.as_ref().filter(|holder| of_name(holder)) else { continue };
            if holder != pod || !self.is_self(&block.node) {
                let what = format!("{} of the pod is still at node {}", cidr.addr(), block.node);
                return Err(Unserved::Unknown { what });
            }
            kept.insert(is_v6(cidr), cidr.addr());
        }
        match families.keys().find(|v6| !kept.contains_key(*v6)) {
            None => Ok(kept),
            Some(v6) => {
                let family = if *v6 { "IPv6" } else { "IPv4" };
                let what = format!(
                    "the operator has not given the pod an {family} address to keep yet; `kubectl get ipblocks` shows what nodes hold"
                );
                Err(Unserved::Unknown { what })
            }
        }
    }

    /// Whether pods of the namespace may ask for the address on this node.
    fn may_ask(&self, address: IpAddr, namespace: &str) -> Result<(), Unserved> {
        let asks = |why: String, remedy: &str| refused(format!("the pod asks for {address}, {why}"), remedy);
        let Some((name, pool)) = self.pools.iter().find(|(_, pool)| pool.cidr.contains(&address)) else {
            return Err(asks("which lies in no IPPool".to_owned(), "ask for one of a pool's spec.onRequest"));
        };
        if !pool.serves_this_node {
            let why = format!("which lies in IPPool {name}, and that is disabled or not for this node");
            return Err(asks(why, "ask for one of another pool, or change the pool"));
        }
        if !is_open_to(pool, namespace) {
            let why = format!("which lies in IPPool {name}, and that is not for the namespace {namespace}");
            return Err(asks(
                why,
                "label the namespace as the pool's namespaceSelector wants it, or ask for another",
            ));
        }
        if !pool.on_request.iter().any(|range: &IpNet| range.contains(&address)) {
            let why = format!("which IPPool {name} does not leave to those who ask");
            return Err(asks(why, "ask for one of the pool's spec.onRequest, or extend that"));
        }
        Ok(())
    }
}
