// SPDX-License-Identifier: Apache-2.0
//! `macspoofchk`: a pod on a bridge sends from its own Ethernet address only.

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;

use super::{Asked, Chain, link_word};

pub(crate) const RULES: Asked = Asked {
    chain: Chain {
        family: "bridge",
        table: "isthmus_cni",
        name: "spoofed",
        hook: "type filter hook prerouting priority -300;",
    },
    field: "macspoofchk",
};

/// Replaces the attachment's rule.
pub(crate) fn add(request: &Request, port: &str, mac: &str) -> Result<(), Error> {
    RULES.replace(request, &[format!("iifname {} ether saddr != {mac} counter drop", link_word(port)?)])
}
