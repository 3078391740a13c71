// SPDX-License-Identifier: Apache-2.0
//! `dummy`: an interface that leads nowhere, for addresses.

use std::fs::File;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use rtnetlink::packet_route::link::InfoKind;

use super::Ipam;
use super::in_pod::{Kind, maker};
use crate::net::link::{Link, NewLink};

/// The plugin.
pub(crate) struct Dummy;

impl Kind for Dummy {
    const ABOUT: &'static str = "dummy: an interface that leads nowhere, for addresses";
    const IPAM: Ipam = Ipam::Required;

    fn needs(&self) -> (InfoKind, &'static str) {
        (InfoKind::Dummy, "CONFIG_DUMMY")
    }

    fn validate(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn make(&self, request: &Request, netns: &File) -> Result<(), Error> {
        let link = NewLink::named(&request.ifname).inside(netns).kind(InfoKind::Dummy, None);
        maker(request, false)?.create(link.message())
    }

    fn check(&self, _: &Request, _: &Link) -> Result<(), Error> {
        Ok(())
    }
}
