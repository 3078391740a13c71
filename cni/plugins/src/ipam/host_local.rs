// SPDX-License-Identifier: Apache-2.0
//! `host-local`: addresses from ranges of the node's own, in the Go project's layout on disk.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use isthmus_cni_kit::config::capabilities::{IpRange, IpRanges};
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Ip};
use serde::Deserialize;

use super::holder::Holder;
use super::range::RangeSet;
use super::store::Store;
use super::{Routes, asked_for, fields, parse_asked, read_resolv_conf, told};
use crate::failure::{changed, invalid};

/// Fields of `ipam`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    ranges: Vec<Vec<IpRange>>,
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Routes,
    #[serde(default)]
    data_dir: PathBuf,
    #[serde(default)]
    resolv_conf: String,
}

struct Config {
    sets: Vec<RangeSet>,
    routes: Routes,
    data_dir: PathBuf,
    resolv_conf: String,
}

impl Config {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields: Fields = fields(request)?;
        let mut written = Vec::new();
        if let Some(subnet) = fields.subnet {
            written.push(vec![IpRange {
                subnet,
                range_start: fields.range_start,
                range_end: fields.range_end,
                gateway: fields.gateway,
            }]);
        }
        if let Some(IpRanges(of_runtime)) = request.config.capability()? {
            written.splice(0..0, of_runtime);
        }
        written.extend(fields.ranges);
        let sets: Vec<RangeSet> = written.iter().map(|set| RangeSet::of(set)).collect::<Result<_, _>>()?;
        if sets.is_empty() {
            return Err(invalid("ipam has neither ranges nor a subnet"));
        }
        for (at, set) in sets.iter().enumerate() {
            if sets[..at].iter().any(|other| other.overlaps(set)) {
                return Err(invalid("two sets of ranges overlap"));
            }
        }
        let data_dir = match fields.data_dir.as_os_str().is_empty() {
            true => "/var/lib/cni/networks".into(),
            false => fields.data_dir,
        };
        Ok(Self { sets, routes: fields.routes, data_dir, resolv_conf: fields.resolv_conf })
    }

    fn store(&self, request: &Request) -> Result<Store, Error> {
        Store::open(&self.data_dir, request.config.name())
    }
}

fn holder(request: &Request) -> Holder {
    Holder { container_id: request.container_id.clone(), ifname: request.ifname.clone() }
}

/// Reserves an address of each set: the one that is asked for, or the next that is free.
fn reserve(
    request: &Request,
    store: &Store,
    sets: &[RangeSet],
    taken: &mut Vec<IpAddr>,
) -> Result<Vec<Ip>, Error> {
    let holder = holder(request);
    let mut asked: Vec<IpAddr> = asked_for(request)?
        .iter()
        .map(|text| parse_asked(text).map(|(address, _)| address))
        .collect::<Result<_, _>>()?;
    let mut ips = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let wanted = asked.iter().position(|ip| set.holding(*ip).is_some()).map(|at| asked.swap_remove(at));
        let (range, address) = match wanted {
            Some(address) => asked_address(store, set, address, &holder)?,
            None => next_address(store, set, number, &holder)?,
        };
        taken.push(address);
        let address = IpNet::new(address, range.subnet.prefix_len())
            .map_err(|error| invalid(format!("{address}: {error}")))?;
        ips.push(Ip { interface: None, address, gateway: range.gateway, extra: serde_json::Map::new() });
    }
    if !asked.is_empty() {
        return Err(invalid(format!("addresses that are asked for are in none of the ranges: {asked:?}")));
    }
    Ok(ips)
}

type Found<'a> = (&'a super::range::Range, IpAddr);

fn asked_address<'a>(
    store: &Store,
    set: &'a RangeSet,
    address: IpAddr,
    holder: &Holder,
) -> Result<Found<'a>, Error> {
    let range = set.holding(address).ok_or_else(|| invalid(format!("{address} is in no range")))?;
    if range.gateway == Some(address) {
        return Err(invalid(format!("{address} is the gateway's")));
    }
    match store.reserve(address, holder)? {
        true => Ok((range, address)),
        false => Err(Error::new(code::TRY_AGAIN, format!("{address} is another container's"))),
    }
}

fn next_address<'a>(
    store: &Store,
    set: &'a RangeSet,
    number: usize,
    holder: &Holder,
) -> Result<Found<'a>, Error> {
    for (range, address) in set.after(store.last(number)) {
        if range.gateway != Some(address) && store.reserve(address, holder)? {
            store.set_last(number, address);
            return Ok((range, address));
        }
    }
    let subnets: Vec<String> = set.0.iter().map(|range| range.subnet.to_string()).collect();
    Err(Error::new(code::TRY_AGAIN, format!("no address is free in {}", subnets.join(", "))))
}

/// The plugin.
pub(crate) struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let config = Config::of(request)?;
        let store = config.store(request)?;
        let mut result = AddResult { routes: config.routes.clone(), ..AddResult::default() };
        if !config.resolv_conf.is_empty() {
            result.dns = read_resolv_conf(&config.resolv_conf)?;
        }
        let held = store.of(&holder(request))?;
        if !held.is_empty() {
            let msg = format!("the container's interface {} has addresses already: {held:?}", request.ifname);
            return Err(Error::new(crate::failure::EXISTS, msg));
        }
        let mut taken = Vec::new();
        match reserve(request, &store, &config.sets, &mut taken) {
            Ok(ips) => {
                result.ips = ips;
                Ok(told(request, result))
            }
            Err(error) => {
                // The first error is the one to tell.
                taken.iter().for_each(|address| drop(store.release(*address)));
                Err(error)
            }
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let store = Config::of(request)?.store(request)?;
        store.of(&holder(request))?.iter().try_for_each(|address| store.release(*address))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let store = Config::of(request)?.store(request)?;
        let held = store.of(&holder(request))?;
        if held.is_empty() {
            return Err(changed("the container has no reserved address"));
        }
        Ok(())
    }

    /// Code 50 if one of the sets has no free address.
    fn status(&self, request: &Request) -> Result<(), Error> {
        let config = Config::of(request)?;
        let store = config.store(request)?;
        let taken: std::collections::BTreeSet<IpAddr> =
            store.all()?.into_iter().map(|(address, _)| address).collect();
        for set in &config.sets {
            let free =
                |(range, address): Found<'_>| range.gateway != Some(address) && !taken.contains(&address);
            if !set.after(None).any(free) {
                let subnets: Vec<String> = set.0.iter().map(|range| range.subnet.to_string()).collect();
                return Err(Error::new(
                    code::UNAVAILABLE,
                    format!("no address is free in {}", subnets.join(", ")),
                ));
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let store = Config::of(request)?.store(request)?;
        let valid = |holder: &Holder| {
            request.valid_attachments.iter().any(|one| {
                one.container_id == holder.container_id
                    && (holder.ifname.is_empty() || one.ifname == holder.ifname)
            })
        };
        let stale = store.all()?.into_iter().filter(|(_, holder)| !valid(holder));
        stale.map(|(address, _)| store.release(address)).fold(Ok(()), Result::and)
    }

    fn about(&self) -> String {
        "host-local: addresses from ranges of the node's own".to_owned()
    }
}
