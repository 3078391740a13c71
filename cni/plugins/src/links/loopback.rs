// SPDX-License-Identifier: Apache-2.0
//! `loopback`: takes `lo` up, whatever CNI_IFNAME says.

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Ip};

use crate::failure;
use crate::net::{Net, down, pod, up};

/// The plugin.
pub(crate) struct Loopback;

const NAME: &str = "lo";

fn missing() -> Error {
    failure::changed("the container has no lo")
}

impl Plugin for Loopback {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let mut net = Net::inside(pod::path(request)?)?;
        let index = net.link(NAME)?.ok_or_else(missing)?.index;
        net.execute("take lo up", &[up(index)])?;
        if let Some(before) = request.config.prev_result()? {
            return Ok(before);
        }
        let link = net.link_at(index)?.ok_or_else(missing)?;
        let ip = |address| Ip { interface: Some(0), address, gateway: None, extra: serde_json::Map::new() };
        let mut interface = pod::interface(&link, &pod::sandbox(request));
        interface.mtu = None;
        Ok(AddResult {
            interfaces: vec![interface],
            ips: net.addresses(index)?.into_iter().map(ip).collect(),
            ..AddResult::default()
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let Some(mut net) = pod::inside_if_there(request)? else { return Ok(()) };
        match net.link(NAME)? {
            Some(link) => net.execute("take lo down", &[down(link.index)]),
            None => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let mut net = Net::inside(pod::path(request)?)?;
        match net.link(NAME)?.ok_or_else(missing)?.up {
            true => Ok(()),
            false => Err(failure::changed("lo is down")),
        }
    }

    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn about(&self) -> String {
        "loopback: takes lo up".to_owned()
    }
}
