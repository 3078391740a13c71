// SPDX-License-Identifier: Apache-2.0
//! `static`: the addresses that the configuration, or the caller, names.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Dns, Ip};
use serde::Deserialize;

use super::{Routes, asked_for, fields, parse_asked, told};
use crate::failure::{changed, invalid};

/// Fields of `ipam`.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    routes: Routes,
    #[serde(default)]
    dns: Dns,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    address: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// The plugin.
pub(crate) struct Fixed;

/// What the caller asks for goes before what the configuration names; an address without prefix gets that of the configuration.
fn addresses(request: &Request, fields: &Fields) -> Result<Vec<Address>, Error> {
    let asked = asked_for(request)?;
    let gateways: Vec<IpAddr> = match request.args.get("GATEWAY") {
        Some(text) => text
            .split(',')
            .map(|text| {
                text.trim().parse().map_err(|_| invalid(format!("GATEWAY {text:?} is no IP address")))
            })
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    let mut all = match asked.is_empty() {
        true => fields.addresses.clone(),
        false => asked.iter().map(|text| of_caller(text, fields)).collect::<Result<_, _>>()?,
    };
    for gateway in gateways {
        all.iter_mut()
            .filter(|one| one.address.contains(&gateway))
            .for_each(|one| one.gateway = Some(gateway));
    }
    if all.is_empty() {
        return Err(invalid(
            "no address is set: ipam.addresses, runtimeConfig.ips and CNI_ARGS IP are empty",
        ));
    }
    Ok(all)
}

fn of_caller(text: &str, fields: &Fields) -> Result<Address, Error> {
    let (address, net) = parse_asked(text)?;
    let known = fields.addresses.iter().find(|one| one.address.contains(&address));
    let net = match (net, known) {
        (Some(net), _) => net,
        (None, Some(known)) => IpNet::new(address, known.address.prefix_len())
            .map_err(|error| invalid(format!("{address}: {error}")))?,
        (None, None) => return Err(invalid(format!("{address} has no prefix length, such as {address}/24"))),
    };
    Ok(Address { address: net, gateway: known.and_then(|known| known.gateway) })
}

impl Plugin for Fixed {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields: Fields = fields(request)?;
        let ips = addresses(request, &fields)?.into_iter().map(|one| Ip {
            interface: None,
            address: one.address,
            gateway: one.gateway,
            extra: serde_json::Map::new(),
        });
        let result =
            AddResult { ips: ips.collect(), routes: fields.routes, dns: fields.dns, ..AddResult::default() };
        Ok(told(request, result))
    }

    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let fields: Fields = fields(request)?;
        let result = crate::net::pod::previous(request)?;
        for one in addresses(request, &fields)? {
            if !result.ips.iter().any(|ip| ip.address == one.address) {
                return Err(changed(format!("{} is not in the result of ADD", one.address)));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        fields::<Fields>(request).map(drop)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn about(&self) -> String {
        "static: the addresses that the configuration, or the caller, names".to_owned()
    }
}
