// SPDX-License-Identifier: Apache-2.0
//! A pod's link: a veth pair born inside the pod's namespace, its host end a router with a fixed Ethernet address.
//!
//! Making one moves nothing between namespaces and reads no table: a move waits for grace periods of the kernel.

mod chained;
mod leaving;
mod messages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::kernel::{MacAddress, RouteKind};
use isthmus_model::ownership::{HOST_LINK_MAC, POD_LINK_PREFIX};

use crate::link::{self, POD_ALIAS};
use crate::netns::{self, Excursion};
use crate::route::Routes;
use crate::table::{Table, link_index};
use crate::wire::{Refusal, Request, Wire};
use crate::{addr, sysctl};
pub use chained::ForeignLink;
use leaving::Leaving;
use messages::Ends;

/// Bytes of a [`PodLink::alias`]: the kernel takes 255 (IFALIASZ), `isthmus:pod:` before it included.
pub const POD_ALIAS_MAX: usize = 240;

/// Usually it takes less than a millisecond. A link that still cannot send after this will be able to later.
const CARRIER_PATIENCE: Duration = Duration::from_millis(500);
const CARRIER_PAUSE: Duration = Duration::from_micros(100);

/// What a pod's link shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The pod's network namespace, such as `/var/run/netns/cni-…` or `/proc/1/ns/net`.
    pub netns_path: PathBuf,
    /// Name of the link inside the pod (CNI_IFNAME).
    pub ifname: LinkName,
    /// Name of the host end, unique on the node.
    pub host_link: LinkName,
    /// Whose link it is, stored as the host end's alias after `isthmus:pod:`; at most [`POD_ALIAS_MAX`] bytes.
    pub alias: String,
    /// The pod's addresses; at least one.
    pub addresses: Vec<IpAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// The pod's Ethernet address; without one it is made from the first address.
    pub mac: Option<MacAddress>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLinkMade {
    /// Ethernet address of the host end.
    pub host_mac: MacAddress,
    /// Ethernet address inside the pod.
    pub pod_mac: MacAddress,
    /// Interface index of the host end.
    pub host_index: u32,
    /// Interface index inside the pod.
    pub pod_index: u32,
    /// A link of the same name was there and went: with it went the routes that led to it.
    pub replaced: bool,
}

/// A pod's link as found on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLinkSeen {
    /// The alias without `isthmus:pod:`; empty if the link was only begun.
    pub alias: String,
    /// The host end is up.
    pub up: bool,
}

/// Why a pod's link could not be made, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodLinkError {
    /// The link is not as it was made.
    #[error("the pod's link is not as it was made: {0}")]
    Broken(String),
    /// A name is taken.
    #[error("an interface {ifname} exists already in the pod's namespace {}: remove it, or choose another name", path.display())]
    Exists {
        /// The pod's namespace.
        path: PathBuf,
        /// The taken name.
        ifname: LinkName,
    },
    /// An interface of another plugin that Isthmus cannot work with.
    #[error(
        "{ifname} of the pod is no veth pair to the node: {what}; put isthmus-cni behind a plugin that makes one, such as ptp or bridge"
    )]
    Foreign {
        /// The pod's interface.
        ifname: LinkName,
        /// What it is instead.
        what: String,
    },
    /// The pod's namespace cannot be entered.
    #[error("cannot enter the pod's network namespace {}: the pod may be gone", path.display())]
    Namespace {
        /// The pod's namespace.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("the kernel refused to {step}: {reason}")]
    Refused {
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// A socket or file failed.
    #[error("cannot talk to the kernel about links")]
    Socket(#[from] io::Error),
}

/// Makes and removes pods' links. All methods block for about a millisecond.
pub struct PodLinks {
    host_ns: File,
    host: Mutex<Wire>,
    leaving: Leaving,
}

impl PodLinks {
    /// For pods of this process' network namespace.
    pub fn open() -> io::Result<Self> {
        Self::open_in(Path::new("/proc/thread-self/ns/net"))
    }

    /// For pods of the node whose network namespace is at `path`.
    pub fn open_in(path: &Path) -> io::Result<Self> {
        let host_ns = File::open(path)?;
        let host = netns::run(path, Wire::open_route)??;
        let leaving = Leaving::new(host_ns.try_clone()?, netns::run(path, Wire::open_route)??);
        Ok(Self { host_ns, host: Mutex::new(host), leaving })
    }

    /// Makes the link: when this returns, both ends are up and the pod has its addresses and default routes.
    /// A host end of the same name that an interrupted call left behind is replaced.
    pub fn add(&self, wanted: &PodLink) -> Result<PodLinkMade, PodLinkError> {
        let pod_ns = open_namespace(&wanted.netns_path)?;
        let trip = Excursion::begin()?;
        let outside = |source| PodLinkError::Namespace { path: wanted.netns_path.clone(), source };
        trip.to(&pod_ns).map_err(outside)?;
        let mut pod = Wire::open_route()?;
        let made = self.create(&mut pod, wanted).and_then(|(ends, replaced)| {
            let made = self.configure(&trip, &mut pod, wanted, ends)?;
            Ok(PodLinkMade { replaced, ..made })
        });
        drop(trip);
        if made.is_err() {
            // The first error is the one to tell.
            let _ = self.del(&wanted.host_link);
        }
        made
    }

    /// Removes the link by its host end: when this returns, neither end is in its namespace. Returns whether there was one.
    pub fn del(&self, host_link: &LinkName) -> Result<bool, PodLinkError> {
        self.leaving.delete(host_link)
    }

    /// Brings the host end back to what `add` made of it, after someone took it down. A missing host end cannot be
    /// brought back (`Broken`): the pod's end is gone with it.
    pub fn restore(&self, wanted: &PodLink) -> Result<(), PodLinkError> {
        let path = Path::new("/proc/thread-self/fd").join(self.host_ns.as_raw_fd().to_string());
        let restored = netns::run(&path, || {
            let index = link_index(&wanted.host_link).map_err(PodLinkError::Broken)?;
            set_host_end(&wanted.host_link, wanted.addresses.iter().any(IpAddr::is_ipv6))?;
            self.on_host(|wire| execute_all(wire, "restore the host end", &messages::host_end(wanted, index)))
        });
        restored?
    }

    /// Checks that the link is as `add` made it.
    pub fn check(&self, wanted: &PodLink) -> Result<(), PodLinkError> {
        let seen = self.list()?;
        let Some(host) = seen.get(&wanted.host_link) else {
            return Err(PodLinkError::Broken(format!("the host end {} is missing", wanted.host_link)));
        };
        if !host.up {
            return Err(PodLinkError::Broken(format!("the host end {} is down", wanted.host_link)));
        }
        open_namespace(&wanted.netns_path)?;
        netns::run(&wanted.netns_path, || check_inside(wanted))
            .map_err(|source| PodLinkError::Namespace { path: wanted.netns_path.clone(), source })?
    }

    /// The host ends of all pods' links of the node. One without alias was left by an `add` that was interrupted: the kernel
    /// takes none when it makes a link.
    pub fn list(&self) -> Result<BTreeMap<LinkName, PodLinkSeen>, PodLinkError> {
        let mut links = link::Links::default();
        self.on_host(|wire| links.observe(wire))?;
        let begun = |name: &LinkName, link: &link::LinkSeen| {
            link.alias.is_none() && name.as_str().starts_with(POD_LINK_PREFIX)
        };
        let pods = links.seen.into_iter().filter(|(name, link)| link.is_pod_link() || begun(name, link));
        let seen = |link: link::LinkSeen| {
            let alias = link.alias.unwrap_or_default();
            PodLinkSeen { alias: alias.trim_start_matches(POD_ALIAS).to_owned(), up: link.up }
        };
        Ok(pods.map(|(name, link)| (name, seen(link))).collect())
    }

    /// Routes of ours that lead to pods' links, in whatever table, and those links.
    pub fn routes(&self) -> Result<BTreeMap<IpNet, BTreeSet<LinkName>>, PodLinkError> {
        let mut links = link::Links::default();
        let observed = self.on_host(|wire| {
            links.observe(wire)?;
            Routes::observe(wire, &links.names(|_| true))
        })?;
        let mut routes: BTreeMap<IpNet, BTreeSet<LinkName>> = BTreeMap::new();
        for (key, route) in observed {
            let RouteKind::Unicast(hops) = route.kind else { continue };
            let pods = hops
                .into_iter()
                .map(|hop| hop.link)
                .filter(|link| link.as_str().starts_with(POD_LINK_PREFIX));
            for link in pods {
                routes.entry(key.destination).or_default().insert(link);
            }
        }
        Ok(routes)
    }

    /// Both ends' indices, and whether a link was replaced.
    fn create(&self, pod: &mut Wire, wanted: &PodLink) -> Result<(Ends, bool), PodLinkError> {
        let request = messages::create(wanted, self.host_ns.as_fd());
        let mut replaced = false;
        for attempt in 0..2 {
            match messages::create_and_see(pod, &request, &wanted.ifname)? {
                Ok(ends) => return Ok((ends, replaced)),
                Err(refusal) if refusal.errno == libc::EEXIST && attempt == 0 => {
                    replaced = self.del(&wanted.host_link)?;
                }
                Err(refusal) if refusal.errno == libc::EEXIST => break,
                Err(refusal) => return Err(refused("make the veth pair", &refusal)),
            }
        }
        Err(PodLinkError::Exists { path: wanted.netns_path.clone(), ifname: wanted.ifname.clone() })
    }

    /// The host end first: the pod's end is still down, so nothing flows before all is set. The way is out of the pod's namespace into
    /// the host's.
    fn configure(
        &self,
        trip: &Excursion,
        pod: &mut Wire,
        wanted: &PodLink,
        ends: Ends,
    ) -> Result<PodLinkMade, PodLinkError> {
        let v6 = wanted.addresses.iter().any(IpAddr::is_ipv6);
        if v6 {
            set_ipv6(&wanted.ifname)?;
        }
        trip.to(&self.host_ns)?;
        set_host_end(&wanted.host_link, v6)?;
        self.on_host(|wire| {
            execute_all(wire, "set up the host end", &messages::host_end(wanted, ends.host))
        })?;
        execute_all(pod, "set up the pod's end", &messages::pod_end(wanted, ends.pod))?;
        self.wait_until_it_sends(ends.host)?;
        Ok(PodLinkMade {
            host_mac: HOST_LINK_MAC,
            pod_mac: messages::pod_mac(wanted),
            host_index: ends.host,
            pod_index: ends.pod,
            replaced: false,
        })
    }

    /// The host end was up first, and gained its carrier with the pod's end: what it is given to send before the kernel has
    /// seen to that is dropped, and the pod's first answer with it.
    fn wait_until_it_sends(&self, host_index: u32) -> io::Result<()> {
        let deadline = Instant::now() + CARRIER_PATIENCE;
        while !self.on_host(|wire| messages::can_send(wire, host_index))? && Instant::now() < deadline {
            std::thread::sleep(CARRIER_PAUSE);
        }
        Ok(())
    }

    fn on_host<T>(&self, work: impl FnOnce(&mut Wire) -> T) -> T {
        work(&mut self.host.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn open_namespace(path: &Path) -> Result<File, PodLinkError> {
    File::open(path).map_err(|source| PodLinkError::Namespace { path: path.to_owned(), source })
}

fn execute_all(wire: &mut Wire, step: &'static str, requests: &[Request]) -> Result<(), PodLinkError> {
    let results = wire.execute(requests)?;
    results.into_iter().collect::<Result<(), Refusal>>().map_err(|refusal| refused(step, &refusal))
}

fn refused(step: &'static str, refusal: &Refusal) -> PodLinkError {
    PodLinkError::Refused { step, reason: refusal.to_string() }
}

/// Router advertisements are not for pods, and duplicates are excluded by plan.
fn set_ipv6(link: &LinkName) -> io::Result<()> {
    set(sysctl::write, link, "disable_ipv6", "0")?;
    set(sysctl::put, link, "accept_dad", "0")?;
    set(sysctl::put, link, "accept_ra", "0")
}

/// The settings of IPv6, which netlink does not take; those of IPv4 are in [`messages::host_end`]. Without IPv6 the pod still must not
/// tell the node of routers.
fn set_host_end(link: &LinkName, v6: bool) -> io::Result<()> {
    if !v6 {
        return set(sysctl::put, link, "accept_ra", "0");
    }
    set_ipv6(link)?;
    set(sysctl::write, link, "forwarding", "1")
}

/// A kernel without IPv6 has no such settings. What a new link mostly has by itself is better looked at first: writing waits for the
/// kernel's lock of all links.
fn set(
    write: fn(&str, &str) -> io::Result<bool>,
    link: &LinkName,
    name: &str,
    value: &str,
) -> io::Result<()> {
    match write(&format!("net/ipv6/conf/{link}/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map(drop),
    }
}

fn check_inside(wanted: &PodLink) -> Result<(), PodLinkError> {
    let broken = |what: String| Err(PodLinkError::Broken(what));
    let mut wire = Wire::open_route()?;
    let mut links = link::Links::default();
    links.observe(&mut wire)?;
    match links.seen.get(&wanted.ifname) {
        None => return broken(format!("{} is missing in the pod", wanted.ifname)),
        Some(link) if !link.up => return broken(format!("{} is down in the pod", wanted.ifname)),
        Some(_) => {}
    }
    let addresses = addr::dump(&mut wire, &links.names(|_| true))?;
    for address in &wanted.addresses {
        if !addresses.iter().any(|seen| seen.link == wanted.ifname && seen.net.addr() == *address) {
            return broken(format!("{} lost the address {address}", wanted.ifname));
        }
        if !messages::has_default_route(&mut wire, address.is_ipv6())? {
            return broken(format!("the pod lost its default route for {address}"));
        }
    }
    Ok(())
}
