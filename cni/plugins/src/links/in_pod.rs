// SPDX-License-Identifier: Apache-2.0
//! What plugins have in common whose interface is born in the pod's namespace, and ends with it.

use std::fs::File;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::AddResult;
use rtnetlink::packet_route::link::InfoKind;

use super::{Ipam, feature, forward, with_addresses};
use crate::failure;
use crate::net::link::Link;
use crate::net::{Net, pod};

/// A kind of interface.
pub(crate) trait Kind {
    /// For people.
    const ABOUT: &'static str;
    /// Whether it needs addresses.
    const IPAM: Ipam;
    /// What the kernel must have, and the option that it comes with.
    fn needs(&self) -> (InfoKind, &'static str);
    /// Whether the kernel has it; code 50 if not.
    fn available(&self) -> Result<(), Error> {
        let (kind, option) = self.needs();
        feature::expect(&kind, option)
    }
    /// Makes the interface `CNI_IFNAME` in the pod's namespace.
    fn make(&self, request: &Request, netns: &File) -> Result<(), Error>;
    /// Takes it away; what is gone already is passed over.
    fn remove(&self, request: &Request) -> Result<(), Error> {
        delete(request)
    }
    /// Whether the configuration can be at all; before anything is made.
    fn validate(&self, request: &Request) -> Result<(), Error>;
    /// Whether the link is as it was made, besides what every link has.
    fn check(&self, request: &Request, link: &Link) -> Result<(), Error>;
}

/// The plugin of a kind.
pub(crate) struct InPod<K>(pub(crate) K);

/// The result of an interface that is the only one.
pub(super) fn set_up(request: &Request, mut result: AddResult) -> Result<AddResult, Error> {
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    let link = pod::set_up(request, &result, pod::SetUp::default())?;
    result.interfaces = vec![pod::interface(&link, &pod::sandbox(request))];
    Ok(result)
}

/// Deletes the interface `CNI_IFNAME`, if it is there.
pub(super) fn delete(request: &Request) -> Result<(), Error> {
    match pod::inside_if_there(request)? {
        Some(mut net) => net.delete(&request.ifname).map(drop),
        None => Ok(()),
    }
}

impl<K: Kind> Plugin for InPod<K> {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        self.0.validate(request)?;
        let netns = pod::open(request)?;
        pod::refuse_taken(request)?;
        let make = || self.0.make(request, &netns);
        with_addresses(
            request,
            K::IPAM,
            make,
            |(), result| set_up(request, result),
            |request| self.0.remove(request),
        )
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        self.0.remove(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        let result = pod::previous(request)?;
        let link = pod::check(request, &result)?;
        let (kind, _) = self.0.needs();
        if !link.is(&kind) {
            return Err(failure::changed(format!("{} is another kind of interface", request.ifname)));
        }
        self.0.check(request, &link)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        self.0.available()?;
        self.0.validate(request)?;
        forward(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        forward(request)
    }

    fn about(&self) -> String {
        K::ABOUT.to_owned()
    }
}

/// A link below that is in the pod's namespace, for making another one on it there.
pub(crate) fn maker(request: &Request, in_container: bool) -> Result<Net, Error> {
    if in_container { Net::inside(pod::path(request)?) } else { Net::here() }
}
