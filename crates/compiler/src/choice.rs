// SPDX-License-Identifier: Apache-2.0
//! Of which pools a new pod of this node gets its addresses.
//!
//! A pool that is for the pod's namespace goes before those that are for all. A pod, or its namespace for it, may name pools:
//! only such that are for all or for the namespace, and for this node. Each family is decided by itself.
//!
//! A pod may also ask for an address of its own ([`own`]).

mod own;

pub use own::Request;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isthmus_model::ids::PoolName;
use isthmus_model::kernel::MacAddress;
use serde::{Deserialize, Serialize};

use crate::intent::{NodeIntent, PodId, Pool, is_v6};

/// Pools by family (`v6` each): a pod gets one address of each family, out of any of its pools.
pub type PoolsByFamily = BTreeMap<bool, BTreeSet<PoolName>>;

/// What a new pod gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Pools that give it an address.
    pub pools: PoolsByFamily,
    /// Addresses that are its alone, and the pod.
    pub own: Vec<(IpAddr, PodId)>,
    /// Ethernet address of its interface; none: any.
    pub mac: Option<MacAddress>,
}

/// The pools that a namespace names for its pods, or what is wrong with how it does.
pub type Wish = Result<BTreeSet<PoolName>, String>;

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskingPod {
    /// `metadata.uid`; of a static pod the one that the kubelet knows it by.
    pub uid: String,
    /// What it asks for, or what is wrong with how it does.
    pub asks: Result<Asked, String>,
}

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Pools; none: as its namespace has it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pools: BTreeSet<PoolName>,
    /// Addresses of its own, one of each family at most, IPv4 first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// UID of its StatefulSet, with which its addresses shall be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_with: Option<String>,
    /// Ethernet address of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// A pod that addresses are for, as the container runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, where the runtime tells it: a namesake of before is another pod.
    pub uid: Option<String>,
}

/// Why no pool is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// What decides is not known yet, or not done yet.
    Unknown {
        /// What is missing.
        what: String,
    },
    /// It will not be otherwise before somebody changes something.
    Refused {
        /// What is wrong.
        why: String,
        /// What changes it.
        remedy: String,
    },
}

impl NodeIntent {
    /// What `pod` gets. A container that is no pod has addresses of the pools for all.
    ///
    /// # Errors
    /// No pool serves it, what it asks for is refused, or what decides is not known yet.
    pub fn share_of(&self, pod: Option<&PodName>) -> Result<Share, Unserved> {
        let mut share = Share { pools: self.pools_for(pod)?, ..Share::default() };
        let known = pod.and_then(|pod| Some((pod, self.known(pod)?)));
        if let Some((pod, AskingPod { uid, asks: Ok(asked) })) = known {
            let Asked { addresses, mac, .. } = asked;
            let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
            let id = PodId { namespace, name, uid: uid.clone() };
            for address in addresses {
                self.own(*address, &id)?;
                share.pools.remove(&address.is_ipv6());
                share.own.push((*address, id.clone()));
            }
            if asked.keep_with.is_some() {
                for (v6, address) in self.kept(&id, asked)? {
                    share.pools.remove(&v6);
                    share.own.push((address, id.clone()));
                }
            }
            if mac.is_some() && !self.open_to(&pod.namespace).any(|(_, pool)| !pool.on_request.is_empty()) {
                return Err(refused(
                    "the pod asks for an Ethernet address, and no IPPool of this node leaves pods of its namespace anything to ask for".to_owned(),
                    "give a pool that is for the namespace a range in spec.onRequest",
                ));
            }
            share.mac = *mac;
        }
        if share.pools.is_empty() && share.own.is_empty() {
            let of = pod.map_or("containers that are no pods".to_owned(), |pod| {
                format!("the namespace {}", pod.namespace)
            });
            return Err(refused(
                format!("no enabled IPPool of this node is for {of}"),
                "create an IPPool without namespaceSelector, or widen the namespaceSelector of one",
            ));
        }
        Ok(share)
    }

    /// The pools of which `pod` gets addresses that are not its own.
    fn pools_for(&self, pod: Option<&PodName>) -> Result<PoolsByFamily, Unserved> {
        if !self.serving().any(|_| true) {
            return Err(refused(
                "no enabled IPPool applies to this node".to_owned(),
                "create an IPPool, or widen its nodeSelector",
            ));
        }
        let asked = pod.map_or(Ok(None), |pod| self.asked(pod))?;
        let namespace = pod.map(|pod| pod.namespace.as_str());
        let mut chosen = PoolsByFamily::new();
        for (name, pool) in self.preferred(namespace) {
            chosen.entry(is_v6(&pool.cidr)).or_default().insert(name.clone());
        }
        if let Some((names, by)) = asked {
            let known = pod.and_then(|pod| self.known(pod)).and_then(|known| known.asks.as_ref().ok());
            let keeps = known.is_some_and(|asked| asked.keep_with.is_some());
            let mut named = PoolsByFamily::new();
            for name in names {
                let pool = self.nameable(name, (namespace.unwrap_or_default(), keeps), &by)?;
                named.entry(is_v6(&pool.cidr)).or_default().insert(name.clone());
            }
            chosen.extend(named);
        }
        Ok(chosen)
    }

    /// Pools that some pod of this node gets addresses of: those for all namespaces or, where there are none, all.
    pub fn common_pools(&self) -> PoolsByFamily {
        let mut common = PoolsByFamily::new();
        let for_all = self.giving().any(|(_, pool)| pool.namespaces.is_none());
        for (name, pool) in self.giving().filter(|(_, pool)| pool.namespaces.is_none() || !for_all) {
            common.entry(is_v6(&pool.cidr)).or_default().insert(name.clone());
        }
        common
    }

    /// Whether it can matter which namespace a pod is of, or what it asks for.
    pub fn offers_choice(&self) -> bool {
        self.serving().any(|(_, pool)| pool.namespaces.is_some()) || leaves_choice(self.serving())
    }

    /// Pools that give this node's pods addresses unasked.
    fn giving(&self) -> impl Iterator<Item = (&PoolName, &Pool)> {
        self.serving().filter(|(_, pool)| gives_unasked(pool))
    }

    /// Pools of which pods of this node may have addresses.
    fn serving(&self) -> impl Iterator<Item = (&PoolName, &Pool)> {
        self.pools.iter().filter(|(_, pool)| pool.serves_this_node)
    }

    /// Pools that a pod of the namespace may have addresses of.
    fn open_to<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a PoolName, &'a Pool)> {
        self.serving().filter(move |(_, pool)| is_open_to(pool, namespace))
    }

    /// Of each family the pools for the namespace; where there are none, those for all.
    fn preferred<'a>(
        &'a self,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a PoolName, &'a Pool)> + 'a {
        let of_namespace = move |pool: &Pool| {
            pool.namespaces.as_ref().is_some_and(|names| namespace.is_some_and(|name| names.contains(name)))
        };
        let taken: BTreeSet<bool> =
            self.giving().filter(|(_, pool)| of_namespace(pool)).map(|(_, pool)| is_v6(&pool.cidr)).collect();
        self.giving().filter(move |(_, pool)| {
            of_namespace(pool) || (pool.namespaces.is_none() && !taken.contains(&is_v6(&pool.cidr)))
        })
    }

    /// The pools that the pod or its namespace names, and who does.
    fn asked(&self, pod: &PodName) -> Result<Option<(&BTreeSet<PoolName>, String)>, Unserved> {
        let namespace = self.namespaces.get(&pod.namespace);
        if namespace.is_none() && self.offers_choice() {
            return Err(unknown(format!("namespace {}", pod.namespace)));
        }
        let wrong = |message: &String| refused(message.clone(), "correct the annotation or remove it");
        match self.known(pod) {
            None if leaves_choice(self.open_to(&pod.namespace)) => {
                return Err(unknown(format!("pod {}/{}", pod.namespace, pod.name)));
            }
            Some(AskingPod { asks: Err(message), .. }) => return Err(wrong(message)),
            Some(AskingPod { asks: Ok(asked), .. }) if !asked.pools.is_empty() => {
                return Ok(Some((&asked.pools, "the pod".to_owned())));
            }
            _ => {}
        }
        match namespace {
            Some(Err(message)) => Err(wrong(message)),
            Some(Ok(pools)) if !pools.is_empty() => {
                Ok(Some((pools, format!("the namespace {}", pod.namespace))))
            }
            _ => Ok(None),
        }
    }

    fn known(&self, pod: &PodName) -> Option<&AskingPod> {
        let known = self.pods.get(&pod.namespace)?.get(&pod.name)?;
        pod.uid.as_ref().is_none_or(|uid| *uid == known.uid).then_some(known)
    }

    /// The pool, if a pod of the namespace may name it; one that keeps its addresses needs none that are given unasked.
    fn nameable(
        &self,
        name: &PoolName,
        (namespace, keeps): (&str, bool),
        by: &str,
    ) -> Result<&Pool, Unserved> {
        let not = |why: &str, remedy: &str| {
            Err(refused(format!("{by} asks for addresses of IPPool {name}, {why}"), remedy))
        };
        let Some(pool) = self.pools.get(name) else {
            return not(
                "which does not exist or is not in force",
                "name another one; `kubectl get ippools` shows them",
            );
        };
        if pool.external {
            return not("which another CNI plugin gives out", "name a pool with the allocation Isthmus");
        }
        if pool.disabled {
            return not("which is disabled", "name another one, or set its spec.disabled to false");
        }
        if !pool.serves_this_node {
            return not(
                "whose nodeSelector does not select this node",
                "give the pod a nodeSelector for the pool's nodes, or name another pool",
            );
        }
        if !gives_unasked(pool) && !keeps {
            return not("which gives nothing out unasked", "ask for an address of it, or name another pool");
        }
        if !is_open_to(pool, namespace) {
            let why = format!("whose namespaceSelector does not select the namespace {namespace}");
            return not(&why, "label the namespace, or name another pool");
        }
        Ok(pool)
    }
}

fn gives_unasked(pool: &Pool) -> bool {
    !pool.reserved.contains(&pool.cidr)
}

fn is_open_to(pool: &Pool, namespace: &str) -> bool {
    pool.namespaces.as_ref().is_none_or(|names| names.contains(namespace))
}

/// Whether pods may ask for something: for an address, or for one of several pools of a family.
fn leaves_choice<'a>(pools: impl Iterator<Item = (&'a PoolName, &'a Pool)>) -> bool {
    let mut seen = BTreeSet::new();
    pools.into_iter().any(|(_, pool)| !pool.on_request.is_empty() || !seen.insert(is_v6(&pool.cidr)))
}

fn unknown(object: String) -> Unserved {
    let what = format!("{object} is not known yet, and what addresses the pod gets may depend on it");
    Unserved::Unknown { what }
}

fn refused(why: String, remedy: &str) -> Unserved {
    Unserved::Refused { why, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests;
