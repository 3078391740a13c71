// SPDX-License-Identifier: Apache-2.0
//! Results of ADD between the versions.

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{AddResult, Interface, Ip, Route};
use crate::error::{Error, code};
use crate::version::Version;

fn undecodable(error: impl std::fmt::Display) -> Error {
    Error::new(code::DECODING, "the result cannot be read").with_details(error.to_string())
}

pub(super) fn read(json: &Value, fallback: Version) -> Result<(Version, AddResult), Error> {
    let mut object = json.as_object().cloned().ok_or_else(|| undecodable("it is not a JSON object"))?;
    let version = match object.remove("cniVersion") {
        None | Some(Value::Null) => fallback,
        Some(Value::String(text)) if text.is_empty() => fallback,
        Some(Value::String(text)) => text
            .parse()
            .map_err(|error| Error::new(code::INCOMPATIBLE_VERSION, format!("result in an {error}")))?,
        Some(_) => return Err(undecodable("cniVersion is not a string")),
    };
    if !version.has_interfaces() {
        raise(&mut object)?;
    }
    if version.has_ip_version() {
        for ip in object.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            check_family(ip)?;
        }
    }
    let mut result: AddResult = serde_json::from_value(Value::Object(object)).map_err(undecodable)?;
    if !version.has_details() {
        set_details_aside(&mut result);
    }
    Ok((version, result))
}

pub(super) fn set_details_aside(result: &mut AddResult) {
    result.interfaces.iter_mut().for_each(set_aside_interface);
    result.routes.iter_mut().for_each(set_aside_route);
}

/// What is not of its type stays where it is.
pub(super) fn recall_details(result: &mut AddResult) {
    for route in &mut result.routes {
        for (key, field) in [
            ("mtu", &mut route.mtu),
            ("advmss", &mut route.advmss),
            ("priority", &mut route.priority),
            ("table", &mut route.table),
            ("scope", &mut route.scope),
        ] {
            if let Some(number) =
                route.extra.get(key).and_then(Value::as_u64).and_then(|number| number.try_into().ok())
            {
                *field = Some(number);
                route.extra.remove(key);
            }
        }
    }
}

/// Takes the family out of an address, after comparing it with the address.
fn check_family(ip: &mut Value) -> Result<(), Error> {
    let Some(object) = ip.as_object_mut() else { return Ok(()) };
    let Some(said) = object.remove("version") else { return Ok(()) };
    let address: Option<IpNet> =
        object.get("address").and_then(Value::as_str).and_then(|text| text.parse().ok());
    match (said.as_str(), address) {
        (Some("4"), Some(IpNet::V4(_))) | (Some("6"), Some(IpNet::V6(_))) | (_, None) => Ok(()),
        (_, Some(address)) => Err(undecodable(format!("{address} is not of IP version {said}"))),
    }
}

/// Brings the form of 0.1.0 and 0.2.0 (`ip4`, `ip6`) into that of 1.1.0.
fn raise(object: &mut Map<String, Value>) -> Result<(), Error> {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for key in ["ip4", "ip6"] {
        let Some(family) = object.remove(key).filter(|value| !value.is_null()) else { continue };
        let Value::Object(mut family) = family else {
            return Err(undecodable(format!("{key} is not an object")));
        };
        match family.remove("routes") {
            None | Some(Value::Null) => {}
            Some(Value::Array(more)) => routes.extend(more),
            Some(_) => return Err(undecodable(format!("{key}.routes is not a list"))),
        }
        let address = family.remove("ip").ok_or_else(|| undecodable(format!("{key}.ip is missing")))?;
        family.insert("address".to_owned(), address);
        ips.push(Value::Object(family));
    }
    object.insert("ips".to_owned(), Value::Array(ips));
    object.insert("routes".to_owned(), Value::Array(routes));
    Ok(())
}

/// In an older version the fields of 1.1.0 are fields that nobody knows: they are passed on, not understood.
fn set_aside(extra: &mut Map<String, Value>, key: &str, value: Option<impl Serialize>) {
    if let Some(value) = value.and_then(|value| serde_json::to_value(value).ok()) {
        extra.insert(key.to_owned(), value);
    }
}

fn set_aside_interface(interface: &mut Interface) {
    set_aside(&mut interface.extra, "mtu", interface.mtu.take());
    set_aside(&mut interface.extra, "socketPath", interface.socket_path.take());
    set_aside(&mut interface.extra, "pciID", interface.pci_id.take());
}

fn set_aside_route(route: &mut Route) {
    set_aside(&mut route.extra, "mtu", route.mtu.take());
    set_aside(&mut route.extra, "advmss", route.advmss.take());
    set_aside(&mut route.extra, "priority", route.priority.take());
    set_aside(&mut route.extra, "table", route.table.take());
    set_aside(&mut route.extra, "scope", route.scope.take());
}

fn without_details(result: &AddResult) -> AddResult {
    let mut older = result.clone();
    for interface in &mut older.interfaces {
        (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
    }
    for route in &mut older.routes {
        (route.mtu, route.advmss, route.priority) = (None, None, None);
        (route.table, route.scope) = (None, None);
    }
    older
}

fn to_value(value: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| {
        Error::new(code::INTERNAL, "the result cannot be written").with_details(error.to_string())
    })
}

pub(super) fn write(result: &AddResult, version: Version) -> Result<Value, Error> {
    let mut json = match version {
        _ if version.has_details() => to_value(result)?,
        _ if version.has_interfaces() => to_value(without_details(result))?,
        _ => lower(&without_details(result))?,
    };
    json["cniVersion"] = Value::from(version.as_str());
    if version.has_ip_version() {
        let ips = json.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten();
        for (ip, value) in result.ips.iter().zip(ips) {
            value["version"] = Value::from(if is_v6(&ip.address) { "6" } else { "4" });
        }
    }
    Ok(json)
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

/// The form of 0.1.0 and 0.2.0: the first address of each family, with the routes of that family.
fn lower(result: &AddResult) -> Result<Value, Error> {
    let mut json = Value::Object(result.extra.clone());
    if !result.dns.is_empty() {
        json["dns"] = to_value(&result.dns)?;
    }
    for (key, v6) in [("ip4", false), ("ip6", true)] {
        let Some(ip) = result.ips.iter().find(|ip| is_v6(&ip.address) == v6) else { continue };
        let routes: Vec<&Route> = result.routes.iter().filter(|route| is_v6(&route.dst) == v6).collect();
        json[key] = family(ip, &routes)?;
    }
    Ok(json)
}

fn family(ip: &Ip, routes: &[&Route]) -> Result<Value, Error> {
    let mut json = Value::Object(ip.extra.clone());
    json["ip"] = json!(ip.address);
    if let Some(gateway) = ip.gateway {
        json["gateway"] = json!(gateway);
    }
    if !routes.is_empty() {
        json["routes"] = to_value(routes)?;
    }
    Ok(json)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
