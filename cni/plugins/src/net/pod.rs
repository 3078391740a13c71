// SPDX-License-Identifier: Apache-2.0
//! What a pod's interface gets from the result of ADD, and whether it still has it.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::Request;
use isthmus_cni_kit::result::{AddResult, Interface, Ip, Route};

use super::link::Link;
use super::{AddressOptions, Net, add_address, route, up};
use crate::{failure, sysctl};

/// The pod's namespace, opened. Code 3 if it is gone.
pub(crate) fn open(request: &Request) -> Result<File, Error> {
    let path = path(request)?;
    File::open(path).map_err(|error| {
        Error::new(code::UNKNOWN_CONTAINER, format!("the network namespace {}: {error}", path.display()))
    })
}

/// `CNI_NETNS`, which ADD and CHECK have.
pub(crate) fn path(request: &Request) -> Result<&Path, Error> {
    let missing = || Error::new(code::INVALID_ENVIRONMENT, "required env variables [CNI_NETNS] missing");
    request.netns.as_deref().ok_or_else(missing)
}

/// The text that results have as an interface's sandbox.
pub(crate) fn sandbox(request: &Request) -> String {
    request.netns.as_deref().map(|path| path.display().to_string()).unwrap_or_default()
}

/// The namespace for DEL: none if there is none to delete from.
pub(crate) fn inside_if_there(request: &Request) -> Result<Option<Net>, Error> {
    match request.netns.as_deref().filter(|path| path.exists()) {
        // It may go while we look.
        Some(path) => match Net::inside(path) {
            Err(error) if error.code == code::UNKNOWN_CONTAINER => Ok(None),
            other => other.map(Some),
        },
        None => Ok(None),
    }
}

/// Code 103 if the pod has an interface of the name.
pub(crate) fn refuse_taken(request: &Request) -> Result<(), Error> {
    let mut net = Net::inside(path(request)?)?;
    match net.link(&request.ifname)? {
        None => Ok(()),
        Some(_) => Err(Error::new(
            failure::EXISTS,
            format!("the container has an interface {} already", request.ifname),
        )),
    }
}

/// An interface of a result.
pub(crate) fn interface(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.clone(),
        mtu: Some(link.mtu),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// How a pod's interface is set up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SetUp {
    pub(crate) address: AddressOptions,
    /// Each address's network is behind its gateway, also for neighbours (point to point).
    pub(crate) via_gateway: bool,
}

/// The gateway of the first address of the family.
fn gateway(ips: &[Ip], v6: bool) -> Option<IpAddr> {
    ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv6() == v6)
}

/// Takes the interface up and gives it the addresses and routes of the result. A route without a next hop goes to the gateway of its family.
pub(crate) fn set_up(request: &Request, result: &AddResult, how: SetUp) -> Result<Link, Error> {
    let (path, ifname) = (path(request)?, request.ifname.as_str());
    let v6 = result.ips.iter().any(|ip| matches!(ip.address, IpNet::V6(_)));
    let mut settings = vec![(format!("net/ipv4/conf/{ifname}/arp_notify"), "1")];
    if v6 {
        settings.push((format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0"));
        settings.push((format!("net/ipv6/conf/{ifname}/ndisc_notify"), "1"));
        if !how.address.detect_duplicates {
            settings.push((format!("net/ipv6/conf/{ifname}/accept_dad"), "0"));
        }
    }
    sysctl::ensure_in(path, &settings)?;
    let mut net = Net::inside(path)?;
    let missing = || failure::changed(format!("the interface {ifname} is gone"));
    let link = net.link(ifname)?.ok_or_else(missing)?;
    net.execute("set up the pod's interface", &requests(link.index, result, how))?;
    net.link_at(link.index)?.ok_or_else(missing)
}

fn requests(index: u32, result: &AddResult, how: SetUp) -> Vec<isthmus_netlink::Request> {
    let options = AddressOptions { no_prefix_route: how.via_gateway, ..how.address };
    let mut requests = vec![up(index)];
    requests.extend(result.ips.iter().map(|ip| add_address(index, ip.address, options)));
    if how.via_gateway {
        for ip in &result.ips {
            let Some(gateway) = ip.gateway else { continue };
            let source = Some(ip.address.addr());
            requests.push(route::add(index, &route::plain(gateway.into(), None), source));
            let network = ip.address.trunc();
            if network.prefix_len() < network.max_prefix_len() {
                requests.push(route::add(index, &route::plain(network, Some(gateway)), source));
            }
        }
    }
    requests
        .extend(result.routes.iter().map(|wanted| route::add(index, &completed(wanted, &result.ips), None)));
    requests
}

/// The route with the gateway of its family as its next hop, if it names none and is not of the link's scope.
pub(crate) fn completed(wanted: &Route, ips: &[Ip]) -> Route {
    let mut route = wanted.clone();
    let is_link = wanted.scope.is_some_and(|scope| scope >= 253);
    if route.gw.is_none() && !is_link {
        route.gw = gateway(ips, matches!(route.dst, IpNet::V6(_)));
    }
    route
}

/// The pod's interface in the result of ADD. Code 102 if the result does not have it.
pub(crate) fn of_result<'a>(
    request: &Request,
    result: &'a AddResult,
) -> Result<(usize, &'a Interface), Error> {
    let sandbox = sandbox(request);
    let ours = |one: &Interface| one.name == request.ifname && (one.sandbox == sandbox);
    let found = result.interfaces.iter().enumerate().find(|(_, one)| ours(one));
    found.ok_or_else(|| {
        failure::invalid(format!("prevResult has no interface {} of the container", request.ifname))
    })
}

/// The previous result of a chained plugin. Code 7 if there is none.
pub(crate) fn previous(request: &Request) -> Result<AddResult, Error> {
    let none =
        || failure::invalid("this plugin has to follow another one: the configuration has no prevResult");
    request.config.prev_result()?.ok_or_else(none)
}

/// Whether the pod still has the interface, the addresses and the routes of the result.
pub(crate) fn check(request: &Request, result: &AddResult) -> Result<Link, Error> {
    let (at, known) = of_result(request, result)?;
    let mut net = Net::inside(path(request)?)?;
    let ifname = &request.ifname;
    let link =
        net.link(ifname)?.ok_or_else(|| failure::changed(format!("the interface {ifname} is gone")))?;
    if !link.up {
        return Err(failure::changed(format!("the interface {ifname} is down")));
    }
    if !known.mac.is_empty() && !known.mac.eq_ignore_ascii_case(&link.mac) {
        return Err(failure::changed(format!("the address of {ifname} is {}, not {}", link.mac, known.mac)));
    }
    let addresses = net.addresses(link.index)?;
    let lost = result.ips.iter().filter(|ip| ip.interface.is_none_or(|of| of == at));
    if let Some(lost) = lost.map(|ip| ip.address).find(|ip| !addresses.contains(ip)) {
        return Err(failure::changed(format!("{ifname} lost its address {lost}")));
    }
    check_routes(&mut net, result)?;
    Ok(link)
}

/// Routes may lead over any interface: later plugins may have moved them to another table, too.
fn check_routes(net: &mut Net, result: &AddResult) -> Result<(), Error> {
    for v6 in [false, true] {
        let wanted: Vec<&Route> =
            result.routes.iter().filter(|route| matches!(route.dst, IpNet::V6(_)) == v6).collect();
        if wanted.is_empty() {
            continue;
        }
        let there = net.routes(v6)?;
        let is = |wanted: &Route| {
            there.iter().any(|seen| {
                seen.dst == wanted.dst.trunc()
                    && (wanted.gw.is_none() || seen.gw == wanted.gw)
                    && wanted.table.is_none_or(|table| seen.table == table)
            })
        };
        if let Some(lost) = wanted.into_iter().find(|wanted| !is(wanted)) {
            return Err(failure::changed(format!("the route to {} is gone", lost.dst)));
        }
    }
    Ok(())
}
