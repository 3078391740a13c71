// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;

use super::super::reserved;
use super::*;

fn any_cidr() -> impl Strategy<Value = IpNet> {
    // Half of them near what is granted, so that acceptance is exercised as well as refusal.
    let near = (0u8..=255, 0u8..=255, 8u8..=32).prop_map(|(c, d, prefix)| ([10, 2, c, d], prefix));
    let far = (any::<[u8; 4]>(), 0u8..=32);
    prop_oneof![near, far].prop_map(|(octets, prefix)| IpNet::new(octets.into(), prefix).unwrap().trunc())
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let near = (0u8..=255, 0u8..=255).prop_map(|(c, d)| IpAddr::from([10, 2, c, d]));
    prop_oneof![near, any::<[u8; 4]>().prop_map(IpAddr::from)]
}

fn any_record() -> impl Strategy<Value = Record> {
    let namespace =
        prop_oneof![Just("shop"), Just("kube-system"), Just("default"), Just("other"), Just("Bad_Name")];
    let name = prop_oneof![Just("web"), Just("kubernetes"), Just("db")];
    let addresses = prop::collection::vec(any_address(), 0..6);
    let gateway_parts = (any_address(), any_address(), "[a-c]");
    prop_oneof![
        prop::collection::vec(any_cidr(), 0..6).prop_map(|pod_cidrs| {
            Record::Cluster(Cluster { cluster_id: "west".parse().unwrap(), pod_cidrs })
        }),
        gateway_parts.prop_map(|(endpoint, mesh, name)| {
            Record::Gateway(Gateway {
                name,
                public_key: PublicKey::from([7; 32]),
                endpoints: vec![(endpoint, 51820).into()],
                mesh_addresses: vec![mesh],
                ports: Default::default(),
                lanes: Vec::new(),
            })
        }),
        (namespace.clone(), name.clone()).prop_map(|(namespace, name)| export(namespace, name)),
        (namespace, name, addresses).prop_map(|(namespace, name, addresses)| {
            slice(namespace, name, &format!("{name}-1"), &addresses)
        }),
    ]
}

/// The slow, plain statement of what may be in force.
fn is_within_grant(grant: &Grant, accepted: &Accepted) -> Result<(), TestCaseError> {
    for cidr in &accepted.cidrs {
        prop_assert!(grant.allowed_cidrs.iter().any(|allowed| allowed.contains(cidr)));
        prop_assert!(reserved::overlapping(cidr).is_none());
        let taken = grant.local_cidrs.iter().chain(grant.other_cidrs.iter().map(|(other, _)| other));
        for other in taken {
            prop_assert!(!overlap(other, cidr), "{cidr} overlaps {other}");
        }
        prop_assert!(grant.local_nodes.iter().all(|node| !cidr.contains(node)));
    }
    let is_peers = |address: &IpAddr| accepted.cidrs.iter().any(|cidr| cidr.contains(address));
    prop_assert!(accepted.gateways.values().flat_map(|gateway| &gateway.mesh_addresses).all(is_peers));
    prop_assert!(
        !accepted.gateways.values().flat_map(|g| &g.endpoints).any(|endpoint| is_peers(&endpoint.ip()))
    );
    for (name, slices) in &accepted.endpoints {
        prop_assert!(accepted.exports.contains_key(name));
        prop_assert!(slices.values().flat_map(|slice| &slice.endpoints).all(|e| is_peers(&e.address)));
    }
    for name in accepted.exports.keys() {
        prop_assert!(grant.allowed_namespaces.contains(&name.namespace));
        prop_assert!(!RESERVED_NAMESPACES.contains(&name.namespace.as_str()));
        prop_assert!((name.namespace.as_str(), name.name.as_str()) != ("default", "kubernetes"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_peer_announces_what_is_in_force_lies_within_the_grant(
        records in prop::collection::vec(any_record(), 0..12),
    ) {
        let grant = grant();
        let (accepted, _) = accept(&grant, &announcement(records));
        is_within_grant(&grant, &accepted)?;
    }

    #[test]
    fn every_announced_cidr_is_either_in_force_or_named(cidrs in prop::collection::vec(any_cidr(), 0..12)) {
        let record = Record::Cluster(Cluster { cluster_id: "west".parse().unwrap(), pod_cidrs: cidrs.clone() });
        let (accepted, refusals) = accept(&grant(), &announcement([record]));
        for cidr in cidrs {
            let named = refusals.iter().any(|refusal| refusal.what == format!("cidr {cidr}"));
            prop_assert!(accepted.cidrs.contains(&cidr) != named, "{cidr}");
        }
    }
}
