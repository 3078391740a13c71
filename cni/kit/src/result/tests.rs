// SPDX-License-Identifier: Apache-2.0
//! Tests of the conversion.

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::result::{Dns, VersionResult};

fn address(v6: bool) -> BoxedStrategy<IpNet> {
    if v6 {
        (any::<[u8; 16]>(), 0..=128_u8)
            .prop_filter_map("prefix", |(ip, len)| IpNet::new(std::net::IpAddr::from(ip), len).ok())
            .boxed()
    } else {
        (any::<[u8; 4]>(), 0..=32_u8)
            .prop_filter_map("prefix", |(ip, len)| IpNet::new(std::net::IpAddr::from(ip), len).ok())
            .boxed()
    }
}

fn extra() -> impl Strategy<Value = Map<String, Value>> {
    of("[a-z]{1,4}")
        .prop_map(|value| value.map(|value| ("x-own".to_owned(), Value::from(value))).into_iter().collect())
}

fn ip(v6: bool) -> impl Strategy<Value = Ip> {
    (address(v6), of(address(v6)), extra()).prop_map(|(address, gateway, extra)| Ip {
        interface: None,
        address,
        gateway: gateway.map(|net| net.addr()),
        extra,
    })
}

fn route(v6: bool) -> impl Strategy<Value = Route> {
    (address(v6), of(address(v6)), of(any::<u32>()), of(any::<u32>()), extra()).prop_map(
        |(dst, gw, mtu, table, extra)| Route {
            dst,
            gw: gw.map(|net| net.addr()),
            mtu,
            advmss: mtu,
            priority: table,
            table,
            scope: mtu,
            extra,
        },
    )
}

fn interface() -> impl Strategy<Value = Interface> {
    ("[a-z]{1,8}", "[0-9a-f]{0,2}", of(any::<u32>()), "[a-z/]{0,6}", of("[a-z]{1,3}"), extra()).prop_map(
        |(name, mac, mtu, sandbox, path, extra)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path: path.clone(),
            pci_id: path,
            extra,
        },
    )
}

fn dns() -> impl Strategy<Value = Dns> {
    (vec("[a-z]{1,3}", 0..3), "[a-z]{0,3}", vec("[a-z]{1,3}", 0..3), extra()).prop_map(
        |(nameservers, domain, search, extra)| Dns {
            options: search.clone(),
            nameservers,
            domain,
            search,
            extra,
        },
    )
}

fn of_every_kind() -> impl Strategy<Value = AddResult> {
    let ips = (vec(ip(false), 0..3), vec(ip(true), 0..3));
    let routes = (vec(route(false), 0..3), vec(route(true), 0..3));
    (ips, routes, vec(interface(), 0..3), dns(), extra()).prop_map(|(ips, routes, interfaces, dns, extra)| {
        AddResult {
            interfaces,
            ips: [ips.0, ips.1].concat(),
            routes: [routes.0, routes.1].concat(),
            dns,
            extra,
        }
    })
}

/// The part of a result that a version can express, told from the specification and not from the code under test.
fn expressible(mut result: AddResult, version: Version) -> AddResult {
    if version < Version::V1_1_0 {
        for interface in &mut result.interfaces {
            (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
        }
        for route in &mut result.routes {
            *route = Route {
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
                dst: route.dst,
                gw: route.gw,
                extra: route.extra.clone(),
            };
        }
    }
    if version < Version::V0_3_0 {
        result.interfaces.clear();
        let first = |v6| result.ips.iter().find(|ip| ip.address.addr().is_ipv6() == v6).cloned();
        result.ips = [first(false), first(true)].into_iter().flatten().collect();
        let ips = result.ips.clone();
        let has =
            |route: &Route| ips.iter().any(|ip| ip.address.addr().is_ipv6() == route.dst.addr().is_ipv6());
        result.routes.retain(has);
    }
    result
}

proptest! {
    #[test]
    fn p6_what_a_version_can_express_survives_it_unchanged(result in of_every_kind()) {
        for version in Version::ALL {
            let expected = expressible(result.clone(), version);
            let json = result.to_json(version).unwrap();
            prop_assert_eq!(&json["cniVersion"], version.as_str());
            let read = AddResult::from_json(&json, Version::NEWEST).unwrap();
            prop_assert_eq!(read, (version, expected));
        }
    }

    #[test]
    fn p6_going_up_to_1_1_0_makes_nothing_up(result in of_every_kind()) {
        for version in Version::ALL {
            let old = result.to_json(version).unwrap();
            let (_, read) = AddResult::from_json(&old, version).unwrap();
            let up = read.to_json(Version::V1_1_0).unwrap();
            prop_assert_eq!(AddResult::from_json(&up, version).unwrap().1, expressible(result.clone(), version));
        }
    }
}

#[test]
fn p6_a_result_of_0_2_0_has_the_shape_of_its_specification() {
    let new = json!({"cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.1.2.1"]}});
    let (_, result) = AddResult::from_json(&new, Version::V1_0_0).unwrap();
    let old = json!({"cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.2.3/24", "gateway": "10.1.2.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "dns": {"nameservers": ["10.1.2.1"]}});
    assert_eq!(result.to_json(Version::V0_2_0).unwrap(), old);
}

#[test]
fn p6_addresses_carry_their_family_from_0_3_0_to_0_4_0_only() {
    let (_, result) =
        AddResult::from_json(&json!({"ips": [{"address": "fd00::2/64"}]}), Version::V1_1_0).unwrap();
    assert_eq!(result.to_json(Version::V0_4_0).unwrap()["ips"][0]["version"], "6");
    assert_eq!(result.to_json(Version::V1_0_0).unwrap()["ips"][0].get("version"), None);
    let lie = json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "fd00::2/64"}]});
    assert_eq!(AddResult::from_json(&lie, Version::V1_1_0).map_err(|error| error.code), Err(6));
}

#[test]
fn p7_fields_that_nobody_knows_pass_through_at_every_level() {
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut json = json!({"cniVersion": version, "x": 1, "dns": {"x": [2]}});
        if version == "0.2.0" {
            json["ip4"] =
                json!({"ip": "10.0.0.2/8", "x": 3, "routes": [{"dst": "10.0.0.0/8", "mtu": 9, "x": 4}]});
        } else {
            json["interfaces"] = json!([{"name": "eth0", "mtu": 1400, "x": {"y": 5}}]);
            json["ips"] = json!([{"address": "10.0.0.2/8", "x": 6}]);
            json["routes"] = json!([{"dst": "10.0.0.0/8", "table": 7, "x": null}]);
        }
        let (read_as, result) = AddResult::from_json(&json, Version::V1_1_0).unwrap();
        let mut written = result.to_json(read_as).unwrap();
        for ip in written.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            ip.as_object_mut().unwrap().remove("version");
        }
        assert_eq!(written, json);
    }
}

#[test]
fn p6_null_lists_and_empty_gateways_of_go_are_read_as_nothing() {
    let json = json!({"cniVersion": "1.0.0", "interfaces": null, "dns": null,
        "ips": [{"address": "10.0.0.2/8", "gateway": ""}]});
    let (_, result) = AddResult::from_json(&json, Version::V1_1_0).unwrap();
    assert_eq!((result.interfaces.len(), result.ips[0].gateway), (0, None));
}

#[test]
fn p6_a_result_of_an_unknown_version_is_refused_with_code_1_and_garbage_with_code_6() {
    let code =
        |json: Value| AddResult::from_json(&json, Version::V1_1_0).map_err(|error| error.code).map(drop);
    assert_eq!(code(json!({"cniVersion": "7.0.0"})), Err(1));
    for bad in [json!([]), json!({"cniVersion": 1}), json!({"ips": [{"address": "x"}]}), json!({"ips": 3})] {
        assert_eq!(code(bad), Err(6));
    }
}

#[test]
fn p11_the_answer_to_version_reads_back_as_itself() {
    let answer = VersionResult::of(&Version::ALL);
    assert_eq!(answer.to_json(Version::V0_2_0)["cniVersion"], "0.2.0");
    assert_eq!(VersionResult::from_json(&answer.to_json(Version::V0_2_0)).unwrap(), answer);
    assert_eq!(VersionResult::from_json(&json!({"cniVersion": "0.1.0"})).unwrap().supported, ["0.1.0"]);
    assert!(VersionResult::from_json(&json!(3)).is_err());
}

#[test]
fn a_plugin_for_addresses_tells_its_caller_of_routes_details_in_a_version_that_has_none() {
    let route = json!({"dst": "10.9.0.0/16", "mtu": 1400, "priority": 7, "scope": 253});
    let written = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}], "routes": [route]});
    let (_, result) = AddResult::from_json(&written, Version::NEWEST).unwrap();
    for version in [Version::V0_3_0, Version::V1_0_0] {
        let mut aside = result.clone();
        aside.set_details_aside();
        let printed = aside.to_json(version).unwrap();
        let (_, mut read) = AddResult::from_json(&printed, version).unwrap();
        assert_eq!(read.routes[0].priority, None);
        read.recall_details();
        assert_eq!(read.routes, result.routes, "{version}: {printed}");
    }
}
