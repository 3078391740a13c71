// SPDX-License-Identifier: Apache-2.0
//! A client at work on a pod's interface. The namespace is entered for as long as something is said or waited for, and held open no longer:
//! a pod that goes without DEL takes everything along.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use isthmus_cni_kit::error::{Error, code};
use isthmus_netlink::netns;

use super::client::{Client, Event};
use super::record::Place;
use super::socket::Wire;
use super::wire::Mac;
use crate::failure;
use crate::net::link::Link;
use crate::net::{Net, down, up};
use crate::settings::parse_mac;

/// How often somebody who waits looks whether it is called off.
const SLICE: Duration = Duration::from_millis(200);

/// The namespace at a path as it is now. Code 3 if there is none.
pub(crate) fn place(netns: &Path) -> Result<Place, Error> {
    let about = std::fs::metadata(netns).map_err(|error| {
        Error::new(code::UNKNOWN_CONTAINER, format!("the network namespace {}: {error}", netns.display()))
    })?;
    Ok(Place { netns: netns.to_owned(), device: about.dev(), inode: about.ino() })
}

/// Works on the interface. Code 3 if it, or its namespace, is gone.
fn inside<T: Send>(
    at: &Place,
    ifname: &str,
    work: impl FnOnce(&mut Net, Link) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    if place(&at.netns)? != *at {
        let msg = format!("the network namespace {} is another one now", at.netns.display());
        return Err(Error::new(code::UNKNOWN_CONTAINER, msg));
    }
    let entered = netns::run(&at.netns, || {
        let mut net = Net::here()?;
        let gone = || Error::new(code::UNKNOWN_CONTAINER, format!("the container has no interface {ifname}"));
        let link = net.link(ifname)?.ok_or_else(gone)?;
        work(&mut net, link)
    });
    entered.map_err(|error| failure::io(&at.netns.display().to_string(), &error))?
}

fn open(client: &mut Client, link: &Link) -> Result<Wire, Error> {
    client.identity.mac = Mac(parse_mac(&link.mac)?);
    Wire::open(link.index, client.identity.mac)
        .map_err(|error| failure::io(&format!("DHCP on {}", link.name), &error))
}

/// Goes on until there is a lease. Code 11 if there is none by the deadline, or it is called off.
pub(crate) fn acquire(
    at: &Place,
    ifname: &str,
    client: &mut Client,
    deadline: Instant,
    off: &AtomicBool,
) -> Result<(), Error> {
    inside(at, ifname, |net, link| {
        if !link.up {
            net.execute("take the interface up", &[up(link.index)])?;
        }
        net.wait_until_it_sends(link.index)?;
        let mut wire = open(client, &link)?;
        while client.lease().is_none() {
            let now = Instant::now();
            if off.load(Ordering::Relaxed) {
                return Err(Error::new(code::TRY_AGAIN, "the container was deleted meanwhile"));
            }
            if now >= deadline {
                return Err(unanswered(ifname, client.reason()));
            }
            speak(&mut wire, client.poll(now).0.as_ref(), ifname)?;
            let until = client.next().unwrap_or(deadline).min(deadline).min(now + SLICE);
            hear(&wire, client, until, ifname)?;
        }
        Ok(())
    })
}

fn unanswered(ifname: &str, reason: Option<&str>) -> Error {
    let (msg, details) = match reason {
        Some(reason) => (format!("no DHCP server gave {ifname} a lease"), reason),
        None => (
            format!("no DHCP server answered on {ifname}"),
            "is there a server, or a relay, on this network, and do bridge, VLAN and firewall let UDP ports 67 and 68 through?",
        ),
    };
    Error::new(code::TRY_AGAIN, msg).with_details(details)
}

fn speak(wire: &mut Wire, outgoing: Option<&super::client::Outgoing>, ifname: &str) -> Result<(), Error> {
    let sent = outgoing.map_or(Ok(()), |outgoing| wire.send(outgoing));
    sent.map_err(|error| failure::io(&format!("DHCP on {ifname}"), &error))
}

fn hear(wire: &Wire, client: &mut Client, until: Instant, ifname: &str) -> Result<Option<Event>, Error> {
    let heard = wire.receive(until).map_err(|error| failure::io(&format!("DHCP on {ifname}"), &error))?;
    Ok(heard.and_then(|message| client.handle(&message, Instant::now())))
}

/// Does what is due for a lease, and listens for an answer. An interface whose lease is over goes down: its address may be another's soon
/// (RFC 2131, section 4.4.5). Code 3 if the interface is gone.
pub(crate) fn prolong(
    at: &Place,
    ifname: &str,
    client: &mut Client,
    listen: Duration,
    off: &AtomicBool,
) -> Result<Option<Event>, Error> {
    inside(at, ifname, |net, link| {
        let mut wire = open(client, &link)?;
        let now = Instant::now();
        let (outgoing, mut event) = client.poll(now);
        let mut sent = Ok(());
        if outgoing.is_some() {
            sent = speak(&mut wire, outgoing.as_ref(), ifname);
            let until = client.listens_until(now, listen);
            while event.is_none() && Instant::now() < until && !off.load(Ordering::Relaxed) {
                event = hear(&wire, client, until.min(Instant::now() + SLICE), ifname)?;
            }
        }
        if let Some(Event::Lost(_)) = event {
            net.execute("take the interface down", &[down(link.index)])?;
        }
        if event.is_none() { sent.map(|()| None) } else { Ok(event) }
    })
}

/// Gives the lease back, if there is one.
pub(crate) fn release(at: &Place, ifname: &str, client: &mut Client) -> Result<(), Error> {
    let Some(outgoing) = client.release() else { return Ok(()) };
    inside(at, ifname, |_, link| {
        let mut wire = open(client, &link)?;
        wire.send_last(&outgoing).map_err(|error| failure::io(&format!("DHCP on {ifname}"), &error))
    })
}
