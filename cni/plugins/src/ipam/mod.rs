// SPDX-License-Identifier: Apache-2.0
//! Plugins that give addresses, and what other plugins call them with.

pub(crate) mod dhcp;
pub(crate) mod fixed;
mod holder;
pub(crate) mod host_local;
mod range;
mod resolv;
mod store;

use std::time::Duration;

use ipnet::IpNet;
use isthmus_cni_kit::config::capabilities::Ips;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use isthmus_cni_kit::result::{AddResult, Dns, Route};
use isthmus_cni_kit::runtime::exec::CniPath;
use serde::Deserialize;
use serde_json::Value;

use crate::failure::invalid;

/// An IPAM plugin may ask a server far away: `dhcp` gives up after 208 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs plugins from where the request says that they are.
pub(crate) const EXEC: CniPath = CniPath { deadline: PATIENCE };

/// The object `ipam` of the configuration, in the plugin's shape.
pub(crate) fn fields<T: for<'de> Deserialize<'de>>(request: &Request) -> Result<T, Error> {
    let ipam = request.config.raw().get("ipam").cloned().unwrap_or(Value::Null);
    if !ipam.is_object() {
        return Err(invalid("ipam of the configuration is missing"));
    }
    serde_json::from_value(ipam)
        .map_err(|error| invalid("a field of ipam has another shape").with_details(error.to_string()))
}

/// Addresses that the caller asks for, with or without a prefix: the runtime's before those of `args.cni`, these before `CNI_ARGS`.
pub(crate) fn asked_for(request: &Request) -> Result<Vec<String>, Error> {
    let of_runtime = request.config.capability::<Ips>()?.unwrap_or_default().0;
    if !of_runtime.is_empty() {
        return Ok(of_runtime);
    }
    if let Some(listed) = request.config.arg("ips").filter(|value| !value.is_null()) {
        let shape =
            |error: serde_json::Error| invalid("ips is no list of addresses").with_details(error.to_string());
        return serde_json::from_value(listed.clone()).map_err(shape);
    }
    let args = request.args.get("IP").unwrap_or_default();
    Ok(args.split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect())
}

/// `10.0.0.2` or `10.0.0.2/24`.
pub(crate) fn parse_asked(text: &str) -> Result<(std::net::IpAddr, Option<IpNet>), Error> {
    let net = text.parse::<IpNet>().ok();
    let address = net.map(|net| net.addr()).or_else(|| text.parse().ok());
    address.map(|address| (address, net)).ok_or_else(|| invalid(format!("{text:?} is no IP address")))
}

/// The result for whoever asks for addresses. It has what routes are like in versions, too, whose specification does not have it, but for
/// the oldest: as the Go plugins.
pub(crate) fn told(request: &Request, mut result: AddResult) -> AddResult {
    let version = request.config.version();
    if version.has_interfaces() && !version.has_details() {
        result.set_details_aside();
    }
    result
}

/// Name servers and the like, as `resolv.conf` has them.
pub(crate) fn read_resolv_conf(path: &str) -> Result<Dns, Error> {
    std::fs::read_to_string(path)
        .map(|text| resolv::parse(&text))
        .map_err(|error| crate::failure::io(path, &error))
}

/// Routes that the administrator set.
pub(crate) type Routes = Vec<Route>;
