// SPDX-License-Identifier: Apache-2.0
//! `portmap`: ports of the host lead to ports of the pod.

use std::net::IpAddr;

use isthmus_cni_kit::config::capabilities::{PortMapping, PortMappings};
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Ip};
use rtnetlink::packet_route::link::InfoKind;
use serde::Deserialize;

use super::own_ips;
use crate::failure::invalid;
use crate::net::{Net, conntrack, pod};
use crate::nft::{self, Chain, apply, family_of};
use crate::{owner, sysctl};

/// Of the transport that have ports.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
const TABLE: &str = "isthmus_portmap";
const PORTS: Chain = Chain { family: "inet", table: TABLE, name: "ports", hook: "" };
const RETURNS: Chain = Chain { family: "inet", table: TABLE, name: "returns", hook: "" };

/// What leads into the chains of rules: written anew with each call, so that it is there once. A packet for an address of the host may
/// be meant for a port of a pod, from outside and from the host itself.
const ENTRANCES: &str = "\
add table inet isthmus_portmap
add chain inet isthmus_portmap ports
add chain inet isthmus_portmap returns
add chain inet isthmus_portmap prerouting { type nat hook prerouting priority dstnat; }
add chain inet isthmus_portmap output { type nat hook output priority -100; }
add chain inet isthmus_portmap postrouting { type nat hook postrouting priority srcnat; }
flush chain inet isthmus_portmap prerouting
flush chain inet isthmus_portmap output
flush chain inet isthmus_portmap postrouting
add rule inet isthmus_portmap prerouting fib daddr type local jump ports
add rule inet isthmus_portmap output fib daddr type local jump ports
add rule inet isthmus_portmap postrouting ct status dnat jump returns
";

/// Fields of the configuration. `backend`, `markMasqBit` and `externalSetMarkChain` of the Go plugin have no meaning here: rules are
/// those of nftables, and find their packets without marks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    snat: Option<bool>,
    #[serde(default, rename = "masqAll")]
    masquerade_all: bool,
    #[serde(default, rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(default, rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
}

struct Config {
    mappings: Vec<PortMapping>,
    snat: bool,
    masquerade_all: bool,
    conditions: [String; 2],
}

/// Further conditions go into rules as they are; what could end a rule could begin another.
fn conditions(list: Option<&Vec<String>>) -> Result<String, Error> {
    let text = list.map(|words| words.join(" ")).unwrap_or_default();
    match text.contains(['\n', ';', '{', '}', '#']) {
        true => Err(invalid("a condition may not have line breaks, ';', '#' and braces")),
        false => Ok(text),
    }
}

impl Config {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields: Fields = request.config.settings()?;
        let PortMappings(mut mappings) = request.config.capability()?.unwrap_or_default();
        // A host port of 0 maps nothing.
        mappings.retain(|one| one.host_port != 0);
        if mappings.iter().any(|one| one.container_port == 0) {
            return Err(invalid("a containerPort of portMappings is 0"));
        }
        if let Some(other) = mappings.iter().find(|one| !PROTOCOLS.contains(&one.protocol.as_str())) {
            return Err(invalid(format!("protocol {:?} is none of {PROTOCOLS:?}", other.protocol)));
        }
        Ok(Self {
            mappings,
            snat: fields.snat.unwrap_or(true),
            masquerade_all: fields.masquerade_all,
            conditions: [
                conditions(fields.conditions_v4.as_ref())?,
                conditions(fields.conditions_v6.as_ref())?,
            ],
        })
    }

    /// Rules for what comes to a port, one for each address of the pod that the mapping is for.
    fn port_rules(&self, ips: &[&Ip]) -> Vec<String> {
        let mut rules = Vec::new();
        for mapping in &self.mappings {
            for pod in first_of_each_family(ips) {
                let family = family_of(pod);
                let at = match mapping.host_ip {
                    Some(host) if host.is_ipv6() != pod.is_ipv6() => continue,
                    Some(host) if !host.is_unspecified() => format!(" {family} daddr {host}"),
                    _ => String::new(),
                };
                let conditions = match &self.conditions[usize::from(pod.is_ipv6())] {
                    text if text.is_empty() => String::new(),
                    text => format!(" {text}"),
                };
                let to = match pod {
                    IpAddr::V4(pod) => format!("{pod}:{}", mapping.container_port),
                    IpAddr::V6(pod) => format!("[{pod}]:{}", mapping.container_port),
                };
                let proto = if pod.is_ipv6() { "meta nfproto ipv6" } else { "meta nfproto ipv4" };
                rules.push(format!(
                    "{proto}{at} {} dport {}{conditions} dnat {family} to {to}",
                    mapping.protocol, mapping.host_port
                ));
            }
        }
        rules
    }

    /// Rules for what has to come back by the host: from the pod itself, from the host's loopback, and from everywhere with `masqAll`.
    fn return_rules(&self, ips: &[&Ip]) -> Vec<String> {
        if !self.snat {
            return Vec::new();
        }
        let mut rules = Vec::new();
        for mapping in &self.mappings {
            for pod in first_of_each_family(ips) {
                let family = family_of(pod);
                let loopback = if pod.is_ipv6() { "::1" } else { "127.0.0.0/8" };
                let from = match self.masquerade_all {
                    true => String::new(),
                    false => format!("{family} saddr {{ {pod}, {loopback} }} "),
                };
                rules.push(format!(
                    "{from}{family} daddr {pod} {} dport {} masquerade",
                    mapping.protocol, mapping.container_port
                ));
            }
        }
        rules
    }
}

fn first_of_each_family(ips: &[&Ip]) -> Vec<IpAddr> {
    let first = |v6: bool| ips.iter().map(|ip| ip.address.addr()).find(|ip| ip.is_ipv6() == v6);
    first(false).into_iter().chain(first(true)).collect()
}

/// What the host's loopback sends to the pod leaves by this interface: the kernel drops it there otherwise.
fn let_loopback_out(request: &Request, config: &Config, result: &AddResult) -> Result<(), Error> {
    let v4 = own_ips(request, result)?.iter().any(|ip| ip.address.addr().is_ipv4());
    if !config.snat || !v4 {
        return Ok(());
    }
    let mut host = Net::here()?;
    for one in result.interfaces.iter().filter(|one| one.sandbox.is_empty()) {
        if let Some(link) = host.link(&one.name)?
            && (link.is(&InfoKind::Bridge) || link.is(&InfoKind::Veth))
            && link.controller.is_none()
        {
            sysctl::ensure(&format!("net/ipv4/conf/{}/route_localnet", link.name), "1")?;
        }
    }
    Ok(())
}

/// Connections of UDP to the mapped ports that lead elsewhere end: where their first packet went, the others would go on to.
fn end_stale(config: &Config, ips: &[&Ip]) -> Result<(), Error> {
    if !config.mappings.iter().any(|one| one.protocol == "udp") {
        return Ok(());
    }
    let to_node = to_node()?;
    let pods = first_of_each_family(ips);
    conntrack::end_where(|one| {
        to_node(one.to.ip())
            && config.mappings.iter().any(|mapping| {
                let at = mapping.host_ip.is_none_or(|host| host.is_unspecified() || host == one.to.ip());
                let right = pods.contains(&one.answers.ip()) && one.answers.port() == mapping.container_port;
                mapping.protocol == "udp" && one.to.port() == mapping.host_port && at && !right
            })
    })
}

/// Whether an address is the node's own, as the entrances ask.
fn to_node() -> Result<impl Fn(IpAddr) -> bool, Error> {
    let own = Net::here()?.all_addresses()?;
    Ok(move |to: IpAddr| to.is_loopback() || own.contains(&to))
}

/// Connections of UDP that lead to the pod from an address of the node end with its rules.
fn end_own(request: &Request) -> Result<(), Error> {
    let Some(result) = request.config.prev_result()? else { return Ok(()) };
    let pods: Vec<IpAddr> = own_ips(request, &result)?.iter().map(|ip| ip.address.addr()).collect();
    let to_node = to_node()?;
    conntrack::end_where(|one| pods.contains(&one.answers.ip()) && to_node(one.to.ip()))
}

/// The plugin.
pub(crate) struct Portmap;

/// Deletes the attachment's rules. Says whether a port of UDP was mapped.
fn delete(request: &Request) -> Result<bool, Error> {
    let returns = RETURNS.delete_own(request);
    let ports = PORTS.delete_own(request)?;
    returns.map(|_| ports.iter().any(|rule| rule.is_of("udp")))
}

impl Plugin for Portmap {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let config = Config::of(request)?;
        let result = pod::previous(request)?;
        if config.mappings.is_empty() {
            return Ok(result);
        }
        delete(request)?;
        let ips = own_ips(request, &result)?;
        if ips.is_empty() {
            return Err(invalid("prevResult has no address of the container to map ports to"));
        }
        let mark = owner::key(request);
        let mut lines = ENTRANCES.to_owned();
        lines.push_str(&PORTS.rules_of(&config.port_rules(&ips), &mark));
        lines.push_str(&RETURNS.rules_of(&config.return_rules(&ips), &mark));
        apply(&lines)?;
        let_loopback_out(request, &config, &result)?;
        // They end by themselves, too, if nobody sends for a while: a kernel that does not let us is no reason to fail.
        let _ = end_stale(&config, &ips);
        Ok(result)
    }

    /// Without runtimeConfig too, which DEL need not have: whatever rules the attachment has go.
    fn del(&self, request: &Request) -> Result<(), Error> {
        let mapped = delete(request);
        if mapped == Ok(true) {
            let _ = end_own(request);
        }
        nft::unless_missing(mapped.map(drop))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::of(request)?;
        let result = pod::previous(request)?;
        if config.mappings.is_empty() {
            return Ok(());
        }
        let ips = own_ips(request, &result)?;
        PORTS.check_own(request, config.port_rules(&ips).len())?;
        RETURNS.check_own(request, config.return_rules(&ips).len())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        nft::available()?;
        Config::of(request).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let returns = RETURNS.collect(request);
        PORTS.collect(request).and(returns)
    }

    fn about(&self) -> String {
        "portmap: ports of the host lead to ports of the pod".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mappings: &serde_json::Value) -> Config {
        Config {
            mappings: serde_json::from_value(mappings.clone()).unwrap(),
            snat: true,
            masquerade_all: false,
            conditions: [String::new(), "ip6 saddr fd00::/8".to_owned()],
        }
    }

    fn ip(text: &str) -> Ip {
        Ip { interface: None, address: text.parse().unwrap(), gateway: None, extra: serde_json::Map::new() }
    }

    #[test]
    fn a_mapping_is_for_both_families_unless_its_host_address_says_which() {
        let (v4, v6) = (ip("10.0.0.2/24"), ip("fd00::2/64"));
        let rules = |host: &str| {
            let mapping = serde_json::json!([{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": host}]);
            config(&mapping).port_rules(&[&v4, &v6])
        };
        assert_eq!(
            rules(""),
            [
                "meta nfproto ipv4 tcp dport 8080 dnat ip to 10.0.0.2:80",
                "meta nfproto ipv6 tcp dport 8080 ip6 saddr fd00::/8 dnat ip6 to [fd00::2]:80",
            ]
        );
        assert_eq!(
            rules("192.0.2.1"),
            ["meta nfproto ipv4 ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 10.0.0.2:80"]
        );
        assert_eq!(rules("::").len(), 1);
    }

    #[test]
    fn a_condition_that_ends_a_rule_is_refused() {
        assert!(conditions(Some(&vec!["ip saddr 10.0.0.1; drop".to_owned()])).is_err());
        assert_eq!(conditions(None), Ok(String::new()));
    }
}
