// SPDX-License-Identifier: Apache-2.0
//! `macspoofchk`: a pod on a bridge sends from its own Ethernet address only.

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;

use super::{Chain, apply, link_word};
use crate::owner;

const CHAIN: Chain = Chain {
    family: "bridge",
    table: "isthmus_cni",
    name: "spoofed",
    hook: "type filter hook prerouting priority -300;",
};

fn wanted(request: &Request) -> bool {
    request.config.raw().get("macspoofchk") == Some(&true.into())
}

/// Replaces the attachment's rule.
pub(crate) fn add(request: &Request, port: &str, mac: &str) -> Result<(), Error> {
    delete(request)?;
    let rule = format!("iifname {} ether saddr != {mac} counter drop", link_word(port)?);
    apply(&(CHAIN.ensure() + &CHAIN.rule(&rule, &owner::key(request))))
}

/// Deletes it, if the configuration has such rules at all.
pub(crate) fn delete(request: &Request) -> Result<(), Error> {
    if wanted(request) { CHAIN.delete_own(request) } else { Ok(()) }
}

/// Deletes those of no attachment to be kept.
pub(crate) fn collect(request: &Request) -> Result<(), Error> {
    if wanted(request) { CHAIN.collect(request) } else { Ok(()) }
}

/// Whether it is there.
pub(crate) fn check(request: &Request) -> Result<(), Error> {
    CHAIN.check_own(request, 1)
}
