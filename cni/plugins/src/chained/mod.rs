// SPDX-License-Identifier: Apache-2.0
//! Plugins that follow another one and change or add to what it made. Each prints the previous result with its changes.

pub(crate) mod bandwidth;
mod before;
pub(crate) mod firewall;
pub(crate) mod portmap;
pub(crate) mod route_override;
pub(crate) mod sbr;
pub(crate) mod tuning;
pub(crate) mod vrf;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use isthmus_cni_kit::result::{AddResult, Ip};

use crate::net::pod;

/// Addresses of the pod's interface in a result.
pub(crate) fn own_ips<'a>(request: &Request, result: &'a AddResult) -> Result<Vec<&'a Ip>, Error> {
    // Results of 0.2.0 and older have no interfaces.
    if result.interfaces.is_empty() {
        return Ok(result.ips.iter().collect());
    }
    let (at, _) = pod::of_result(request, result)?;
    Ok(result.ips.iter().filter(|ip| ip.interface.is_none_or(|of| of == at)).collect())
}
