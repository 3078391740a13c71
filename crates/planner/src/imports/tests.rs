// SPDX-License-Identifier: Apache-2.0
use std::sync::Arc;

use isthmus_api::mcs::ServiceExportStatus;
use isthmus_api::v1alpha1::ClusterPeeringStatus;
use isthmus_mesh::record::{self, Cluster, EndpointPort, Endpoints, Export, Protocol, Record, announcement};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::{
    Corefile, Derived, ExportWish, Import, LocalService, LocalSlice, Mirrored, PeerView, Peering, Seen,
};
use crate::testing::{seen, seen_with};

fn name(name: &str) -> ServiceName {
    ServiceName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn port(name: &str, number: u16) -> record::ServicePort {
    let (name, port) = (Some(name.to_owned()), number.try_into().unwrap());
    record::ServicePort { name, protocol: Protocol::Tcp, app_protocol: None, port }
}

fn export(created: i64, ports: &[(&str, u16)]) -> Export {
    Export {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        created_at: time(created),
        kind: ExportKind::ClusterSetIP,
        ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: None,
        traffic_distribution: None,
        ip_families: vec![AddressFamily::IPv4, AddressFamily::IPv6],
        labels: BTreeMap::from([
            ("tier".to_owned(), "front".to_owned()),
            (MANAGED_BY.to_owned(), "x".to_owned()),
        ]),
        annotations: BTreeMap::new(),
    }
}

fn slice(address: &str, ports: &[&str], ready: bool) -> Endpoints {
    let port = |name: &&str| EndpointPort {
        name: Some((*name).to_owned()),
        protocol: Protocol::Tcp,
        port: 8080.try_into().unwrap(),
        app_protocol: None,
    };
    let endpoint = Endpoint {
        address: address.parse().unwrap(),
        ready,
        serving: ready,
        terminating: false,
        hostname: Some("web-0".to_owned()),
        zone: None,
    };
    Endpoints {
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        slice: "web-abc".to_owned(),
        address_family: AddressFamily::IPv4,
        ports: ports.iter().map(port).collect(),
        endpoints: vec![endpoint],
    }
}

/// Cluster east with a peering to west, where the namespace `shop` exists.
fn east() -> Snapshot {
    let mut snapshot = Snapshot { now: time(1000), ..Snapshot::default() };
    snapshot.cluster.property = Some("east".to_owned());
    snapshot.cluster.identity = Some("e".repeat(64).parse().unwrap());
    snapshot.namespaces.insert("shop".to_owned());
    let peering = Peering {
        identity: "f".repeat(64).parse().unwrap(),
        endpoints: Vec::new(),
        token_secret: None,
        allowed_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
        allowed_namespaces: ["shop".to_owned()].into(),
    };
    snapshot.peerings.insert("west".to_owned(), seen(peering, 1));
    snapshot
}

fn west_says(snapshot: &mut Snapshot, records: impl IntoIterator<Item = Record>) {
    let cluster =
        Cluster { cluster_id: "west".parse().unwrap(), pod_cidrs: vec!["10.2.0.0/16".parse().unwrap()] };
    let all = announcement([Record::Cluster(cluster)].into_iter().chain(records));
    let view = PeerView {
        connected: true,
        last_heard: Some(time(999)),
        announcement: Some(Arc::new(all)),
        ..PeerView::default()
    };
    snapshot.peers.insert("west".to_owned(), view);
}

fn export_here(snapshot: &mut Snapshot, created: i64, ports: &[(&str, u16)]) {
    let exported: Seen<ExportWish, ServiceExportStatus> = seen(ExportWish::default(), created);
    snapshot.exports.insert(name("web"), exported);
    let export = export(created, ports);
    let service = LocalService {
        kind: export.kind,
        ports: export.ports,
        session_affinity: export.session_affinity,
        internal_traffic_policy: None,
        traffic_distribution: None,
        ip_families: export.ip_families,
        external_name: false,
    };
    snapshot.services.insert(name("web"), service);
    let names: Vec<&str> = ports.iter().map(|(name, _)| *name).collect();
    let record = slice("10.1.0.9", &names, true);
    let nodes = BTreeMap::from([("10.1.0.9".parse().unwrap(), "a".to_owned())]);
    snapshot
        .slices
        .entry(name("web"))
        .or_default()
        .insert("web-abc".to_owned(), LocalSlice { record, nodes });
}

/// The cluster once the plan was applied and the API server gave the derived Service its addresses.
fn applied(snapshot: &Snapshot, plan: &Plan) -> Snapshot {
    let mut next = snapshot.clone();
    next.imports.clear();
    next.derived.clear();
    next.mirrored.clear();
    for (key, body) in &plan.ensure {
        let here =
            ServiceName { namespace: key.namespace.clone().unwrap_or_default(), name: key.name.clone() };
        match key.kind {
            Kind::ServiceImport => {
                let spec = serde_json::from_value(body["spec"].clone()).unwrap();
                let status = plan.statuses.get(key).cloned().unwrap_or(json!({}));
                let status = serde_json::from_value(status).unwrap();
                next.imports.insert(here, seen_with(Ok(Import { spec, ours: true }), status));
            }
            Kind::Service => {
                let addresses = vec!["fd00:101::5".parse().unwrap(), "10.101.0.5".parse().unwrap()];
                next.derived.insert(here, Derived { uid: "d".to_owned(), addresses });
            }
            Kind::EndpointSlice => {
                let source = body["metadata"]["labels"][SOURCE_CLUSTER].as_str().unwrap().to_owned();
                next.mirrored.insert(here, Mirrored { uid: "m".to_owned(), source_cluster: source });
            }
            _ => {}
        }
    }
    next
}

/// The plan once nothing changes any more.
fn settled(mut snapshot: Snapshot) -> (Snapshot, Plan) {
    for _ in 0..4 {
        let plan = crate::plan(&snapshot);
        snapshot = applied(&snapshot, &plan);
    }
    let plan = crate::plan(&snapshot);
    (snapshot, plan)
}

fn of_kind(plan: &Plan, kind: Kind) -> Vec<&Value> {
    plan.ensure.iter().filter(|(key, _)| key.kind == kind).map(|(_, body)| body).collect()
}

fn west_exports_web() -> Vec<Record> {
    vec![Record::Export(export(5, &[("http", 80)])), Record::Endpoints(slice("10.2.0.7", &["http"], true))]
}

#[test]
fn an_export_of_a_peer_becomes_an_import_with_an_address_and_its_endpoints() {
    let mut snapshot = east();
    west_says(&mut snapshot, west_exports_web());
    let (_, plan) = settled(snapshot);

    let import = of_kind(&plan, Kind::ServiceImport)[0];
    assert_eq!(
        import["spec"]["ips"],
        json!(["10.101.0.5", "fd00:101::5"]),
        "in the order of the exporter's families"
    );
    assert_eq!(import["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(import["metadata"]["labels"], json!({"tier": "front", MANAGED_BY: MANAGER}));
    let derived = of_kind(&plan, Kind::Service)[0];
    assert_eq!(import["metadata"]["annotations"][DERIVED_SERVICE], derived["metadata"]["name"]);
    assert_eq!(derived["spec"].get("selector"), None);
    assert_eq!(derived["metadata"]["ownerReferences"][0]["kind"], "ServiceImport");
    let slice = of_kind(&plan, Kind::EndpointSlice)[0];
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], derived["metadata"]["name"]);
    assert_eq!(slice["metadata"]["labels"][SOURCE_CLUSTER], "west");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.2.0.7"]));
    let key = ObjectKey::namespaced(Kind::ServiceImport, "shop", "web");
    assert_eq!(plan.statuses[&key]["clusters"], json!([{"cluster": "west"}]));
    assert_eq!(plan.statuses[&key]["conditions"][0]["status"], "True");
}

#[test]
fn an_endpoint_that_is_not_ready_stays_listed_as_such() {
    let mut snapshot = east();
    let records =
        [Record::Export(export(5, &[("http", 80)])), Record::Endpoints(slice("10.2.0.7", &["http"], false))];
    west_says(&mut snapshot, records);
    let (_, plan) = settled(snapshot);
    assert_eq!(of_kind(&plan, Kind::EndpointSlice)[0]["endpoints"][0]["conditions"]["ready"], false);
}

#[test]
fn an_import_that_no_dns_serves_says_so_with_the_way_out() {
    let mut snapshot = east();
    west_says(&mut snapshot, west_exports_web());
    let text = ".:53 {\n  forward . 8.8.8.8\n}\n".to_owned();
    snapshot.corefile = Some(Corefile { text, version: "1".to_owned() });
    let plan = settled(snapshot).1;
    let status = &plan.statuses[&ObjectKey::namespaced(Kind::ServiceImport, "shop", "web")];
    let conditions = status["conditions"].as_array().unwrap();
    let served = conditions.iter().find(|condition| condition["type"] == "NameServed").unwrap();
    assert_eq!((&served["status"], &served["reason"]), (&"False".into(), &"NoKubernetesBlock".into()));
    let message = served["message"].as_str().unwrap();
    assert!(message.contains("kube-system/coredns") && message.contains("clusterset.local"), "{message}");
}

#[test]
fn unexporting_removes_import_service_and_slices() {
    let mut snapshot = east();
    west_says(&mut snapshot, west_exports_web());
    let (mut snapshot, _) = settled(snapshot);
    west_says(&mut snapshot, []);
    let plan = crate::plan(&snapshot);
    assert!(of_kind(&plan, Kind::ServiceImport).is_empty());
    let kinds: Vec<Kind> = plan.prune.keys().map(|key| key.kind).collect();
    assert_eq!(kinds, [Kind::EndpointSlice, Kind::Service, Kind::ServiceImport]);
}

#[test]
fn deleting_the_peering_removes_everything_that_came_through_it() {
    let mut snapshot = east();
    west_says(&mut snapshot, west_exports_web());
    let (mut snapshot, _) = settled(snapshot);
    snapshot.peerings.clear();
    snapshot.peers.clear();
    assert_eq!(crate::plan(&snapshot).prune.len(), 3);
}

#[test]
fn until_a_peer_speaks_again_after_a_restart_nothing_that_came_from_it_is_touched() {
    let mut snapshot = east();
    west_says(&mut snapshot, west_exports_web());
    let (mut snapshot, _) = settled(snapshot);
    snapshot.peers.clear();
    let status = ClusterPeeringStatus {
        cluster_id: Some("west".to_owned()),
        remote_cidrs: vec!["10.2.0.0/16".to_owned()],
        ..ClusterPeeringStatus::default()
    };
    snapshot.peerings.get_mut("west").unwrap().status = status;
    let plan = crate::plan(&snapshot);
    assert!(plan.prune.is_empty(), "{:?}", plan.prune);
    assert!(of_kind(&plan, Kind::ServiceImport).is_empty(), "held as it is, not written");

    west_says(&mut snapshot, []);
    assert_eq!(crate::plan(&snapshot).prune.len(), 3);
}

#[test]
fn endpoints_of_both_clusters_serve_the_ports_that_their_own_cluster_exposes() {
    let mut snapshot = east();
    export_here(&mut snapshot, 10, &[("http", 80), ("admin", 90)]);
    west_says(&mut snapshot, west_exports_web());
    let (_, plan) = settled(snapshot);

    let import = of_kind(&plan, Kind::ServiceImport)[0];
    let ports: Vec<&Value> =
        import["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["name"]).collect();
    assert_eq!(ports, ["admin", "http"]);
    for slice in of_kind(&plan, Kind::EndpointSlice) {
        let local = slice["metadata"]["labels"][SOURCE_CLUSTER] == "east";
        assert_eq!(slice["ports"].as_array().unwrap().len(), if local { 2 } else { 1 });
        assert_eq!(slice["endpoints"][0]["nodeName"].as_str(), local.then_some("a"));
    }
}

#[test]
fn a_port_conflict_is_shown_on_our_export_and_the_losing_clusters_endpoints_are_left_out() {
    let mut snapshot = east();
    export_here(&mut snapshot, 10, &[("http", 81)]);
    west_says(&mut snapshot, west_exports_web());
    let (_, plan) = settled(snapshot);

    assert_eq!(of_kind(&plan, Kind::ServiceImport)[0]["spec"]["ports"][0]["port"], 80);
    let slices = of_kind(&plan, Kind::EndpointSlice);
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["metadata"]["labels"][SOURCE_CLUSTER], "west");
    let status = &plan.statuses[&ObjectKey::namespaced(Kind::ServiceExport, "shop", "web")];
    let conflict =
        status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Conflict").unwrap();
    assert_eq!(
        (&conflict["status"], &conflict["reason"]),
        (&json!("True"), &json!("PortConflict,LabelsConflict"))
    );
}

#[test]
fn a_headless_export_has_no_address_and_keeps_its_endpoints_names() {
    let mut snapshot = east();
    let headless = Export { kind: ExportKind::Headless, ..export(5, &[("http", 80)]) };
    west_says(
        &mut snapshot,
        [Record::Export(headless), Record::Endpoints(slice("10.2.0.7", &["http"], true))],
    );
    let (_, plan) = settled(snapshot);
    assert!(of_kind(&plan, Kind::Service).is_empty());
    let import = of_kind(&plan, Kind::ServiceImport)[0];
    assert_eq!((&import["spec"]["type"], import["spec"].get("ips")), (&json!("Headless"), None));
    let slice = of_kind(&plan, Kind::EndpointSlice)[0];
    assert_eq!(slice["endpoints"][0]["hostname"], "web-0");
    assert_eq!(slice["metadata"]["labels"].get("kubernetes.io/service-name"), None);
}

#[test]
fn an_export_without_service_or_of_an_external_name_is_invalid_and_not_announced() {
    let mut snapshot = east();
    export_here(&mut snapshot, 10, &[("http", 80)]);
    let reason = |snapshot: &Snapshot| {
        let plan = crate::plan(snapshot);
        let status = &plan.statuses[&ObjectKey::namespaced(Kind::ServiceExport, "shop", "web")];
        let announced = plan.announcement.len();
        (status["conditions"][0]["reason"].as_str().unwrap().to_owned(), announced)
    };
    assert_eq!(reason(&snapshot), ("Valid".to_owned(), 3), "the cluster, the export and its slice");
    snapshot.services.get_mut(&name("web")).unwrap().external_name = true;
    assert_eq!(reason(&snapshot), ("InvalidServiceType".to_owned(), 1));
    snapshot.services.clear();
    assert_eq!(reason(&snapshot), ("NoService".to_owned(), 1));
}

#[test]
fn an_import_that_somebody_else_made_is_left_alone_and_the_export_says_so() {
    let mut snapshot = east();
    export_here(&mut snapshot, 10, &[("http", 80)]);
    let foreign = seen_with(Ok(Import::default()), ServiceImportStatus::default());
    snapshot.imports.insert(name("web"), foreign);
    let plan = crate::plan(&snapshot);
    assert!(of_kind(&plan, Kind::ServiceImport).is_empty() && plan.prune.is_empty());
    let status = &plan.statuses[&ObjectKey::namespaced(Kind::ServiceExport, "shop", "web")];
    assert!(status["conditions"].to_string().contains("that Isthmus did not make"));
}
