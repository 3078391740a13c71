// SPDX-License-Identifier: Apache-2.0
//! `sbr`: what a pod sends from an address of the interface goes out by the interface (source-based routing).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::AddResult;
use serde::Deserialize;

use super::own_ips;
use crate::failure::{changed, invalid};
use crate::net::route::{self, MAIN, Seen};
use crate::net::{Net, is_link_local, pod, rule};

/// The first table that is taken, if it is free.
const FIRST_TABLE: u32 = 100;

/// Fields of the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    table: Option<u32>,
    #[serde(default)]
    add_source_hints: bool,
}

/// The plugin.
pub(crate) struct Sbr;

/// The wanted table and those after it, without those that rules lead to.
fn free_tables(wanted: Option<u32>, used: BTreeSet<u32>) -> impl Iterator<Item = u32> {
    (wanted.unwrap_or(FIRST_TABLE)..).filter(move |table| {
        *table == wanted.unwrap_or(0) || !(used.contains(table) || (253..=255).contains(table))
    })
}

fn tables_in_use(net: &mut Net) -> Result<BTreeSet<u32>, Error> {
    let mut used = BTreeSet::new();
    for v6 in [false, true] {
        used.extend(net.rules(v6)?.iter().map(|rule| rule.table));
        used.extend(net.routes(v6)?.iter().map(|route| route.table));
    }
    Ok(used)
}

/// Routes of the interface that are to be moved, of a family.
fn movable(net: &mut Net, index: u32, v6: bool) -> Result<Vec<Seen>, Error> {
    let mut all = net.routes(v6)?;
    all.retain(|seen| {
        let own = is_link_local(seen.dst.addr()) || seen.dst.addr().is_multicast();
        seen.link == Some(index) && seen.table == MAIN && !own
    });
    Ok(all)
}

fn default(gateway: IpAddr) -> isthmus_cni_kit::result::Route {
    let any: IpNet = match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    route::plain(any, Some(gateway))
}

fn apply(request: &Request, fields: &Fields, result: &AddResult) -> Result<(), Error> {
    let mut net = Net::inside(pod::path(request)?)?;
    let index = net
        .link(&request.ifname)?
        .map(|link| link.index)
        .ok_or_else(|| invalid(format!("the container has no interface {}", request.ifname)))?;
    let mut tables = free_tables(fields.table, tables_in_use(&mut net)?);
    let (mut requests, mut moved) = (Vec::new(), Vec::new());
    for ip in own_ips(request, result)? {
        let source = ip.address.addr();
        let table = tables.next().ok_or_else(|| invalid("no routing table is free"))?;
        let routes = movable(&mut net, index, source.is_ipv6())?;
        // A next hop has to be reachable in the same table: routes of the link first.
        let (direct, via): (Vec<&Seen>, Vec<&Seen>) = routes.iter().partition(|route| route.gw.is_none());
        requests.extend(direct.iter().map(|seen| route::copy_to(seen, table)));
        let has_default = via.iter().any(|seen| seen.dst.prefix_len() == 0);
        if let (Some(gateway), false) = (ip.gateway, has_default) {
            let mut route = default(gateway);
            route.table = Some(table);
            requests.push(route::add(index, &route, fields.add_source_hints.then_some(source)));
        }
        requests.extend(via.iter().map(|seen| route::copy_to(seen, table)));
        requests.push(rule::add(source, table));
        for seen in routes {
            // With source hints the interface stays reachable for what is not bound to an address.
            let stays = fields.add_source_hints && seen.automatic;
            if !(stays || moved.contains(&seen)) {
                moved.push(seen);
            }
        }
    }
    requests.extend(moved.iter().map(route::delete));
    net.execute("route by source", &requests)
}

impl Plugin for Sbr {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields: Fields = request.config.settings()?;
        let result = pod::previous(request)?;
        apply(request, &fields, &result)?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        // Routes go with the interface; rules stay with the namespace, if that stays.
        let Some(mut net) = pod::inside_if_there(request)? else { return Ok(()) };
        let mut sources: BTreeSet<IpAddr> = match request.config.prev_result()? {
            Some(result) => own_ips(request, &result)?.iter().map(|ip| ip.address.addr()).collect(),
            None => BTreeSet::new(),
        };
        if let Some(link) = net.link(&request.ifname)? {
            sources.extend(net.addresses(link.index)?.iter().map(IpNet::addr));
        }
        for v6 in [false, true] {
            let rules = net.rules(v6)?;
            let own = rules.iter().filter(|rule| rule.source.is_some_and(|source| sources.contains(&source)));
            let requests: Vec<_> = own.map(rule::Seen::delete).collect();
            net.execute("delete a rule", &requests)?;
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let result = pod::previous(request)?;
        let mut net = Net::inside(pod::path(request)?)?;
        for ip in own_ips(request, &result)? {
            let source = ip.address.addr();
            let rules = net.rules(source.is_ipv6())?;
            let Some(rule) = rules.iter().find(|rule| rule.source == Some(source)) else {
                return Err(changed(format!("the rule for {source} is gone")));
            };
            if !net.routes(source.is_ipv6())?.iter().any(|route| route.table == rule.table) {
                return Err(changed(format!("the routing table {} of {source} is empty", rule.table)));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        request.config.settings::<Fields>().map(drop)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn about(&self) -> String {
        "sbr: what a pod sends from an address goes out by its interface".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_in_use_and_those_of_the_system_are_left_out() {
        let used = BTreeSet::from([100, 102, 254]);
        assert_eq!(free_tables(None, used.clone()).take(3).collect::<Vec<_>>(), [101, 103, 104]);
        assert_eq!(free_tables(Some(252), used.clone()).take(2).collect::<Vec<_>>(), [252, 256]);
        assert_eq!(free_tables(Some(100), used).next(), Some(100));
    }
}
