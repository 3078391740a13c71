// SPDX-License-Identifier: Apache-2.0
//! A node as the tests need it: a namespace, its kernel handle, and pods on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_kernel::{InSync, Kernel, Nft, Outcomes, PodLink, PodLinkMade, PodLinks, netns};
use isthmus_model::kernel::{Desired, NextHop, Route, RouteKey, RouteKind};
use isthmus_model::nft::{Chain, ChainKind, Hook, Match, Rule, Ruleset, Set, Statement};
use isthmus_testkit::{Lab, Namespace};

pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) kernel: Kernel,
    pub(crate) links: PodLinks,
    pub(crate) want: Desired,
}

impl Node {
    pub(crate) fn new(lab: &Lab, name: &str) -> Self {
        Self::of(lab.namespace(name))
    }

    pub(crate) fn of(namespace: Namespace) -> Self {
        namespace.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let kernel = Kernel::open_in(&namespace.path(), open_nft(&namespace)).unwrap();
        let links = PodLinks::open_in(&namespace.path()).unwrap();
        Self { namespace, kernel, links, want: Desired { nft: base(), ..Desired::default() } }
    }

    /// Brings the node to `want` and insists that all of it was done.
    pub(crate) async fn converge(&mut self) -> Outcomes {
        let outcomes = self.kernel.converge(self.want.clone(), InSync::all_listed()).await;
        assert!(outcomes.is_clean(), "{outcomes:?}");
        outcomes
    }

    /// CNI ADD in short: the link, then what lets it pass.
    pub(crate) async fn add_pod(&mut self, pod: &Namespace, number: u8) -> (PodLink, PodLinkMade) {
        let link = pod_link(pod, number);
        let made = self.links.add(&link).unwrap();
        for address in &link.addresses {
            self.allow(&link, *address);
        }
        let outcomes = self.kernel.advance(self.want.clone(), InSync::all_listed()).await;
        assert!(outcomes.is_clean(), "{outcomes:?}");
        (link, made)
    }

    fn allow(&mut self, link: &PodLink, address: IpAddr) {
        let name = link.host_link.clone();
        let set = if address.is_ipv6() { "pods6" } else { "pods4" };
        match (address, self.want.nft.sets.get_mut(set)) {
            (IpAddr::V4(ip), Some(Set::LinkSourcesV4(pairs))) => drop(pairs.insert((name.clone(), ip))),
            (IpAddr::V6(ip), Some(Set::LinkSourcesV6(pairs))) => drop(pairs.insert((name.clone(), ip))),
            _ => unreachable!("base() has both sets"),
        }
        self.want.routes.insert(key(IpNet::from(address)), leads_to(&[(name.as_str(), None)]));
    }
}

pub(crate) fn open_nft(namespace: &Namespace) -> Nft {
    netns::run(&namespace.path(), Nft::open).unwrap().unwrap()
}

/// The pod numbered n has 10.9.0.n and fd09::n.
pub(crate) fn pod_link(pod: &Namespace, number: u8) -> PodLink {
    PodLink {
        netns_path: pod.path(),
        ifname: "eth0".parse().unwrap(),
        host_link: format!("ist{number:012x}").parse().unwrap(),
        alias: format!("default/pod-{number}"),
        addresses: vec![[10, 9, 0, number].into(), [0xfd09, 0, 0, 0, 0, 0, 0, u16::from(number)].into()],
        mtu: 1400,
        mac: None,
    }
}

/// Drops what an unknown pod link sends.
pub(crate) fn base() -> Ruleset {
    let spoofed = |v6: bool, set: &str| Rule {
        matches: vec![
            Match::InLinkPrefix { prefix: "ist".into(), negate: false },
            Match::LinkSource { v6, set: set.into(), negate: true },
        ],
        then: Statement::Drop,
        comment: "not the pod's own address".into(),
    };
    let rules = vec![spoofed(false, "pods4"), spoofed(true, "pods6")];
    let chain = Chain { hook: Hook::Prerouting, priority: -310, kind: ChainKind::Filter, rules };
    Ruleset {
        sets: BTreeMap::from([
            ("pods4".into(), Set::LinkSourcesV4(BTreeSet::new())),
            ("pods6".into(), Set::LinkSourcesV6(BTreeSet::new())),
        ]),
        chains: BTreeMap::from([("antispoof".into(), chain)]),
    }
}

pub(crate) fn key(destination: impl Into<IpNet>) -> RouteKey {
    RouteKey { table: 254, destination: destination.into(), metric: 0 }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn leads_to(hops: &[(&str, Option<&str>)]) -> Route {
    let hop = |(link, via): &(&str, Option<&str>)| NextHop {
        via: via.map(|via| via.parse().unwrap()),
        link: link.parse().unwrap(),
        onlink: false,
    };
    let mut hops: Vec<NextHop> = hops.iter().map(hop).collect();
    hops.sort();
    Route { kind: RouteKind::Unicast(hops), mtu: None, source: None }
}
