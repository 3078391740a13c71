// SPDX-License-Identifier: Apache-2.0
//! One service out of the exports of several clusters (KEP-1645, "Conflict Resolution Policies").
//!
//! The oldest export wins every conflict, so that a newcomer never changes running traffic; of two equally old
//! the one of the lower cluster ID. The result is the same in whatever order the exports came.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_mesh::record::{AddressFamily, Export, ExportKind, ServicePort, SessionAffinity, TrafficPolicy};

/// A service of the clusterset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// How it is reached.
    pub kind: ExportKind,
    /// Union of the ports, without conflicts, by name.
    pub ports: Vec<ServicePort>,
    /// Session affinity.
    pub session_affinity: SessionAffinity,
    /// As in a Service.
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// As in a Service.
    pub traffic_distribution: Option<String>,
    /// Families of the virtual addresses, the preferred one first.
    pub ip_families: Vec<AddressFamily>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What the exports do not agree on.
    pub conflicts: BTreeSet<Conflict>,
}

/// What exports do not agree on, in the order of the KEP's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conflict {
    /// A port's name or number means different things.
    Port,
    /// Headless or not.
    Type,
    /// Session affinity.
    SessionAffinity,
    /// Time of the session affinity.
    SessionAffinityConfig,
    /// Annotations.
    Annotations,
    /// Labels.
    Labels,
    /// Internal traffic policy.
    InternalTrafficPolicy,
    /// Traffic distribution.
    TrafficDistribution,
    /// A family of the service does not reach all of its backends.
    IpFamily,
}

impl Conflict {
    /// The condition's reason by KEP-1645.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Port => "PortConflict",
            Self::Type => "TypeConflict",
            Self::SessionAffinity => "SessionAffinityConflict",
            Self::SessionAffinityConfig => "SessionAffinityConfigConflict",
            Self::Annotations => "AnnotationsConflict",
            Self::Labels => "LabelsConflict",
            Self::InternalTrafficPolicy => "InternalTrafficPolicyConflict",
            Self::TrafficDistribution => "TrafficDistributionConflict",
            Self::IpFamily => "IPFamilyConflict",
        }
    }
}

/// Merges the exports of one name, by cluster ID; none if there are none.
pub fn merge(exports: &BTreeMap<&str, &Export>) -> Option<Merged> {
    let mut by_age: Vec<_> = exports.iter().collect();
    by_age.sort_by_key(|(cluster, export)| (export.created_at, **cluster));
    let (oldest, younger) = by_age.split_first().map(|((_, oldest), younger)| (*oldest, younger))?;
    let mut merged = Merged {
        kind: oldest.kind,
        ports: oldest.ports.clone(),
        session_affinity: oldest.session_affinity,
        internal_traffic_policy: oldest.internal_traffic_policy,
        traffic_distribution: oldest.traffic_distribution.clone(),
        ip_families: oldest.ip_families.clone(),
        labels: oldest.labels.clone(),
        annotations: oldest.annotations.clone(),
        conflicts: BTreeSet::new(),
    };
    for (_, export) in younger {
        for port in &export.ports {
            if !add_port(&mut merged.ports, port) {
                merged.conflicts.insert(Conflict::Port);
            }
        }
        merged.conflicts.extend(differences(oldest, export));
    }
    merged.ports.sort();
    Some(merged)
}

/// Adds a port to the union; false if it contradicts one that is there.
fn add_port(ports: &mut Vec<ServicePort>, port: &ServicePort) -> bool {
    let same_name = ports.iter().find(|known| known.name == port.name);
    if let Some(known) = same_name {
        return known == port;
    }
    // A Service of several ports must name them all, and must have each number once.
    let unnamed = port.name.is_none() || ports.iter().any(|known| known.name.is_none());
    let taken = ports.iter().any(|known| (known.protocol, known.port) == (port.protocol, port.port));
    if taken || (unnamed && !ports.is_empty()) {
        return false;
    }
    ports.push(port.clone());
    true
}

fn differences(oldest: &Export, other: &Export) -> impl Iterator<Item = Conflict> {
    let affinity = |export: &Export| matches!(export.session_affinity, SessionAffinity::ClientIP { .. });
    let same_affinity = affinity(oldest) == affinity(other);
    let partly = oldest.ip_families.iter().any(|family| !other.ip_families.contains(family));
    [
        (Conflict::Type, oldest.kind != other.kind),
        (Conflict::SessionAffinity, !same_affinity),
        (Conflict::SessionAffinityConfig, same_affinity && oldest.session_affinity != other.session_affinity),
        (Conflict::Annotations, oldest.annotations != other.annotations),
        (Conflict::Labels, oldest.labels != other.labels),
        (Conflict::InternalTrafficPolicy, oldest.internal_traffic_policy != other.internal_traffic_policy),
        (Conflict::TrafficDistribution, oldest.traffic_distribution != other.traffic_distribution),
        (Conflict::IpFamily, partly),
    ]
    .into_iter()
    .filter_map(|(conflict, differs)| differs.then_some(conflict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_mesh::record::Protocol;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn port(name: &str, number: u16) -> ServicePort {
        let name = (!name.is_empty()).then(|| name.to_owned());
        ServicePort { name, protocol: Protocol::Tcp, app_protocol: None, port: number.try_into().unwrap() }
    }

    fn export(age: i64, ports: &[(&str, u16)]) -> Export {
        Export {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            created_at: Timestamp::from_second(age).unwrap(),
            kind: ExportKind::ClusterSetIP,
            ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
            session_affinity: SessionAffinity::None,
            internal_traffic_policy: None,
            traffic_distribution: None,
            ip_families: vec![AddressFamily::IPv4],
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    fn merged(exports: &[(&str, &Export)]) -> Merged {
        merge(&exports.iter().copied().collect()).unwrap()
    }

    #[test]
    fn ports_of_all_clusters_are_united() {
        let result =
            merged(&[("east", &export(1, &[("http", 80)])), ("west", &export(2, &[("metrics", 90)]))]);
        assert_eq!(result.ports, [port("http", 80), port("metrics", 90)]);
        assert!(result.conflicts.is_empty());
    }

    #[test]
    fn the_older_export_wins_a_port_whatever_its_cluster_is_called() {
        let result = merged(&[("east", &export(2, &[("http", 81)])), ("west", &export(1, &[("http", 80)]))]);
        assert_eq!(result.ports, [port("http", 80)]);
        assert_eq!(result.conflicts, BTreeSet::from([Conflict::Port]));
    }

    #[test]
    fn one_number_under_two_names_is_a_conflict() {
        let result = merged(&[("east", &export(1, &[("a", 80)])), ("west", &export(2, &[("b", 80)]))]);
        assert_eq!((result.ports, result.conflicts), (vec![port("a", 80)], BTreeSet::from([Conflict::Port])));
    }

    #[test]
    fn a_headless_newcomer_does_not_take_the_address_away() {
        let mut headless = export(2, &[]);
        headless.kind = ExportKind::Headless;
        let result = merged(&[("east", &headless), ("west", &export(1, &[]))]);
        assert_eq!(
            (result.kind, result.conflicts),
            (ExportKind::ClusterSetIP, BTreeSet::from([Conflict::Type]))
        );
    }

    #[test]
    fn a_family_that_reaches_only_some_backends_is_a_conflict_and_a_further_one_is_none() {
        let mut dual = export(1, &[]);
        dual.ip_families.push(AddressFamily::IPv6);
        let conflicts = merged(&[("east", &dual), ("west", &export(2, &[]))]).conflicts;
        assert_eq!(conflicts, BTreeSet::from([Conflict::IpFamily]));
        dual.created_at = Timestamp::from_second(3).unwrap();
        assert!(merged(&[("east", &dual), ("west", &export(2, &[]))]).conflicts.is_empty());
    }

    fn any_export() -> impl Strategy<Value = Export> {
        let ports = prop::collection::btree_map(prop::sample::select(vec!["", "a", "b"]), 80u16..83, 0..3);
        (0i64..4, ports, any::<bool>(), any::<bool>()).prop_map(|(age, ports, headless, labelled)| {
            let mut numbers = BTreeSet::new();
            let ports: Vec<_> = ports.into_iter().filter(|(_, number)| numbers.insert(*number)).collect();
            let mut export = export(age, &ports);
            if headless {
                export.kind = ExportKind::Headless;
            }
            if labelled {
                export.labels.insert("tier".to_owned(), "front".to_owned());
            }
            export
        })
    }

    proptest! {
        #[test]
        fn merging_neither_depends_on_order_nor_breaks_the_rules_of_a_service(
            exports in prop::collection::vec(any_export(), 1..5)
        ) {
            let ids = ["a", "b", "c", "d"];
            let forward: BTreeMap<_, _> = ids.into_iter().zip(&exports).collect();
            let backward: BTreeMap<_, _> = ids.into_iter().zip(&exports).rev().collect();
            let result = merge(&forward).unwrap();
            let other_way = merge(&backward).unwrap();
            prop_assert_eq!(&result, &other_way);
            let names: BTreeSet<_> = result.ports.iter().map(|port| &port.name).collect();
            let numbers: BTreeSet<_> = result.ports.iter().map(|port| (port.protocol, port.port)).collect();
            prop_assert_eq!(names.len(), result.ports.len());
            prop_assert_eq!(numbers.len(), result.ports.len());
        }

        #[test]
        fn a_newcomer_changes_nothing_that_runs(exports in prop::collection::vec(any_export(), 1..4), new in any_export()) {
            let ids = ["a", "b", "c"];
            let mut known: BTreeMap<_, _> = ids.into_iter().zip(&exports).collect();
            let before = merge(&known).unwrap();
            let new = Export { created_at: Timestamp::from_second(100).unwrap(), ..new };
            known.insert("z", &new);
            let after = merge(&known).unwrap();
            prop_assert_eq!((before.kind, &before.labels), (after.kind, &after.labels));
            for port in &before.ports {
                prop_assert!(after.ports.contains(port));
            }
        }
    }
}
