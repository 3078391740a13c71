// SPDX-License-Identifier: Apache-2.0
//! `bandwidth`: limits of what a pod receives and sends.

use isthmus_cni_kit::config::capabilities::Bandwidth as Shaping;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Interface};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute};

use crate::failure::{changed, invalid};
use crate::links::feature;
use crate::net::link::{Link, NewLink};
use crate::net::shape::{self, Limit};
use crate::net::{Net, change_link, pod, up};
use crate::owner::{self, Stale};

/// Before the mark, in aliases.
const ALIAS: &str = "cni-bandwidth:";

/// What the pod may receive and send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    ingress: Option<Limit>,
    egress: Option<Limit>,
}

fn limit(what: &str, rate: u64, burst: u64) -> Result<Option<Limit>, Error> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(invalid(format!("{what}Burst is set without {what}Rate"))),
        (_, 0) => Err(invalid(format!("{what}Rate is set without {what}Burst"))),
        (_, burst) if burst / 8 > u64::from(u32::MAX) => {
            Err(invalid(format!("{what}Burst {burst} is more than 4 GB of bits")))
        }
        (rate, _) if rate < 8 => Err(invalid(format!("{what}Rate {rate} is less than a byte per second"))),
        (rate, burst) => Ok(Some(Limit { rate, burst })),
    }
}

impl Limits {
    fn of(request: &Request) -> Result<Self, Error> {
        // The administrator's own fields have the same names.
        let fields: Shaping = match request.config.capability()? {
            Some(of_runtime) => of_runtime,
            None => request.config.settings()?,
        };
        Ok(Self {
            ingress: limit("ingress", fields.ingress_rate, fields.ingress_burst)?,
            egress: limit("egress", fields.egress_rate, fields.egress_burst)?,
        })
    }
}

/// The link that sends what the pod sent, at its rate.
fn relay_name(request: &Request) -> String {
    owner::link_name("bwp", request)
}

/// The pod's peer on the host: of the result's interfaces the one that the pod's own names as its peer.
fn host_end(request: &Request, result: &AddResult, host: &mut Net) -> Result<Link, Error> {
    let mut inside = Net::inside(pod::path(request)?)?;
    let link = inside.named(&request.ifname, "the container's interface")?;
    let peer = link.parent.filter(|_| link.is(&InfoKind::Veth));
    let peer = peer.map(|index| host.link_at(index)).transpose()?.flatten();
    let known =
        |link: &Link| result.interfaces.iter().any(|one| one.sandbox.is_empty() && one.name == link.name);
    peer.filter(known).ok_or_else(|| {
        invalid("prevResult has no end of the container's interface on the host: limits need one, such as of bridge or ptp")
    })
}

fn relay(request: &Request, end: &Link, host: &mut Net, limit: Limit) -> Result<Link, Error> {
    let name = relay_name(request);
    host.delete(&name)?;
    host.create(NewLink::named(&name).mtu(end.mtu).kind(InfoKind::Ifb, None).message())?;
    let relay = host.named(&name, "ifb")?;
    let alias = LinkAttribute::IfAlias(format!("{ALIAS}{}", owner::key(request)));
    let mut requests = vec![change_link(relay.index, vec![alias]), up(relay.index)];
    requests.push(shape::limit(relay.index, limit));
    requests.extend(shape::redirect(end.index, relay.index));
    let made = host.execute("limit what the container sends", &requests);
    made.inspect_err(|_| drop(host.delete(&name)))?;
    host.named(&name, "ifb")
}

/// The plugin.
pub(crate) struct Bandwidth;

impl Plugin for Bandwidth {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let limits = Limits::of(request)?;
        let mut result = pod::previous(request)?;
        if limits == Limits::default() {
            return Ok(result);
        }
        let mut host = Net::here()?;
        let end = host_end(request, &result, &mut host)?;
        if let Some(limit) = limits.ingress {
            host.execute("limit what the container receives", &[shape::limit(end.index, limit)])?;
        }
        if let Some(limit) = limits.egress {
            let relay = relay(request, &end, &mut host, limit)?;
            let interface = Interface { mtu: Some(relay.mtu), ..pod::interface(&relay, "") };
            result.interfaces.push(interface);
        }
        Ok(result)
    }

    /// The limit of what the pod receives goes with its link.
    fn del(&self, request: &Request) -> Result<(), Error> {
        Net::here()?.delete(&relay_name(request)).map(drop)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let limits = Limits::of(request)?;
        let result = pod::previous(request)?;
        if limits == Limits::default() {
            return Ok(());
        }
        let mut host = Net::here()?;
        let end = host_end(request, &result, &mut host)?;
        if let Some(limit) = limits.ingress
            && !host.has_limit(end.index, limit)?
        {
            return Err(changed(format!("{} does not limit what the container receives", end.name)));
        }
        if let Some(limit) = limits.egress {
            let name = relay_name(request);
            let relay = host.link(&name)?.ok_or_else(|| changed(format!("the interface {name} is gone")))?;
            if !host.has_limit(relay.index, limit)? || !host.has_redirect(end.index)? {
                return Err(changed(format!("{name} does not limit what the container sends")));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        feature::expect(&InfoKind::Ifb, "CONFIG_IFB")?;
        Limits::of(request).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let stale = Stale::of(request);
        let mut host = Net::here()?;
        let links = host.links()?;
        let gone = links
            .iter()
            .filter(|link| link.alias.strip_prefix(ALIAS).is_some_and(|mark| stale.contains(mark)));
        gone.map(|link| host.delete(&link.name).map(drop)).fold(Ok(()), Result::and)
    }

    fn about(&self) -> String {
        "bandwidth: limits of what a pod receives and sends".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_a_burst_and_a_burst_a_rate() {
        assert_eq!(limit("ingress", 0, 0), Ok(None));
        assert_eq!(limit("ingress", 8000, 800), Ok(Some(Limit { rate: 8000, burst: 800 })));
        for (rate, burst) in [(0, 800), (8000, 0), (8000, u64::MAX), (7, 800)] {
            assert_eq!(limit("ingress", rate, burst).map_err(|error| error.code), Err(7), "{rate} {burst}");
        }
    }
}
