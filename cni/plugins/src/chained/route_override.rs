// SPDX-License-Identifier: Apache-2.0
//! `route-override`: takes routes away from a pod, and adds others.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Route};
use serde::Deserialize;

use crate::failure::{changed, invalid};
use crate::net::route::{self, MAIN, Seen};
use crate::net::{Net, is_link_local, pod};

/// Fields of the configuration; those of `args.cni` go before.
#[derive(Clone, Debug, Default, Deserialize)]
struct Fields {
    flushroutes: Option<bool>,
    flushgateway: Option<bool>,
    #[serde(default)]
    delroutes: Vec<Named>,
    #[serde(default)]
    addroutes: Vec<Route>,
    skipcheck: Option<bool>,
}

/// A route to be deleted: by its destination, and by its next hop if one is named.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Named {
    dst: IpNet,
    #[serde(default)]
    gw: Option<IpAddr>,
}

impl Named {
    fn is(&self, dst: IpNet, gw: Option<IpAddr>) -> bool {
        self.dst.trunc() == dst.trunc() && (self.gw.is_none() || self.gw == gw)
    }
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields: Self = request.config.settings()?;
        let Some(args) = request.config.raw().get("args").and_then(|args| args.get("cni")) else {
            return Ok(fields);
        };
        let over: Self = serde_json::from_value(args.clone()).map_err(|error| {
            invalid("a field of args.cni has another shape").with_details(error.to_string())
        })?;
        Ok(Self {
            flushroutes: over.flushroutes.or(fields.flushroutes),
            flushgateway: over.flushgateway.or(fields.flushgateway),
            delroutes: if over.delroutes.is_empty() { fields.delroutes } else { over.delroutes },
            addroutes: if over.addroutes.is_empty() { fields.addroutes } else { over.addroutes },
            skipcheck: over.skipcheck.or(fields.skipcheck),
        })
    }

    /// Whether a route of the interface goes. Those that the kernel made for addresses stay.
    fn removes(&self, seen: &Seen) -> bool {
        let flushed = self.flushroutes == Some(true) && !seen.automatic;
        let gateway = self.flushgateway == Some(true) && seen.dst.prefix_len() == 0;
        flushed || gateway || self.delroutes.iter().any(|named| named.is(seen.dst, seen.gw))
    }

    /// The result as the pod is after it.
    fn apply(&self, result: &mut AddResult) {
        if self.flushroutes == Some(true) {
            result.routes.clear();
        }
        if self.flushgateway == Some(true) {
            result.routes.retain(|route| route.dst.prefix_len() > 0);
            result.ips.iter_mut().for_each(|ip| ip.gateway = None);
        }
        result.routes.retain(|route| !self.delroutes.iter().any(|named| named.is(route.dst, route.gw)));
        result.routes.extend(self.addroutes.iter().cloned());
    }
}

/// The plugin.
pub(crate) struct RouteOverride;

fn interface(request: &Request, net: &mut Net) -> Result<u32, Error> {
    let link = net.link(&request.ifname)?;
    link.map(|link| link.index)
        .ok_or_else(|| invalid(format!("the container has no interface {}", request.ifname)))
}

/// Routes of the interface in the main table, without those of the kernel's own addresses.
fn routes(net: &mut Net, index: u32) -> Result<Vec<Seen>, Error> {
    let mut all = net.routes(false)?;
    all.extend(net.routes(true)?);
    let groups = |dst: IpNet| dst.addr().is_multicast();
    all.retain(|seen| {
        seen.link == Some(index) && seen.table == MAIN && !is_link_local(seen.dst.addr()) && !groups(seen.dst)
    });
    Ok(all)
}

impl Plugin for RouteOverride {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields = Fields::of(request)?;
        let mut result = pod::previous(request)?;
        let mut net = Net::inside(pod::path(request)?)?;
        let index = interface(request, &mut net)?;
        let gone: Vec<_> =
            routes(&mut net, index)?.iter().filter(|seen| fields.removes(seen)).map(route::delete).collect();
        net.execute("delete a route", &gone)?;
        // The next hop of a route that names none, before its gateway goes from the result.
        let wanted: Vec<Route> =
            fields.addroutes.iter().map(|wanted| pod::completed(wanted, &result.ips)).collect();
        let added: Vec<_> = wanted.iter().map(|wanted| route::add(index, wanted, None)).collect();
        net.execute("add a route", &added)?;
        fields.apply(&mut result);
        Ok(result)
    }

    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        if fields.skipcheck == Some(true) {
            return Ok(());
        }
        pod::previous(request)?;
        let mut net = Net::inside(pod::path(request)?)?;
        let index = interface(request, &mut net)?;
        let there = routes(&mut net, index)?;
        let is = |wanted: &Route, seen: &Seen| {
            seen.dst == wanted.dst.trunc() && (wanted.gw.is_none() || wanted.gw == seen.gw)
        };
        if let Some(lost) = fields.addroutes.iter().find(|wanted| !there.iter().any(|seen| is(wanted, seen)))
        {
            return Err(changed(format!("the route to {} is gone", lost.dst)));
        }
        let added = |seen: &Seen| fields.addroutes.iter().any(|wanted| is(wanted, seen));
        match there.iter().find(|seen| fields.removes(seen) && !added(seen)) {
            Some(back) => Err(changed(format!("the route to {} is back", back.dst))),
            None => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Fields::of(request).map(drop)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn about(&self) -> String {
        "route-override: takes routes away from a pod, and adds others".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_has_the_routes_that_the_pod_has_after_it() {
        let result = serde_json::json!({
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.1"}, {"dst": "10.8.0.0/16"}],
        });
        let read = || AddResult::from_json(&result, isthmus_cni_kit::version::Version::NEWEST).unwrap().1;
        let after = |fields: serde_json::Value| {
            let mut result = read();
            serde_json::from_value::<Fields>(fields).unwrap().apply(&mut result);
            let shown: Vec<String> = result.routes.iter().map(|route| route.dst.to_string()).collect();
            (shown.join(" "), result.ips[0].gateway.is_some())
        };
        let add = serde_json::json!([{"dst": "10.7.0.0/16"}]);
        assert_eq!(
            after(serde_json::json!({"flushroutes": true, "addroutes": add})),
            ("10.7.0.0/16".into(), true)
        );
        assert_eq!(
            after(serde_json::json!({"flushgateway": true})),
            ("10.9.0.0/16 10.8.0.0/16".into(), false)
        );
        let one = serde_json::json!({"delroutes": [{"dst": "10.9.0.0/16", "gw": "10.0.0.9"}, {"dst": "10.8.0.0/16"}]});
        assert_eq!(after(one), ("0.0.0.0/0 10.9.0.0/16".into(), true));
    }
}
