// SPDX-License-Identifier: Apache-2.0
//! Pools, blocks, egress addresses and the cluster's Service addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::v1alpha1::{
    EgressPolicy, EgressPolicySpec, EgressPolicyStatus, IPBlock, IPBlockStatus, IPPool, IPPoolSpec,
    IPPoolStatus,
};
use isthmus_planner::{Block, Egress, Pool, Problem, Seen};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use super::seen;

/// Prefix length of blocks where the pool says nothing.
const BLOCK_PREFIX_V4: u8 = 26;
const BLOCK_PREFIX_V6: u8 = 122;
/// A pool of more blocks than this would never be searched through.
const BLOCK_BITS_MAX: u8 = 24;

/// Takes an IPPool.
pub fn pool(object: &IPPool) -> Seen<Pool, IPPoolStatus> {
    seen(&object.metadata, object.status.as_ref(), pool_wish(&object.spec))
}

fn pool_wish(spec: &IPPoolSpec) -> Result<Pool, Problem> {
    let cidr = network(&spec.cidr)?;
    let default = if cidr.network().is_ipv4() { BLOCK_PREFIX_V4 } else { BLOCK_PREFIX_V6 };
    let block_prefix = spec.block_size.unwrap_or_else(|| default.max(cidr.prefix_len()));
    let wrong = |message: String| Problem { reason: "InvalidBlockSize", message };
    if block_prefix < cidr.prefix_len() || block_prefix > cidr.max_prefix_len() - 1 {
        return Err(wrong(format!(
            "blockSize {block_prefix} does not fit {cidr}; give {} to {}",
            cidr.prefix_len(),
            cidr.max_prefix_len() - 1
        )));
    }
    let shortest = cidr.max_prefix_len().saturating_sub(BLOCK_BITS_MAX);
    if block_prefix < shortest {
        return Err(wrong(format!("blockSize {block_prefix} is too large a block; give {shortest} or more")));
    }
    let nodes = selector(spec.node_selector.as_ref(), "nodeSelector")?;
    let wish = spec.namespace_selector.as_ref();
    let namespaces = wish.map(|wish| selector(Some(wish), "namespaceSelector")).transpose()?;
    let (reserved, on_request) = set_aside(spec, &cidr)?;
    Ok(Pool {
        cidr,
        block_prefix,
        nodes,
        namespaces,
        set_aside: IpNet::aggregate(&[reserved.clone(), on_request.clone()].concat()),
        reserved,
        on_request,
        disabled: spec.disabled,
        allocation: spec.allocation,
    })
}

/// What no pod of the pool receives, and what only those receive that ask; in each list none within another.
pub(crate) fn set_aside(spec: &IPPoolSpec, pool: &IpNet) -> Result<(Vec<IpNet>, Vec<IpNet>), Problem> {
    let reserved = ranges(&spec.reserved, pool, "reserved", "InvalidReserved")?;
    let on_request = ranges(&spec.on_request, pool, "onRequest", "InvalidOnRequest")?;
    Ok((reserved, on_request))
}

fn ranges(texts: &[String], pool: &IpNet, field: &str, reason: &'static str) -> Result<Vec<IpNet>, Problem> {
    let mut ranges = Vec::new();
    for text in texts {
        let range = network(text)?;
        if !pool.contains(&range) {
            let message = format!("{field}: {range} does not lie in {pool}; give ranges of the pool");
            return Err(Problem { reason, message });
        }
        ranges.push(range);
    }
    Ok(IpNet::aggregate(&ranges))
}

/// A network in CIDR notation without bits beyond its prefix.
pub(super) fn network(text: &str) -> Result<IpNet, Problem> {
    let wrong = |message| Problem { reason: "InvalidCIDR", message };
    let cidr: IpNet = text
        .parse()
        .map_err(|_| wrong(format!("{text:?} is not a network in CIDR notation, such as 10.1.0.0/16")))?;
    if cidr.trunc() != cidr {
        return Err(wrong(format!("{text:?} has bits beyond its prefix; write {}", cidr.trunc())));
    }
    Ok(cidr)
}

/// A label selector; none selects all.
pub(super) fn selector(wish: Option<&LabelSelector>, field: &str) -> Result<Selector, Problem> {
    let Some(wish) = wish else { return Ok(Selector::default()) };
    Selector::try_from(wish.clone()).map_err(|error| Problem {
        reason: "InvalidSelector",
        message: format!("{field}: {error}; use the operators In, NotIn, Exists and DoesNotExist"),
    })
}

/// Takes an IPBlock.
pub fn block(object: &IPBlock) -> Seen<Block, IPBlockStatus> {
    let value = network(&object.spec.cidr).map(|cidr| Block {
        pool: object.spec.pool.clone(),
        cidr,
        node: object.spec.node.clone(),
        pod: object.spec.pod.clone(),
    });
    seen(&object.metadata, object.status.as_ref(), value)
}

/// Takes an EgressPolicy.
pub fn egress(object: &EgressPolicy) -> Seen<Egress, EgressPolicyStatus> {
    seen(&object.metadata, object.status.as_ref(), egress_wish(&object.spec))
}

fn egress_wish(spec: &EgressPolicySpec) -> Result<Egress, Problem> {
    for destination in &spec.destination_cidrs {
        network(destination)?;
    }
    let gateways = selector(Some(&spec.gateway_selector), "gatewaySelector")?;
    selector(spec.pod_selector.as_ref(), "podSelector")?;
    selector(spec.namespace_selector.as_ref(), "namespaceSelector")?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in &spec.egress_ips {
        let wrong = |message| Problem { reason: "InvalidEgressIP", message };
        let address: IpAddr =
            text.parse().map_err(|_| wrong(format!("egressIPs: {text:?} is not an IP address")))?;
        if addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            return Err(wrong("egressIPs: give one address of each family at most".to_owned()));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        let message = "egressIPs: give the address that the outside shall see".to_owned();
        return Err(Problem { reason: "InvalidEgressIP", message });
    }
    Ok(Egress { gateways, addresses })
}

/// Takes a ServiceCIDR.
pub fn service_cidrs(object: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_ref()).into_iter().flatten();
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(cidr: &str, block_size: Option<u8>) -> Result<Pool, Problem> {
        pool_wish(&IPPoolSpec { cidr: cidr.to_owned(), block_size, ..IPPoolSpec::default() })
    }

    #[test]
    fn blocks_are_64_addresses_unless_the_pool_says_otherwise_or_is_smaller() {
        assert_eq!(wish("10.1.0.0/16", None).unwrap().block_prefix, 26);
        assert_eq!(wish("fd00:1::/56", None).unwrap().block_prefix, 122);
        assert_eq!(wish("10.1.0.0/28", None).unwrap().block_prefix, 28);
        assert_eq!(wish("10.1.0.0/16", Some(24)).unwrap().block_prefix, 24);
    }

    #[test]
    fn a_malformed_network_is_refused_with_what_to_write() {
        assert!(wish("10.1.0.0", None).unwrap_err().message.contains("10.1.0.0/16"));
        assert!(wish("10.1.2.3/16", None).unwrap_err().message.contains("write 10.1.0.0/16"));
    }

    #[test]
    fn a_block_larger_than_its_pool_is_refused_with_the_bounds() {
        let problem = wish("10.1.0.0/16", Some(12)).unwrap_err();
        assert_eq!(problem.reason, "InvalidBlockSize");
        assert!(problem.message.contains("16 to 31"), "{}", problem.message);
    }

    #[test]
    fn reserved_ranges_lie_in_the_pool_and_are_counted_once() {
        let wish = |reserved: &[&str]| {
            let reserved = reserved.iter().map(|text| (*text).to_owned()).collect();
            pool_wish(&IPPoolSpec { cidr: "10.1.0.0/16".to_owned(), reserved, ..IPPoolSpec::default() })
        };
        let once = wish(&["10.1.0.0/25", "10.1.0.128/25", "10.1.0.7/32"]).unwrap().reserved;
        assert_eq!(once, ["10.1.0.0/24".parse().unwrap()]);
        let problem = wish(&["10.2.0.0/24"]).unwrap_err();
        assert_eq!((problem.reason, problem.message.contains("10.2.0.0/24")), ("InvalidReserved", true));
        assert_eq!(wish(&["fd00::/64"]).unwrap_err().reason, "InvalidReserved");
        let text = |text: &str| vec![text.to_owned()];
        let asked = |on_request: &str| {
            let (reserved, on_request) = (text("10.1.0.0/25"), text(on_request));
            pool_wish(&IPPoolSpec {
                cidr: "10.1.0.0/16".to_owned(),
                reserved,
                on_request,
                ..IPPoolSpec::default()
            })
        };
        let pool = asked("10.1.0.128/25").unwrap();
        assert_eq!(pool.set_aside, ["10.1.0.0/24".parse().unwrap()]);
        assert_eq!(pool.on_request, ["10.1.0.128/25".parse().unwrap()]);
        assert_eq!(asked("10.2.0.0/24").unwrap_err().reason, "InvalidOnRequest");
    }

    #[test]
    fn a_selector_with_an_unknown_operator_is_a_problem_of_its_pool() {
        let requirement = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
            key: "zone".to_owned(),
            operator: "Near".to_owned(),
            values: None,
        };
        let wrong = Some(LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None });
        let pool = || IPPoolSpec { cidr: "10.1.0.0/16".to_owned(), ..IPPoolSpec::default() };
        for (spec, field) in [
            (IPPoolSpec { node_selector: wrong.clone(), ..pool() }, "nodeSelector"),
            (IPPoolSpec { namespace_selector: wrong.clone(), ..pool() }, "namespaceSelector"),
        ] {
            let problem = pool_wish(&spec).unwrap_err();
            assert_eq!(problem.reason, "InvalidSelector");
            assert!(problem.message.starts_with(field), "{}", problem.message);
        }
    }
}
