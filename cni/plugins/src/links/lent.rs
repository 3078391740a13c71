// SPDX-License-Identifier: Apache-2.0
//! Interfaces of the host that a pod has for a while. The name that one had on the host is in its alias: so it finds back whatever happens
//! to files and configuration.

use std::fs::File;
use std::os::fd::AsRawFd;

use isthmus_cni_kit::error::Error;
use isthmus_netlink::Request;
use rtnetlink::packet_route::link::LinkAttribute;

use super::mark;
use crate::failure;
use crate::net::link::Link;
use crate::net::{Net, change_link, down};

/// Moves an interface of the host into the pod, where it gets the name.
pub(crate) fn lend(link: &Link, netns: &File, name: &str) -> [Request; 3] {
    [
        down(link.index),
        change_link(link.index, vec![LinkAttribute::IfAlias(mark::write(&link.name))]),
        change_link(
            link.index,
            vec![LinkAttribute::NetNsFd(netns.as_raw_fd()), LinkAttribute::IfName(name.to_owned())],
        ),
    ]
}

/// Moves it back under its own name. One that did not come from the host is left.
pub(crate) fn give_back(inside: &mut Net, link: &Link) -> Result<(), Error> {
    let Some(name) = mark::read(&link.alias) else { return Ok(()) };
    let host = File::open("/proc/thread-self/ns/net")
        .map_err(|error| failure::io("the host's network namespace", &error))?;
    let back = vec![LinkAttribute::NetNsFd(host.as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
    let requests = [
        down(link.index),
        change_link(link.index, vec![LinkAttribute::IfAlias(String::new())]),
        change_link(link.index, back),
    ];
    inside.execute("move the interface back to the host", &requests)
}
