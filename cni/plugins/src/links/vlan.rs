// SPDX-License-Identifier: Apache-2.0
//! `vlan`: the pod's interface is an 802.1Q tag on an interface of the host.

use std::fs::File;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVlan};
use serde::Deserialize;

use super::in_pod::{Kind, maker};
use super::{Ipam, fitting_mtu, parent};
use crate::failure::{changed, invalid};
use crate::net::link::{Link, NewLink};

/// Fields of the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    master: String,
    #[serde(default)]
    vlan_id: u16,
    mtu: Option<u32>,
    #[serde(default)]
    link_in_container: bool,
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields: Self = request.config.settings()?;
        match &fields {
            _ if fields.master.is_empty() => Err(invalid("master of the configuration is missing")),
            _ if !(1..=4094).contains(&fields.vlan_id) => {
                Err(invalid(format!("vlanId {} is not from 1 to 4094", fields.vlan_id)))
            }
            _ => Ok(fields),
        }
    }
}

/// The plugin.
pub(crate) struct Vlan;

impl Kind for Vlan {
    const ABOUT: &'static str = "vlan: an 802.1Q tag on an interface of the host";
    const IPAM: Ipam = Ipam::Required;

    fn needs(&self) -> (InfoKind, &'static str) {
        (InfoKind::Vlan, "CONFIG_VLAN_8021Q")
    }

    fn validate(&self, request: &Request) -> Result<(), Error> {
        Fields::of(request).map(drop)
    }

    fn make(&self, request: &Request, netns: &File) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        let parent = parent(request, Some(&fields.master), fields.link_in_container)?;
        let link = NewLink::named(&request.ifname)
            .over(&parent)
            .mtu(fitting_mtu(fields.mtu, &parent)?)
            .inside(netns)
            .kind(InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(fields.vlan_id)])));
        maker(request, fields.link_in_container)?.create(link.message())
    }

    fn check(&self, request: &Request, link: &Link) -> Result<(), Error> {
        let wanted = Fields::of(request)?.vlan_id;
        match &link.data {
            Some(InfoData::Vlan(data)) if data.contains(&InfoVlan::Id(wanted)) => Ok(()),
            _ => Err(changed(format!("{} has another tag than {wanted}", link.name))),
        }
    }
}
