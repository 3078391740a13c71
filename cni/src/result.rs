// SPDX-License-Identifier: Apache-2.0
//! The success object of ADD, made in 1.1.0 and converted to the version that the configuration asks for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The result of ADD (CNI 1.1.0, "ADD Success").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Interfaces that were made, host end first.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<Address>,
    /// Routes in the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Name service; Kubernetes configures it itself.
    #[serde(default)]
    pub dns: Value,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Ethernet address as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `CNI_NETNS` for interfaces in the container, empty for those on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// In CIDR notation.
    pub address: String,
    /// The default gateway of the address's family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination in CIDR notation.
    pub dst: String,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

impl AddResult {
    /// As printed, in one of [`crate::SUPPORTED_VERSIONS`].
    pub fn to_json(&self, cni_version: &str) -> Vec<u8> {
        let mut object = json!({
            "cniVersion": cni_version,
            "interfaces": self.interfaces,
            "ips": self.ips,
            "routes": self.routes,
            "dns": if self.dns.is_null() { json!({}) } else { self.dns.clone() },
        });
        if cni_version != "1.1.0" {
            each(&mut object["interfaces"], |interface| {
                interface.remove("mtu");
            });
        }
        if cni_version.starts_with("0.") {
            each(&mut object["ips"], |ip| {
                let v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
                ip.insert("version".to_owned(), json!(if v6 { "6" } else { "4" }));
            });
        }
        object.to_string().into_bytes()
    }
}

fn each(list: &mut Value, change: impl Fn(&mut serde_json::Map<String, Value>)) {
    for entry in list.as_array_mut().into_iter().flatten() {
        if let Some(object) = entry.as_object_mut() {
            change(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mtu: Some(1500),
                sandbox: "/run/netns/x".into(),
                ..Default::default()
            }],
            ips: vec![Address {
                address: "10.1.0.5/32".into(),
                gateway: Some([169, 254, 1, 1].into()),
                interface: Some(0),
            }],
            routes: vec![Route { dst: "0.0.0.0/0".into(), gw: None }],
            dns: Value::Null,
        }
    }

    fn printed(version: &str) -> Value {
        serde_json::from_slice(&result().to_json(version)).unwrap()
    }

    #[test]
    fn the_newest_version_carries_the_mtu_and_older_ones_do_not() {
        assert_eq!(printed("1.1.0")["interfaces"][0]["mtu"], 1500);
        assert_eq!(printed("1.0.0")["interfaces"][0].get("mtu"), None);
        assert_eq!(printed("1.1.0")["cniVersion"], "1.1.0");
    }

    #[test]
    fn versions_before_1_0_name_the_address_family() {
        for version in ["0.3.0", "0.3.1", "0.4.0"] {
            assert_eq!(printed(version)["ips"][0]["version"], "4", "{version}");
        }
        assert_eq!(printed("1.0.0")["ips"][0].get("version"), None);
    }
}
