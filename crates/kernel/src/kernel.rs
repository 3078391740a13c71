// SPDX-License-Identifier: Apache-2.0
//! The kernel of one node: a handle to the thread that talks to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::kernel::{Desired, MacAddress};
use isthmus_model::nft::Ruleset;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr;
use tokio::sync::oneshot;

use crate::converge::{InSync, Outcomes, Tables};
use crate::events::{Events, Subscription};
use crate::link::Links;
use crate::nft::{Nft, NftError};
use crate::wire::Wire;
use crate::{addr, netns};

/// Why the kernel could not be asked or armed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The base table could not be made.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A socket failed.
    #[error("cannot talk to the kernel over netlink: is this process running with CAP_NET_ADMIN?")]
    Socket(#[from] io::Error),
}

/// What the node has besides what is ours: the facts that desired state is compiled from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// All links, ours as well.
    pub links: BTreeMap<LinkName, LinkFacts>,
    /// Addresses with their prefix length, except ours and those on links of ours.
    pub addresses: Vec<(LinkName, IpNet)>,
    /// Links that default routes of the main table use.
    pub default_links: BTreeSet<LinkName>,
}

/// A link of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Interface index.
    pub index: u32,
    /// Ethernet address.
    pub mac: Option<MacAddress>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Interface alias.
    pub alias: Option<String>,
}

/// The kernel's tables in one network namespace. Its thread ends when this is dropped.
pub struct Kernel {
    jobs: mpsc::Sender<Job>,
    namespace: PathBuf,
    port: u32,
    nft_fd: OwnedFd,
}

type Job = Box<dyn FnOnce(&mut Tables) + Send>;

impl Kernel {
    /// The network namespace of this process.
    pub fn open(nft: Nft) -> Result<Self, KernelError> {
        Self::open_in(Path::new("/proc/self/ns/net"), nft)
    }

    /// The network namespace at `path`; `nft` must have been opened in it.
    pub fn open_in(path: &Path, nft: Nft) -> Result<Self, KernelError> {
        let namespace = std::fs::File::open(path)?;
        let nft_fd = nft.fd().try_clone_to_owned()?;
        let (jobs, work) = mpsc::channel::<Job>();
        let (opened, ready) = mpsc::channel();
        thread::Builder::new().name("kernel".into()).spawn(move || {
            let wire = netns::enter(namespace).and_then(|()| Wire::open_route());
            let wire = match wire.and_then(|wire| port_of(&wire).map(|port| (wire, port))) {
                Ok((wire, port)) => {
                    let _ = opened.send(Ok(port));
                    wire
                }
                Err(error) => return drop(opened.send(Err(error))),
            };
            let mut tables = Tables::new(wire, nft);
            work.iter().for_each(|job| job(&mut tables));
        })?;
        let port = ready.recv().map_err(|_| io::Error::other("the kernel thread ended"))??;
        Ok(Self { jobs, namespace: path.to_owned(), port, nft_fd })
    }

    /// Makes our nftables table from `base` if there is none. One that outlived its owner is taken over as it is.
    /// Besides [`Kernel::complete`], this is the only write that is allowed before every watch has listed.
    pub async fn arm(&mut self, base: &Ruleset) -> Result<(), KernelError> {
        let base = base.clone();
        Ok(self.work(move |tables| tables.arm(&base)).await??)
    }

    /// Talks to nftables through another socket from now on; the next convergence takes over the table through it.
    pub async fn replace_nft(&mut self, nft: Nft) -> Result<(), KernelError> {
        self.nft_fd = nft.fd().try_clone_to_owned()?;
        Ok(self.work(move |tables| tables.replace_nft(nft)).await?)
    }

    /// Reads every table and brings it to what is wanted: only our own entries are changed or taken away.
    pub async fn converge(&mut self, want: impl Into<Arc<Desired>>, sync: InSync) -> Outcomes {
        let want = want.into();
        self.work(move |tables| tables.converge(&want, sync)).await.unwrap_or_else(ended)
    }

    /// Brings every table to what is wanted, from what is remembered of the last pass: nothing is read.
    pub async fn advance(&mut self, want: impl Into<Arc<Desired>>, sync: InSync) -> Outcomes {
        let want = want.into();
        self.work(move |tables| tables.advance(&want, sync)).await.unwrap_or_else(ended)
    }

    /// Reads every table, makes what is missing and changes what differs, and takes nothing away: for a node that acts on
    /// what it knew before, since the API server does not answer.
    pub async fn complete(&mut self, want: impl Into<Arc<Desired>>) -> Outcomes {
        let want = want.into();
        self.work(move |tables| tables.complete(&want)).await.unwrap_or_else(ended)
    }

    /// The socket that owns our nftables table, to be passed on.
    pub fn nft_fd(&self) -> BorrowedFd<'_> {
        self.nft_fd.as_fd()
    }

    /// Reads links, addresses and default routes.
    pub async fn underlay(&self) -> Result<Underlay, KernelError> {
        Ok(self.work(|tables| underlay(tables.wire())).await??)
    }

    /// Subscribes to changes that are not made through this handle.
    pub fn events(&self) -> Result<Events, KernelError> {
        let subscription = netns::run(&self.namespace, Subscription::open)??;
        Ok(Events::new(subscription, self.port)?)
    }

    async fn work<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Tables) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |tables| drop(done.send(job(tables))));
        let ended = |_| io::Error::other("the kernel thread ended");
        self.jobs.send(job).map_err(|error| io::Error::other(error.to_string()))?;
        result.await.map_err(ended)
    }
}

fn ended(error: io::Error) -> Outcomes {
    Outcomes { changed: 0, failed: BTreeMap::from([("kernel".to_owned(), error.to_string())]) }
}

fn port_of(wire: &Wire) -> io::Result<u32> {
    let mut address = SocketAddr::new(0, 0);
    wire.socket().get_address(&mut address)?;
    Ok(address.port_number())
}

fn underlay(wire: &mut Wire) -> io::Result<Underlay> {
    let mut links = Links::default();
    links.observe(wire)?;
    let names = links.names(|_| true);
    let foreign = |link: &LinkName| links.seen.get(link).is_some_and(|seen| !seen.is_ours(link));
    let addresses = addr::dump(wire, &names)?.into_iter().filter(|seen| !seen.ours && foreign(&seen.link));
    let addresses = addresses.map(|seen| (seen.link, seen.net)).collect();
    let mut default_links = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family;
        ask.header.table = RouteHeader::RT_TABLE_MAIN;
        for message in wire.dump_route(&RouteNetlinkMessage::GetRoute(ask))? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            if route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
            {
                default_links
                    .extend(out_links(&route).into_iter().filter_map(|index| names.get(&index).cloned()));
            }
        }
    }
    let facts = |link: crate::link::LinkSeen| LinkFacts {
        index: link.index,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        alias: link.alias,
    };
    let links = links.seen.into_iter().map(|(name, link)| (name, facts(link))).collect();
    Ok(Underlay { links, addresses, default_links })
}

fn out_links(route: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(of).collect()
}
