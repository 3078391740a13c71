// SPDX-License-Identifier: Apache-2.0
//! `macvlan`: the pod's interface is an Ethernet address of its own on an interface of the host.

use std::fs::File;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoMacVlan, MacVlanMode};
use serde::Deserialize;

use super::in_pod::{Kind, maker};
use super::{Ipam, fitting_mtu, parent};
use crate::failure::{changed, invalid};
use crate::net::link::{Link, NewLink};
use crate::settings;

/// Fields of the configuration. `mac` is read with the other places that it comes by.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    master: Option<String>,
    mode: Option<String>,
    mtu: Option<u32>,
    #[serde(default)]
    link_in_container: bool,
    bcqueuelen: Option<u32>,
}

impl Fields {
    fn mode(&self) -> Result<MacVlanMode, Error> {
        match self.mode.as_deref() {
            None | Some("" | "bridge") => Ok(MacVlanMode::Bridge),
            Some("private") => Ok(MacVlanMode::Private),
            Some("vepa") => Ok(MacVlanMode::Vepa),
            Some("passthru") => Ok(MacVlanMode::Passthrough),
            Some(other) => {
                Err(invalid(format!("mode {other:?} is none of bridge, private, vepa and passthru")))
            }
        }
    }
}

/// The plugin.
pub(crate) struct MacVlan;

impl Kind for MacVlan {
    const ABOUT: &'static str = "macvlan: an Ethernet address of the pod's own on an interface of the host";
    const IPAM: Ipam = Ipam::Optional;

    fn needs(&self) -> (InfoKind, &'static str) {
        (InfoKind::MacVlan, "CONFIG_MACVLAN")
    }

    fn validate(&self, request: &Request) -> Result<(), Error> {
        request.config.settings::<Fields>()?.mode()?;
        settings::mac(request).map(drop)
    }

    fn make(&self, request: &Request, netns: &File) -> Result<(), Error> {
        let fields: Fields = request.config.settings()?;
        let parent = parent(request, fields.master.as_deref(), fields.link_in_container)?;
        let mut data = vec![InfoMacVlan::Mode(fields.mode()?)];
        data.extend(fields.bcqueuelen.map(InfoMacVlan::BcQueueLen));
        let link = NewLink::named(&request.ifname)
            .over(&parent)
            .mtu(fitting_mtu(fields.mtu, &parent)?)
            .mac(settings::mac(request)?)
            .inside(netns)
            .kind(InfoKind::MacVlan, Some(InfoData::MacVlan(data)));
        maker(request, fields.link_in_container)?.create(link.message())
    }

    fn check(&self, request: &Request, link: &Link) -> Result<(), Error> {
        let wanted = request.config.settings::<Fields>()?.mode()?;
        match &link.data {
            Some(InfoData::MacVlan(data)) if data.contains(&InfoMacVlan::Mode(wanted)) => Ok(()),
            _ => Err(changed(format!("{} has another mode than {wanted:?}", link.name))),
        }
    }
}
