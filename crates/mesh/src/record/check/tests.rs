// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::record::{Endpoint, Endpoints, Record, RecordKey, limits};

fn parse(json: &str) -> Record {
    serde_json::from_str(json).expect("a record")
}

fn fault(json: &str) -> String {
    parse(json).check().expect_err("an invalid record").to_string()
}

fn slice_of(count: usize) -> Record {
    let endpoint = |n: usize| Endpoint {
        address: IpAddr::from([10, 2, (n >> 8) as u8, n as u8]),
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        zone: None,
    };
    let slice = parse(
        r#"{"kind":"endpoints","namespace":"shop","service":"web","slice":"web-1","addressFamily":"IPv4"}"#,
    );
    let Record::Endpoints(slice) = slice else { unreachable!() };
    Record::Endpoints(Endpoints { endpoints: (0..count).map(endpoint).collect(), ..slice })
}

#[test]
fn a_record_keeps_its_meaning_on_the_wire() {
    let json = r#"{"kind":"export","namespace":"shop","name":"web","createdAt":"2026-01-02T03:04:05Z","type":"ClusterSetIP",
        "ports":[{"name":"http","protocol":"TCP","appProtocol":"kubernetes.io/h2c","port":80}],
        "sessionAffinity":{"type":"ClientIP","timeoutSeconds":10},"internalTrafficPolicy":"Cluster",
        "trafficDistribution":"PreferClose","ipFamilies":["IPv4","IPv6"],"labels":{"a":"b"},"annotations":{"c.d/e":"f"}}"#;
    let record = parse(json);
    assert_eq!(record.check(), Ok(()));
    assert_eq!(record.key(), RecordKey::Export { namespace: "shop".into(), name: "web".into() });
    assert_eq!(
        serde_json::to_value(&record).unwrap(),
        serde_json::from_str::<serde_json::Value>(json).unwrap()
    );
}

#[test]
fn a_name_that_is_not_a_dns_name_is_refused() {
    let export = r#"{"kind":"export","namespace":"Shop","name":"web","createdAt":"2026-01-02T03:04:05Z","type":"Headless"}"#;
    assert!(fault(export).contains("namespace: must be an RFC 1123 label"));
    let slice = r#"{"kind":"endpoints","namespace":"a","service":"../b","slice":"c","addressFamily":"IPv4"}"#;
    assert!(fault(slice).contains("RFC 1123"));
}

#[test]
fn a_cidr_with_host_bits_is_refused() {
    let json = r#"{"kind":"cluster","clusterId":"west","podCidrs":["10.2.0.1/16"]}"#;
    assert!(fault(json).contains("beyond its prefix"));
}

#[test]
fn a_cluster_with_more_than_64_cidrs_is_refused() {
    let cidrs: Vec<String> = (0..=limits::CIDRS).map(|n| format!("10.{n}.0.0/16")).collect();
    let json = serde_json::json!({"kind": "cluster", "clusterId": "west", "podCidrs": cidrs});
    assert!(fault(&json.to_string()).contains("65 entries; at most 64"));
}

#[test]
fn a_slice_of_500_endpoints_is_taken_and_one_of_501_is_not() {
    assert_eq!(slice_of(limits::ENDPOINTS_PER_NAME).check(), Ok(()));
    assert!(slice_of(limits::ENDPOINTS_PER_NAME + 1).check().is_err());
}

#[test]
fn an_address_of_the_other_family_is_refused() {
    let json = r#"{"kind":"endpoints","namespace":"a","service":"b","slice":"c","addressFamily":"IPv4",
        "endpoints":[{"address":"fd00::1","ready":true,"serving":true,"terminating":false}]}"#;
    assert!(fault(json).contains("family"));
}

#[test]
fn two_ports_of_one_name_or_number_are_refused() {
    let with_ports = |ports: &str| {
        format!(
            r#"{{"kind":"export","namespace":"a","name":"b","createdAt":"2026-01-02T03:04:05Z","type":"ClusterSetIP","ports":{ports}}}"#
        )
    };
    let same_name = r#"[{"name":"x","protocol":"TCP","port":1},{"name":"x","protocol":"TCP","port":2}]"#;
    assert!(fault(&with_ports(same_name)).contains("same name"));
    let same_number = r#"[{"name":"x","protocol":"TCP","port":1},{"name":"y","protocol":"TCP","port":1}]"#;
    assert!(fault(&with_ports(same_number)).contains("same protocol"));
    let zero = with_ports(r#"[{"protocol":"TCP","port":0}]"#);
    assert!(serde_json::from_str::<Record>(&zero).is_err());
}

#[test]
fn annotations_are_bounded_in_bytes() {
    let json = r#"{"kind":"export","namespace":"a","name":"b","createdAt":"2026-01-02T03:04:05Z","type":"Headless"}"#;
    let Record::Export(mut export) = parse(json) else { unreachable!() };
    export.annotations = BTreeMap::from([("note".to_owned(), "x".repeat(limits::ANNOTATION_BYTES))]);
    let fault = Record::Export(export).check().unwrap_err().to_string();
    assert!(fault.contains("annotations") && fault.contains("16384"), "{fault}");
}

#[test]
fn a_wireguard_key_is_32_bytes_in_base64() {
    let gateway = |key: &str| {
        format!(r#"{{"kind":"gateway","name":"n1","publicKey":"{key}","endpoints":[],"meshAddresses":[]}}"#)
    };
    let right = gateway("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=");
    assert_eq!(parse(&right).check(), Ok(()));
    for wrong in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
        assert!(serde_json::from_str::<Record>(&gateway(wrong)).is_err(), "{wrong}");
    }
}
