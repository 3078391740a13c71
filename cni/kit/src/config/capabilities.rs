// SPDX-License-Identifier: Apache-2.0
//! What runtimes supply for each capability, under `runtimeConfig` (CNI's CONVENTIONS.md, "Dynamic plugin specific fields").
//!
//! ```
//! use isthmus_cni_kit::config::capabilities::PortMappings;
//! use isthmus_cni_kit::config::net_conf::NetConf;
//!
//! let text = br#"{"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}"#;
//! let mappings = NetConf::parse(text)?.capability::<PortMappings>()?.unwrap_or_default();
//! assert_eq!((mappings.0[0].host_port, mappings.0[0].protocol.as_str()), (8080, "tcp"));
//! # Ok::<(), isthmus_cni_kit::error::Error>(())
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::result::{empty_is_none, null_is_default};

/// The value of a capability; [`super::net_conf::NetConf::capability`] reads it.
pub trait Capability: DeserializeOwned + Serialize {
    /// Its key under `capabilities` and `runtimeConfig`.
    const NAME: &'static str;
    /// The fields of its objects, at whatever depth.
    const FIELDS: &'static [&'static str] = &[];
}

macro_rules! capability {
    ($($name:literal $fields:expr, $value:ty;)*) => {
        $(impl Capability for $value {
            const NAME: &'static str = $name;
            const FIELDS: &'static [&'static str] = &$fields;
        })*
    };
}

capability! {
    "portMappings" ["hostPort", "containerPort", "protocol", "hostIP"], PortMappings;
    "ipRanges" ["subnet", "rangeStart", "rangeEnd", "gateway"], IpRanges;
    "bandwidth" ["ingressRate", "ingressBurst", "egressRate", "egressBurst"], Bandwidth;
    "dns" ["servers", "searches", "options"], ResolverConfig;
    "ips" [], Ips;
    "mac" [], Mac;
    "infinibandGUID" [], InfinibandGuid;
    "deviceID" [], DeviceId;
    "aliases" [], Aliases;
    "cgroupPath" [], CgroupPath;
}

/// The value with its fields spelled as the conventions have them. containerd writes `HostPort` for `hostPort`, which Go's
/// decoder takes for the same; a field that is there as it should be spelled goes before others.
pub(super) fn spelled(value: &Value, fields: &[&str]) -> Value {
    match value {
        Value::Array(all) => all.iter().map(|one| spelled(one, fields)).collect(),
        Value::Object(object) => {
            let conventional =
                |key: &str| fields.iter().copied().find(|field| field.eq_ignore_ascii_case(key));
            let (exact, others): (Vec<_>, Vec<_>) =
                object.iter().partition(|(key, _)| fields.contains(&key.as_str()));
            let named = others.into_iter().map(|(key, value)| (conventional(key).unwrap_or(key), value));
            let exact = exact.into_iter().map(|(key, value)| (key.as_str(), value));
            named.chain(exact).map(|(key, value)| (key.to_owned(), spelled(value, fields))).collect()
        }
        other => other.clone(),
    }
}

/// `portMappings`: ports of the host that lead to the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappings(pub Vec<PortMapping>);

/// A port of the host that leads to one of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    #[serde(default)]
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// In lower case: `tcp` (also if none is named), `udp` or `sctp`.
    #[serde(default = "tcp", deserialize_with = "protocol")]
    pub protocol: String,
    /// Address of the host; without one, every address.
    #[serde(
        rename = "hostIP",
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "empty_is_none"
    )]
    pub host_ip: Option<IpAddr>,
}

/// `ipRanges`: for each range set, which gives the container one address, the ranges it consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRanges(pub Vec<Vec<IpRange>>);

/// A range of addresses to choose from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    /// The network of the range.
    pub subnet: IpNet,
    /// First address; without one, the first that can be given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub range_start: Option<IpAddr>,
    /// Last address, itself in the range; without one, the last that can be given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub range_end: Option<IpAddr>,
    /// Gateway of the network; without one, the plugin chooses.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
}

/// `bandwidth`: limits of the container's traffic. Ingress is what it receives; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Bandwidth {
    /// Bits in a second.
    pub ingress_rate: u64,
    /// Bits at once.
    pub ingress_burst: u64,
    /// Bits in a second.
    pub egress_rate: u64,
    /// Bits at once.
    pub egress_burst: u64,
}

/// `dns`: the container's name resolution. Its keys are not those of a result's `dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResolverConfig {
    /// Addresses of servers, most wanted first.
    #[serde(deserialize_with = "null_is_default")]
    pub servers: Vec<String>,
    /// Domains to search for short names.
    #[serde(deserialize_with = "null_is_default")]
    pub searches: Vec<String>,
    /// Options of the resolver.
    #[serde(deserialize_with = "null_is_default")]
    pub options: Vec<String>,
}

/// `ips`: addresses that the container shall get, each with the length of a prefix or without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ips(pub Vec<String>);

/// `mac`: the Ethernet address that the container shall have, such as `c2:11:22:33:44:55`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub String);

/// `infinibandGUID`: the GUID that the container's InfiniBand port shall have, such as `c2:11:22:33:44:55:66:77`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfinibandGuid(pub String);

/// `deviceID`: a device that a device plugin chose, such as the PCI address `0000:04:00.5`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceId(pub String);

/// `aliases`: other names of the container on this network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aliases(pub Vec<String>);

/// `cgroupPath`: the pod's cgroup, below the mount point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPath(pub String);

fn tcp() -> String {
    "tcp".to_owned()
}

fn protocol<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let named = Option::<String>::deserialize(from)?.filter(|text| !text.is_empty());
    Ok(named.map_or_else(tcp, |text| text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::net_conf::NetConf;
    use crate::error::Error;

    fn read<T: Capability>(value: &Value) -> Result<Option<T>, Error> {
        let config = json!({"type": "x", "runtimeConfig": {T::NAME: value}});
        NetConf::parse(config.to_string().as_bytes())?.capability()
    }

    #[test]
    fn r12_a_port_mapping_is_of_tcp_and_every_address_unless_it_says_otherwise() {
        let mappings: PortMappings = read(&json!([
            {"hostPort": 8080, "containerPort": 80, "hostIP": ""},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1", "own": 1},
        ]))
        .unwrap()
        .unwrap();
        let (first, second) = (&mappings.0[0], &mappings.0[1]);
        assert_eq!((first.host_port, first.container_port, first.host_ip), (8080, 80, None));
        assert_eq!((first.protocol.as_str(), second.protocol.as_str()), ("tcp", "udp"));
        assert_eq!(second.host_ip, Some("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn r12_the_examples_of_the_conventions_are_read() {
        let ranges = json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.3", "rangeEnd": "10.1.2.99", "gateway": "10.1.2.254"}]]);
        let ranges: IpRanges = read(&ranges).unwrap().unwrap();
        let expected = IpRange {
            subnet: "10.1.2.0/24".parse().unwrap(),
            range_start: Some("10.1.2.3".parse().unwrap()),
            range_end: Some("10.1.2.99".parse().unwrap()),
            gateway: Some("10.1.2.254".parse().unwrap()),
        };
        assert_eq!(ranges.0, [[expected]]);
        let limits = json!({"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096});
        let expected =
            Bandwidth { ingress_rate: 2048, ingress_burst: 1600, egress_rate: 4096, egress_burst: 0 };
        assert_eq!(read(&limits), Ok(Some(expected)));
        let dns: ResolverConfig =
            read(&json!({"searches": ["example.com"], "servers": null})).unwrap().unwrap();
        assert_eq!((dns.searches, dns.servers), (vec!["example.com".to_owned()], Vec::new()));
        let ips = vec!["10.10.0.1/24".to_owned(), "2001:db8::1".to_owned()];
        assert_eq!(read(&json!(ips)), Ok(Some(Ips(ips))));
        let aliases = vec!["primary-db".to_owned()];
        assert_eq!(read(&json!(aliases)), Ok(Some(Aliases(aliases))));
        assert_eq!(read(&json!("c2:11:22:33:44:55")), Ok(Some(Mac("c2:11:22:33:44:55".to_owned()))));
        let guid = "c2:11:22:33:44:55:66:77".to_owned();
        assert_eq!(read(&json!(guid)), Ok(Some(InfinibandGuid(guid))));
        assert_eq!(read(&json!("0000:04:00.5")), Ok(Some(DeviceId("0000:04:00.5".to_owned()))));
        assert_eq!(read(&json!("/kubelet.slice")), Ok(Some(CgroupPath("/kubelet.slice".to_owned()))));
    }

    #[test]
    fn r12_fields_are_found_however_containerd_spells_them() {
        let mappings = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}]);
        let mapping = PortMapping { host_port: 8080, container_port: 80, protocol: tcp(), host_ip: None };
        assert_eq!(read(&mappings), Ok(Some(PortMappings(vec![mapping]))));
        let limits = json!({"IngressRate": 100, "IngressBurst": 10, "EgressRate": 200, "EgressBurst": 20});
        let expected = Bandwidth { ingress_rate: 100, ingress_burst: 10, egress_rate: 200, egress_burst: 20 };
        assert_eq!(read(&limits), Ok(Some(expected)));
        let ranges: IpRanges = read(
            &json!([[{"Subnet": "10.1.2.0/24", "RangeStart": "", "RangeEnd": "10.1.2.9", "Gateway": ""}]]),
        )
        .unwrap()
        .unwrap();
        assert_eq!(ranges.0[0][0].range_end, Some("10.1.2.9".parse().unwrap()));
        let dns = json!({"Servers": ["10.1.0.53"], "Searches": null, "Options": ["ndots:5"]});
        assert_eq!(read::<ResolverConfig>(&dns).unwrap().unwrap().options, ["ndots:5"]);
        let both = json!({"ingressRate": 1, "IngressRate": 2, "INGRESSRATE": 3});
        assert_eq!(read::<Bandwidth>(&both).unwrap().unwrap().ingress_rate, 1);
    }

    #[test]
    fn r12_what_is_not_supplied_is_none_and_another_shape_is_refused_with_code_7() {
        assert_eq!(NetConf::parse(b"{}").unwrap().capability::<Mac>(), Ok(None));
        assert_eq!(read::<PortMappings>(&Value::Null), Ok(None));
        let refused = |error: Error| (error.code, error.msg);
        let expected = (7, "portMappings of runtimeConfig is not of the conventions' shape".to_owned());
        for bad in [
            json!({}),
            json!([{"hostPort": 80}]),
            json!([{"hostPort": 70000, "containerPort": 80}]),
            json!([{"hostPort": 80, "containerPort": 80, "hostIP": "here"}]),
        ] {
            assert_eq!(read::<PortMappings>(&bad).map_err(refused), Err(expected.clone()), "{bad}");
        }
        let code = |error: Error| error.code;
        assert_eq!(read::<Bandwidth>(&json!({"ingressRate": -1})).map_err(code), Err(7));
        assert_eq!(read::<IpRanges>(&json!([{"subnet": "10.0.0.0/8"}])).map_err(code), Err(7));
    }

    #[test]
    fn r12_what_is_written_reads_back_as_itself() {
        let mapping = PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: "sctp".to_owned(),
            host_ip: Some("2001:db8::1".parse().unwrap()),
        };
        let all = PortMappings(vec![mapping.clone(), PortMapping { host_ip: None, ..mapping }]);
        assert_eq!(read(&serde_json::to_value(&all).unwrap()), Ok(Some(all)));
    }
}
