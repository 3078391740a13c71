// SPDX-License-Identifier: Apache-2.0
//! Interfaces of the host that a pod has for a while. The name that one had on the host is in its alias: so it finds back whatever happens
//! to files and configuration.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use isthmus_cni_kit::error::Error;
use rtnetlink::packet_route::link::LinkAttribute;

use super::mark;
use crate::failure;
use crate::net::link::Link;
use crate::net::{Net, change_link, up};

/// Moves an interface of the host into the pod, where it gets the name, down and without addresses. One message: the kernel refuses the move
/// before it touches anything. If only the name is refused, which the kernel gives after the move, the interface comes back.
pub(crate) fn lend(host: &mut Net, link: &Link, netns: &File, name: &str) -> Result<(), Error> {
    let to = vec![
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(mark::write(&link.name)),
    ];
    let lent = host.execute("move the interface into the container", &[change_link(link.index, to)]);
    // The first error is the one to tell.
    lent.inspect_err(|_| drop(bring_back(host, link, netns)))
}

/// After a refused [`lend`]: as before, if the interface is in the pod.
fn bring_back(host: &mut Net, link: &Link, netns: &File) -> Result<(), Error> {
    if host.link_at(link.index)?.is_some() {
        return Ok(());
    }
    let mut inside = Net::inside(Path::new(&format!("/proc/self/fd/{}", netns.as_raw_fd())))?;
    let moved = inside.named(&link.name, "lent interface")?;
    let home = host_netns()?;
    let back = vec![LinkAttribute::NetNsFd(home.as_raw_fd())];
    inside.execute("move the interface back to the host", &[change_link(moved.index, back)])?;
    let back = host.named(&link.name, "lent interface")?;
    if link.up { host.execute("take the interface up", &[up(back.index)]) } else { Ok(()) }
}

/// Moves it back under its own name, if that is the expected one. One that did not come from the host is left.
pub(crate) fn give_back(inside: &mut Net, link: &Link, expected: Option<&str>) -> Result<(), Error> {
    let name = mark::read(&link.alias).filter(|name| expected.is_none_or(|expected| expected == *name));
    let Some(name) = name else { return Ok(()) };
    let host = host_netns()?;
    let back = vec![
        LinkAttribute::NetNsFd(host.as_raw_fd()),
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(String::new()),
    ];
    inside.execute("move the interface back to the host", &[change_link(link.index, back)])
}

fn host_netns() -> Result<File, Error> {
    File::open("/proc/thread-self/ns/net")
        .map_err(|error| failure::io("the host's network namespace", &error))
}

#[cfg(test)]
mod tests {
    use isthmus_testkit::Lab;

    use super::*;

    /// The pod has the interface's own name, so that the kernel refuses the move, or the one that it is to get, which comes after it.
    #[test]
    fn a_refused_move_leaves_the_interface_up_and_unaliased_on_the_host() {
        let Some(lab) = Lab::new("lend") else { return };
        for taken in ["nic0", "eth0"] {
            let (host, pod) = (lab.namespace("host"), lab.namespace("pod"));
            host.sh("ip link add nic0 type veth peer name far0; ip link set nic0 up");
            pod.sh(&format!("ip link add {taken} type veth peer name other"));
            let path = pod.path();
            let after = host.run(move || {
                let (mut host, netns) = (Net::here()?, File::open(path).expect("the pod"));
                let link = host.named("nic0", "link")?;
                lend(&mut host, &link, &netns, taken).expect_err("the name is taken");
                host.named("nic0", "link")
            });
            let after = after.unwrap_or_else(|error| panic!("{taken}: {error}"));
            assert!(after.up && after.alias.is_empty(), "{taken}: {after:?}");
            assert!(!pod.sh("ip -o link").contains("cni-host"), "{taken}");
        }
    }
}
