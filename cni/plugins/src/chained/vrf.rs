// SPDX-License-Identifier: Apache-2.0
//! `vrf`: the pod's interface belongs to a routing domain of its own.

use std::collections::BTreeSet;

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::names::check_ifname;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::AddResult;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVrf, LinkAttribute};
use serde::Deserialize;

use crate::failure::{changed, invalid};
use crate::links::feature;
use crate::net::link::{Link, NewLink};
use crate::net::route::{self, MAIN};
use crate::net::{AddressOptions, Net, add_address, change_link, is_link_local, pod, up};

/// Fields of the configuration.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    vrfname: String,
    table: Option<u32>,
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields: Self = request.config.settings()?;
        check_ifname(&fields.vrfname).map_err(|error| invalid(format!("vrfname: {}", error.msg)))?;
        Ok(fields)
    }
}

/// The plugin.
pub(crate) struct Vrf;

fn table_of(link: &Link) -> Option<u32> {
    let Some(InfoData::Vrf(data)) = &link.data else { return None };
    data.iter().find_map(|one| match one {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    })
}

/// The routing domain, made if it is not there. Without a wanted table it gets the first that no other has.
fn ensure(net: &mut Net, fields: &Fields) -> Result<(Link, u32), Error> {
    if net.link(&fields.vrfname)?.is_none() {
        let used: BTreeSet<u32> = net.links()?.iter().filter_map(table_of).collect();
        let free = || (1..).find(|table| !used.contains(table) && !(253..=255).contains(table));
        let table = fields.table.or_else(free).unwrap_or(1);
        let data = InfoData::Vrf(vec![InfoVrf::TableId(table)]);
        net.create(NewLink::named(&fields.vrfname).kind(InfoKind::Vrf, Some(data)).message())?;
    }
    let vrf = net.named(&fields.vrfname, "vrfname")?;
    let Some(table) = table_of(&vrf) else {
        return Err(invalid(format!("the interface {} is not a VRF", fields.vrfname)));
    };
    if let Some(wanted) = fields.table.filter(|wanted| *wanted != table) {
        return Err(invalid(format!("the VRF {} has the table {table}, not {wanted}", fields.vrfname)));
    }
    net.execute("take the VRF up", &[up(vrf.index)])?;
    Ok((vrf, table))
}

/// The kernel drops IPv6 addresses and routes with a next hop from an interface that joins: they are put back.
fn join(net: &mut Net, link: &Link, vrf: &Link, table: u32) -> Result<(), Error> {
    let v6: Vec<IpNet> =
        net.addresses(link.index)?.into_iter().filter(|net| matches!(net, IpNet::V6(_))).collect();
    let mut routes = net.routes(false)?;
    routes.extend(net.routes(true)?);
    routes.retain(|seen| {
        seen.link == Some(link.index)
            && seen.table == MAIN
            && !seen.automatic
            && !is_link_local(seen.dst.addr())
    });
    let enslave = change_link(link.index, vec![LinkAttribute::Controller(vrf.index)]);
    net.execute("add the interface to the VRF", &[enslave])?;
    let there = net.addresses(link.index)?;
    let lost = v6.iter().filter(|address| !there.contains(address));
    let mut requests: Vec<_> =
        lost.map(|address| add_address(link.index, *address, AddressOptions::default())).collect();
    routes.sort_by_key(|seen| seen.gw.is_some());
    requests.extend(routes.iter().map(|seen| route::copy_to(seen, table)));
    net.execute("put addresses and routes back", &requests)
}

impl Plugin for Vrf {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields = Fields::of(request)?;
        let result = pod::previous(request)?;
        let mut net = Net::inside(pod::path(request)?)?;
        let link = net.named(&request.ifname, "the container's interface")?;
        let (vrf, table) = ensure(&mut net, &fields)?;
        join(&mut net, &link, &vrf, table)?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        let Some(mut net) = pod::inside_if_there(request)? else { return Ok(()) };
        let Some(vrf) = net.link(&fields.vrfname)?.filter(|link| link.is(&InfoKind::Vrf)) else {
            return Ok(());
        };
        if let Some(link) = net.link(&request.ifname)?.filter(|link| link.controller == Some(vrf.index)) {
            let free = change_link(link.index, vec![LinkAttribute::Controller(0)]);
            net.execute("take the interface out of the VRF", &[free])?;
        }
        match net.links()?.iter().any(|link| link.controller == Some(vrf.index)) {
            true => Ok(()),
            false => net.delete(&fields.vrfname).map(drop),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        pod::previous(request)?;
        let mut net = Net::inside(pod::path(request)?)?;
        let vrf = net.link(&fields.vrfname)?.filter(|link| link.is(&InfoKind::Vrf));
        let vrf = vrf.ok_or_else(|| changed(format!("the VRF {} is gone", fields.vrfname)))?;
        let link =
            net.link(&request.ifname)?.ok_or_else(|| changed(format!("{} is gone", request.ifname)))?;
        match link.controller == Some(vrf.index) {
            true => Ok(()),
            false => Err(changed(format!("{} is not in the VRF {}", link.name, vrf.name))),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        feature::expect(&InfoKind::Vrf, "CONFIG_NET_VRF")?;
        Fields::of(request).map(drop)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn about(&self) -> String {
        "vrf: the pod's interface belongs to a routing domain of its own".to_owned()
    }
}
