// SPDX-License-Identifier: Apache-2.0
//! `ptp`: a pair of links between host and pod; everything else is behind the host.

use std::fs::File;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Ip};
use rtnetlink::packet_route::link::InfoKind;
use serde::Deserialize;

use super::{Ipam, feature, forward, veth, with_addresses};
use crate::failure::{changed, invalid};
use crate::net::link::Link;
use crate::net::{AddressOptions, Net, add_address, pod, route, up};
use crate::nft::masquerade;
use crate::{settings, sysctl};

/// Fields of the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    ip_masq: bool,
    mtu: Option<u32>,
}

/// The plugin.
pub(crate) struct Ptp;

/// The gateway's address is the host end's; without it there is no way out.
fn gateway(ip: &Ip) -> Result<IpAddr, Error> {
    ip.gateway.ok_or_else(|| invalid(format!("the IPAM plugin gave no gateway with {}", ip.address)))
}

/// The host's end has the gateways' addresses and a route to each of the pod's.
fn host_requests(index: u32, ips: &[Ip]) -> Result<Vec<isthmus_netlink::Request>, Error> {
    let mut requests = Vec::new();
    let mut gateways: Vec<IpAddr> = ips.iter().map(gateway).collect::<Result<_, _>>()?;
    gateways.sort();
    gateways.dedup();
    requests.extend(gateways.iter().map(|ip| {
        add_address(
            index,
            IpNet::from(*ip),
            AddressOptions { no_prefix_route: true, ..AddressOptions::default() },
        )
    }));
    requests.extend(ips.iter().map(|ip| {
        let host = IpNet::from(ip.address.addr());
        route::add(index, &route::plain(host, None), None)
    }));
    Ok(requests)
}

fn make(request: &Request, netns: &File, fields: &Fields) -> Result<Link, Error> {
    let mut host = Net::here()?;
    let wanted =
        veth::Wanted { mtu: fields.mtu.unwrap_or(0), pod_mac: settings::mac(request)?, router: true };
    let link = veth::make(request, netns, &mut host, wanted)?;
    host.execute("take the host's end up", &[up(link.index)])?;
    Ok(link)
}

fn set_up(
    request: &Request,
    fields: &Fields,
    outside: &Link,
    mut result: AddResult,
) -> Result<AddResult, Error> {
    let mut host = Net::here()?;
    for ip in &mut result.ips {
        ip.interface = Some(1);
    }
    host.execute("set up the host's end", &host_requests(outside.index, &result.ips)?)?;
    let inside = pod::set_up(request, &result, pod::SetUp { via_gateway: true, ..pod::SetUp::default() })?;
    host.wait_until_it_sends(outside.index)?;
    let has = |v6: bool| result.ips.iter().any(|ip| matches!(ip.address, IpNet::V6(_)) == v6);
    sysctl::forward(has(false), has(true))?;
    if fields.ip_masq {
        masquerade::add(request, &result.ips)?;
    }
    result.interfaces = vec![pod::interface(outside, ""), pod::interface(&inside, &pod::sandbox(request))];
    Ok(result)
}

fn undo(request: &Request) -> Result<(), Error> {
    let rules = masquerade::RULES.delete(request);
    veth::delete(request).and(rules)
}

impl Plugin for Ptp {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields: Fields = request.config.settings()?;
        let netns = pod::open(request)?;
        pod::refuse_taken(request)?;
        let make = || make(request, &netns, &fields);
        with_addresses(
            request,
            Ipam::Required,
            make,
            |link, result| set_up(request, &fields, &link, result),
            undo,
        )
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        undo(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        let result = pod::previous(request)?;
        pod::check(request, &result)?;
        let name = veth::host_name(request);
        let host =
            Net::here()?.link(&name)?.ok_or_else(|| changed(format!("the host's end {name} is gone")))?;
        if !host.up {
            return Err(changed(format!("the host's end {name} is down")));
        }
        if request.config.settings::<Fields>()?.ip_masq {
            masquerade::check(request)?;
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        feature::expect(&InfoKind::Veth, "CONFIG_VETH")?;
        if request.config.settings::<Fields>()?.ip_masq {
            crate::nft::available()?;
        }
        forward(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let addresses = forward(request);
        let rules = masquerade::RULES.collect(request);
        veth::collect(request).and(rules).and(addresses)
    }

    fn about(&self) -> String {
        "ptp: a pair of links between host and pod".to_owned()
    }
}
