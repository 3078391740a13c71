// SPDX-License-Identifier: Apache-2.0
//! The reference plugins of CNI, with the fields that the Go project's have, in one program.
//!
//! ```text
//! isthmus-plugins install /opt/cni/bin      links such as /opt/cni/bin/bridge, each of which is this program
//! ```
//!
//! Each plugin keeps what it has to know in the kernel (names and aliases of links, comments of rules) or, for addresses, in files; so each
//! can delete without a namespace and collect garbage.

mod chained;
mod failure;
mod install;
mod ipam;
mod links;
mod net;
mod nft;
mod owner;
mod settings;
mod sysctl;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use isthmus_cni_kit::plugin::{self, Plugin};

/// A plugin's name and how to make it.
type Named = (&'static str, fn() -> Box<dyn Plugin>);

/// Every plugin of the program.
const PLUGINS: &[Named] = &[
    ("bandwidth", || Box::new(chained::bandwidth::Bandwidth)),
    ("bond", || Box::new(links::in_pod::InPod(links::bond::Bond))),
    ("bridge", || Box::new(links::bridge::Bridge)),
    ("dhcp", || Box::new(ipam::dhcp::Dhcp)),
    ("dummy", || Box::new(links::in_pod::InPod(links::dummy::Dummy))),
    ("firewall", || Box::new(chained::firewall::Firewall)),
    ("host-device", || Box::new(links::host_device::HostDevice)),
    ("host-local", || Box::new(ipam::host_local::HostLocal)),
    ("ipvlan", || Box::new(links::in_pod::InPod(links::ipvlan::IpVlan))),
    ("loopback", || Box::new(links::loopback::Loopback)),
    ("macvlan", || Box::new(links::in_pod::InPod(links::macvlan::MacVlan))),
    ("portmap", || Box::new(chained::portmap::Portmap)),
    ("ptp", || Box::new(links::ptp::Ptp)),
    ("route-override", || Box::new(chained::route_override::RouteOverride)),
    ("sbr", || Box::new(chained::sbr::Sbr)),
    ("static", || Box::new(ipam::fixed::Fixed)),
    ("tap", || Box::new(links::in_pod::InPod(links::tap::Tap))),
    ("tuning", || Box::new(chained::tuning::Tuning)),
    ("vlan", || Box::new(links::in_pod::InPod(links::vlan::Vlan))),
    ("vrf", || Box::new(chained::vrf::Vrf)),
];

/// Names of all plugins.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|(name, _)| *name)
}

/// A plugin by its name.
pub fn plugin(name: &str) -> Option<Box<dyn Plugin>> {
    PLUGINS.iter().find(|(known, _)| *known == name).map(|(_, make)| make())
}

/// Runs the plugin that the program is called by, or speaks to the person who called it by its own name. `dhcp daemon` runs the daemon of
/// that plugin, by either name.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let called = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let words: Vec<&str> = arguments.iter().skip(1).map(|word| word.to_str().unwrap_or_default()).collect();
    match (called.to_str(), words.as_slice()) {
        (Some("dhcp"), ["daemon", ..]) => return ipam::dhcp::daemon(&arguments[2..]),
        (_, ["dhcp", "daemon", ..]) => return ipam::dhcp::daemon(&arguments[3..]),
        _ => {}
    }
    match called.to_str().and_then(plugin) {
        Some(plugin) => plugin::main(plugin.as_ref()),
        None => install::command(&arguments[1.min(arguments.len())..]),
    }
}
