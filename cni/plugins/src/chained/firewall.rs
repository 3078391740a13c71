// SPDX-License-Identifier: Apache-2.0
//! `firewall`: lets a pod's traffic through the host, and keeps pods apart where that is asked for.
//!
//! An accept of one table of nftables is not final: another table may still drop. So what is let through is let through in the chain
//! `FORWARD` of iptables as well, where there is one.

use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::AddResult;
use rtnetlink::packet_route::link::InfoKind;
use serde::Deserialize;
use std::net::IpAddr;

use super::own_ips;
use crate::failure::invalid;
use crate::net::{Net, pod};
use crate::nft::{self, Chain, apply, family_of, link_word};
use crate::owner;

const TABLE: &str = "isthmus_firewall";
/// What is kept out.
const KEPT_OUT: Chain = Chain { family: "inet", table: TABLE, name: "kept_out", hook: "" };
/// What is let through.
const LET_THROUGH: Chain = Chain { family: "inet", table: TABLE, name: "let_through", hook: "" };
/// What a bridge would carry from pod to pod.
const BRIDGED: Chain = Chain {
    family: "bridge",
    table: TABLE,
    name: "forward",
    hook: "type filter hook forward priority filter;",
};
/// Of iptables, where that keeps its rules in nftables.
const IPTABLES: [Chain; 2] = [
    Chain { family: "ip", table: "filter", name: "FORWARD", hook: "" },
    Chain { family: "ip6", table: "filter", name: "FORWARD", hook: "" },
];

/// How pods are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum IngressPolicy {
    /// From everywhere.
    #[default]
    #[serde(alias = "")]
    Open,
    /// Not from pods of other bridges.
    SameBridge,
    /// Not from any other pod.
    Isolated,
}

/// Fields of the configuration. `backend` has no meaning here: rules are those of nftables.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    backend: String,
    #[serde(default, rename = "iptablesAdminChainName")]
    admin_chain: String,
    #[serde(default)]
    ingress_policy: IngressPolicy,
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let mut fields: Self = request.config.settings()?;
        if fields.backend == "firewalld" {
            let msg = "backend firewalld is not supported: rules are those of nftables";
            return Err(Error::new(code::UNSUPPORTED_FIELD, msg));
        }
        if fields.admin_chain.is_empty() {
            "CNI-ADMIN".clone_into(&mut fields.admin_chain);
        }
        let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        let named = fields.admin_chain.starts_with(|letter: char| letter.is_ascii_alphabetic());
        if !named || !fields.admin_chain.chars().all(letters) || fields.admin_chain.len() > 28 {
            return Err(invalid(format!(
                "iptablesAdminChainName {:?} is no chain's name",
                fields.admin_chain
            )));
        }
        Ok(fields)
    }

    /// The order: the administrator's own rules first, then what is kept out, then what is let through.
    fn entrances(&self) -> String {
        let admin = &self.admin_chain;
        format!(
            "add table inet {TABLE}\n\
             add set inet {TABLE} bridges {{ type ifname; }}\n\
             add chain inet {TABLE} {admin}\n\
             add chain inet {TABLE} kept_out\n\
             add chain inet {TABLE} let_through\n\
             add chain inet {TABLE} forward {{ type filter hook forward priority filter; }}\n\
             flush chain inet {TABLE} forward\n\
             add rule inet {TABLE} forward jump {admin}\n\
             add rule inet {TABLE} forward jump kept_out\n\
             add rule inet {TABLE} forward jump let_through\n"
        )
    }
}

/// Rules of one attachment, by chain.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    kept_out: Vec<String>,
    bridged: Vec<String>,
    let_through: Vec<String>,
    /// Before the rules.
    lines: String,
}

/// Bridge and port of the pod, as words of nft, as far as it has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    bridge: Option<String>,
    port: Option<String>,
}

impl Rules {
    fn of(policy: IngressPolicy, ips: &[IpAddr], place: &Place) -> Self {
        let mut rules = Self::default();
        for ip in ips {
            let family = family_of(*ip);
            rules.let_through.push(format!("{family} saddr {ip} accept"));
            rules.let_through.push(format!("{family} daddr {ip} ct state established,related accept"));
            match (policy, &place.bridge) {
                (IngressPolicy::SameBridge, Some(bridge)) => rules.kept_out.push(format!(
                    "{family} daddr {ip} iifname != {bridge} iifname @bridges ct state new counter drop"
                )),
                (IngressPolicy::Isolated, _) => rules
                    .kept_out
                    .push(format!("{family} daddr {ip} iifname @bridges ct state new counter drop")),
                _ => {}
            }
        }
        if policy == IngressPolicy::Isolated {
            rules.bridged.extend(place.port.iter().map(|port| format!("oifname {port} counter drop")));
        }
        if let (true, Some(bridge)) = (policy != IngressPolicy::Open, &place.bridge) {
            rules.lines = format!("add element inet {TABLE} bridges {{ {bridge} }}\n");
        }
        rules
    }
}

fn place(result: &AddResult) -> Result<Place, Error> {
    let mut host = Net::here()?;
    let mut place = Place::default();
    for one in result.interfaces.iter().filter(|one| one.sandbox.is_empty()) {
        match host.link(&one.name)? {
            Some(link) if link.is(&InfoKind::Bridge) => place.bridge = Some(link_word(&link.name)?),
            Some(link) if link.is(&InfoKind::Veth) => place.port = Some(link_word(&link.name)?),
            _ => {}
        }
    }
    Ok(place)
}

fn rules(request: &Request, fields: &Fields, result: &AddResult) -> Result<Rules, Error> {
    let ips: Vec<IpAddr> = own_ips(request, result)?.iter().map(|ip| ip.address.addr()).collect();
    let place = place(result)?;
    if fields.ingress_policy == IngressPolicy::SameBridge && place.bridge.is_none() {
        return Err(invalid("ingressPolicy same-bridge needs a bridge in prevResult"));
    }
    Ok(Rules::of(fields.ingress_policy, &ips, &place))
}

fn all() -> impl Iterator<Item = Chain> {
    [KEPT_OUT, LET_THROUGH, BRIDGED].into_iter().chain(IPTABLES)
}

fn delete(request: &Request) -> Result<(), Error> {
    all().map(|chain| chain.delete_own(request).map(drop)).fold(Ok(()), Result::and)
}

/// The plugin.
pub(crate) struct Firewall;

impl Plugin for Firewall {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields = Fields::of(request)?;
        let result = pod::previous(request)?;
        let rules = rules(request, &fields, &result)?;
        delete(request)?;
        let mark = owner::key(request);
        let mut lines = fields.entrances() + &rules.lines;
        lines.push_str(&KEPT_OUT.rules_of(&rules.kept_out, &mark));
        lines.push_str(&LET_THROUGH.rules_of(&rules.let_through, &mark));
        if !rules.bridged.is_empty() {
            lines.push_str(&(BRIDGED.ensure() + &BRIDGED.rules_of(&rules.bridged, &mark)));
        }
        for chain in IPTABLES {
            if chain.exists()? {
                let of_family =
                    rules.let_through.iter().filter(|rule| rule.starts_with(&format!("{} ", chain.family)));
                of_family.for_each(|rule| lines.push_str(&chain.insert(rule, &mark)));
            }
        }
        apply(&lines)?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        nft::unless_missing(delete(request))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        let rules = rules(request, &fields, &pod::previous(request)?)?;
        KEPT_OUT.check_own(request, rules.kept_out.len())?;
        LET_THROUGH.check_own(request, rules.let_through.len())?;
        BRIDGED.check_own(request, rules.bridged.len())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        nft::available()?;
        Fields::of(request).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        all().map(|chain| chain.collect(request)).fold(Ok(()), Result::and)
    }

    fn about(&self) -> String {
        "firewall: lets a pod's traffic through the host, and keeps pods apart".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_isolated_pod_is_kept_from_pods_of_other_bridges_and_of_its_own() {
        let place = Place { bridge: Some("\"cni0\"".to_owned()), port: Some("\"veth1\"".to_owned()) };
        let ips = ["10.0.0.2".parse().unwrap()];
        let rules = Rules::of(IngressPolicy::Isolated, &ips, &place);
        assert_eq!(rules.kept_out, ["ip daddr 10.0.0.2 iifname @bridges ct state new counter drop"]);
        assert_eq!(rules.bridged, ["oifname \"veth1\" counter drop"]);
        let rules = Rules::of(IngressPolicy::SameBridge, &ips, &place);
        assert!(rules.kept_out[0].contains("iifname != \"cni0\"") && rules.bridged.is_empty());
        let rules = Rules::of(IngressPolicy::Open, &ips, &place);
        assert!(rules.kept_out.is_empty() && rules.lines.is_empty());
        assert_eq!(rules.let_through.len(), 2);
    }
}
