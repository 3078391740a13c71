// SPDX-License-Identifier: Apache-2.0
//! `ipvlan`: the pod shares the Ethernet address of an interface of the host, and has addresses of its own.

use std::fs::File;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use rtnetlink::packet_route::link::{InfoData, InfoIpVlan, InfoKind, IpVlanMode};
use serde::Deserialize;

use super::in_pod::{Kind, maker};
use super::{Ipam, fitting_mtu, parent};
use crate::failure::{changed, invalid};
use crate::net::link::{Link, NewLink};

/// Fields of the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    master: Option<String>,
    mode: Option<String>,
    mtu: Option<u32>,
    #[serde(default)]
    link_in_container: bool,
}

impl Fields {
    fn mode(&self) -> Result<IpVlanMode, Error> {
        match self.mode.as_deref() {
            None | Some("" | "l2") => Ok(IpVlanMode::L2),
            Some("l3") => Ok(IpVlanMode::L3),
            Some("l3s") => Ok(IpVlanMode::L3S),
            Some(other) => Err(invalid(format!("mode {other:?} is none of l2, l3 and l3s"))),
        }
    }
}

/// The host's interface that a plugin before made, where the configuration names none.
fn master(request: &Request, fields: &Fields) -> Result<Option<String>, Error> {
    if fields.master.as_deref().is_some_and(|name| !name.is_empty()) {
        return Ok(fields.master.clone());
    }
    let before = request.config.prev_result()?;
    let of_host = before.and_then(|result| result.interfaces.into_iter().find(|one| one.sandbox.is_empty()));
    Ok(of_host.map(|interface| interface.name))
}

/// The plugin.
pub(crate) struct IpVlan;

impl Kind for IpVlan {
    const ABOUT: &'static str = "ipvlan: addresses of the pod's own on an interface of the host";
    const IPAM: Ipam = Ipam::Required;

    fn needs(&self) -> (InfoKind, &'static str) {
        (InfoKind::IpVlan, "CONFIG_IPVLAN")
    }

    fn validate(&self, request: &Request) -> Result<(), Error> {
        request.config.settings::<Fields>()?.mode().map(drop)
    }

    fn make(&self, request: &Request, netns: &File) -> Result<(), Error> {
        let fields: Fields = request.config.settings()?;
        let parent = parent(request, master(request, &fields)?.as_deref(), fields.link_in_container)?;
        let data = InfoData::IpVlan(vec![InfoIpVlan::Mode(fields.mode()?)]);
        let link = NewLink::named(&request.ifname)
            .over(&parent)
            .mtu(fitting_mtu(fields.mtu, &parent)?)
            .inside(netns)
            .kind(InfoKind::IpVlan, Some(data));
        maker(request, fields.link_in_container)?.create(link.message())
    }

    fn check(&self, request: &Request, link: &Link) -> Result<(), Error> {
        let wanted = request.config.settings::<Fields>()?.mode()?;
        match &link.data {
            Some(InfoData::IpVlan(data)) if data.contains(&InfoIpVlan::Mode(wanted)) => Ok(()),
            _ => Err(changed(format!("{} has another mode than {wanted:?}", link.name))),
        }
    }
}
