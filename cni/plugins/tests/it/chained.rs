// SPDX-License-Identifier: Apache-2.0
//! Plugins that follow another one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use isthmus_testkit::{Namespace, within};
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE, Pod, with};

/// A pod on the bridge `t0`, and the result so far.
fn bridged(node: &Node, pod: &Pod<'_>) -> Value {
    node.add(pod, &bridge(node))
}

fn bridge(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "t0", "isDefaultGateway": true,
        "ipam": node.host_local(&["10.77.0.0/24", "fd77::/64"]),
    })
}

fn chained(plugin: &str, result: &Value, more: &Value) -> Value {
    let base = json!({ "cniVersion": "1.1.0", "name": "net", "type": plugin, "prevResult": result });
    with(&base, more)
}

/// Answers every connection with where it came from, until the namespace ends.
fn serve(space: &Namespace, port: u16) {
    space.run(move || {
        let listener = TcpListener::bind(("::", port)).expect("a port");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let from = stream.peer_addr().map(|from| from.ip().to_string()).unwrap_or_default();
                // The other side may have gone.
                let _ = stream.write_all(from.as_bytes());
            }
        });
    });
}

/// Who the server saw.
fn ask(space: &Namespace, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().expect("an address");
    space.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

#[test]
fn portmap_leads_ports_of_the_host_to_the_pod_from_outside_from_the_host_and_from_the_pod_itself() {
    let Some(node) = Node::new("portmap") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable(
        (&node.host, "up0", &["192.0.2.1/24", "fd00:2::1/64"]),
        (&far, "eth0", &["192.0.2.2/24", "fd00:2::2/64"]),
    );
    let this = Pod::of("c", &pod);
    let result = bridged(&node, &this);
    let config = chained(
        "portmap",
        &result,
        &json!({
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
        }),
    );
    assert_eq!(node.add(&this, &config), result, "the previous result is passed on as it was");
    serve(&pod, 80);
    within(PATIENCE, || ask(&far, "192.0.2.1:8080").map_err(|error| error.to_string()));
    assert_eq!(ask(&far, "192.0.2.1:8080").unwrap(), "::ffff:192.0.2.2", "the source is kept");
    assert_eq!(ask(&far, "[fd00:2::1]:8080").unwrap(), "fd00:2::2");
    ask(&node.host, "127.0.0.1:8080").expect("from the host's loopback");
    ask(&node.host, "192.0.2.1:8080").expect("from the host");
    node.check(&this, &config, &result).unwrap();

    node.host.sh("nft flush chain inet isthmus_portmap ports");
    assert!(node.check(&this, &config, &result).is_err());
    node.add(&this, &config);
    node.add(&this, &config);
    let rules = node.host.sh("nft list chain inet isthmus_portmap ports");
    assert_eq!(rules.matches("8080").count(), 2, "one rule for each family: {rules}");
    let other = with(&config, &json!({ "runtimeConfig": {} }));
    node.del(&this, &other);
    assert!(ask(&far, "192.0.2.1:8080").is_err(), "the port still leads to the pod");
    node.add(&this, &config);
    node.gc(&config, &[]).unwrap();
    assert!(!node.host.sh("nft list ruleset").contains("8080"));
}

/// Answers every datagram with the name.
fn echo(space: &Namespace, port: u16, name: &'static str) {
    space.run(move || {
        let socket = UdpSocket::bind(("::", port)).expect("a port");
        std::thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    });
}

/// UDP has no end that could be seen: without help, a client that goes on with its port would reach what was there before.
#[test]
fn datagrams_of_a_client_that_goes_on_reach_the_pod_that_has_the_port_now() {
    let Some(node) = Node::new("datagrams") else { return };
    let (one, two, far) = (node.pod("one"), node.pod("two"), node.pod("far"));
    node.lab.cable(
        (&node.host, "up0", &["192.0.2.1/24", "fd00:2::1/64"]),
        (&far, "eth0", &["192.0.2.2/24", "fd00:2::2/64"]),
    );
    let runtime = json!({ "portMappings": [{ "hostPort": 8053, "containerPort": 53, "protocol": "udp" }] });
    let pods = [(Pod::of("c1", &one), "one"), (Pod::of("c2", &two), "two")];
    let configs = pods.map(|(pod, name)| {
        echo(pod.space.unwrap(), 53, name);
        chained("portmap", &bridged(&node, &pod), &json!({ "runtimeConfig": runtime }))
    });
    let clients = ["192.0.2.2:4000", "[fd00:2::2]:4000"].map(|address| {
        let address: SocketAddr = address.parse().unwrap();
        let server = if address.is_ipv6() { "[fd00:2::1]:8053" } else { "192.0.2.1:8053" };
        far.run(move || {
            let socket = UdpSocket::bind(address).expect("a port");
            socket.connect(server).expect("a route");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            socket
        })
    });
    let answer = |client: &UdpSocket| {
        let mut bytes = [0; 64];
        client.send(b"?")?;
        let length = client.recv(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let all_reach = |name: &str| {
        for client in &clients {
            within(PATIENCE, || match answer(client) {
                Ok(said) if said == name => Ok(()),
                other => Err(format!("{other:?}, not {name}")),
            });
        }
    };
    // On a client's way there is nobody first: the connection is followed to the host itself.
    node.add(&pods[0].0, &configs[0]);
    node.del(&pods[0].0, &configs[0]);
    clients.iter().for_each(|client| assert!(answer(client).is_err(), "somebody answered"));
    node.add(&pods[0].0, &configs[0]);
    all_reach("one");
    node.del(&pods[0].0, &configs[0]);
    clients.iter().for_each(|client| assert!(answer(client).is_err(), "the port still leads to the pod"));
    node.add(&pods[1].0, &configs[1]);
    all_reach("two");
}

#[test]
fn bandwidth_limits_both_directions_and_goes_with_the_pod() {
    let Some(node) = Node::new("bandwidth") else { return };
    let pod = node.pod("pod");
    let this = Pod::of("c", &pod);
    let result = bridged(&node, &this);
    let limits = json!({ "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 800_000 });
    let config = chained("bandwidth", &result, &json!({ "runtimeConfig": { "bandwidth": limits } }));
    let after = node.add(&this, &config);
    let relay = after["interfaces"][3]["name"].as_str().expect("the relay").to_owned();
    let queues = node.host.sh("tc qdisc show");
    assert!(
        queues.contains("rate 8Mbit burst 100000b") || queues.contains("rate 8Mbit burst 97"),
        "{queues}"
    );
    assert!(queues.contains("rate 16Mbit"), "{queues}");
    pod.ping("10.77.0.1").unwrap();
    let seen = node.host.sh(&format!("ip -s link show {relay}"));
    assert!(!seen.contains("    0          0"), "what the pod sent passed it by: {seen}");
    node.check(&this, &config, &after).unwrap();
    node.host.sh(&format!("tc qdisc del dev {relay} root"));
    assert!(node.check(&this, &config, &after).is_err());
    node.del(&this, &config);
    node.del(&this, &config);
    assert!(!node.links().contains(&relay));
    let again = chained("bandwidth", &result, &json!({ "ingressRate": 1000 }));
    assert_eq!(node.call("ADD", Some(&this), &again).unwrap_err().code, 7);
}

#[test]
fn tuning_sets_what_it_is_told_and_puts_an_interface_back_that_outlives_the_pod() {
    let Some(node) = Node::new("tuning") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable((&node.host, "nic0", &[]), (&far, "eth0", &[]));
    node.host.sh("ip link set nic0 address 02:00:00:00:00:01");
    let this = Pod::of("c", &pod);
    let device = json!({ "cniVersion": "1.1.0", "name": "net", "type": "host-device", "device": "nic0" });
    let result = node.add(&this, &device);
    let config = chained(
        "tuning",
        &result,
        &json!({
            "dataDir": node.dir.path().join("tuning"),
            "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" },
            "mac": "02:00:00:00:00:77", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
        }),
    );
    let after = node.add(&this, &config);
    assert_eq!(
        (&after["interfaces"][0]["mac"], &after["interfaces"][0]["mtu"]),
        (&json!("02:00:00:00:00:77"), &json!(1300))
    );
    let shown = pod.sh("ip link show eth0; sysctl -n net.ipv4.conf.eth0.arp_filter");
    for wanted in ["PROMISC", "ALLMULTI", "mtu 1300", "qlen 77", "02:00:00:00:00:77", "\n1"] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    node.check(&this, &config, &after).unwrap();
    pod.sh("ip link set eth0 mtu 1200");
    assert!(node.check(&this, &config, &after).unwrap_err().msg.contains("MTU"));
    node.del(&this, &config);
    node.del(&this, &device);
    let shown = node.host.sh("ip link show nic0");
    assert!(
        shown.contains("02:00:00:00:00:01") && shown.contains("mtu 1500") && !shown.contains("PROMISC"),
        "{shown}"
    );
    let outside = chained("tuning", &result, &json!({ "sysctl": { "kernel.panic": "1" } }));
    assert_eq!(node.call("ADD", Some(&this), &outside).unwrap_err().code, 7);
}

#[test]
fn route_override_changes_the_pods_routes_and_the_result_alike() {
    let Some(node) = Node::new("route-override") else { return };
    let pod = node.pod("pod");
    let this = Pod::of("c", &pod);
    let result = bridged(&node, &this);
    let config = chained(
        "route-override",
        &result,
        &json!({
            "flushgateway": true, "addroutes": [{ "dst": "10.9.0.0/16" }, { "dst": "10.8.0.0/16", "gw": "10.77.0.254" }],
        }),
    );
    let after = node.add(&this, &config);
    let routes = pod.sh("ip route");
    assert!(!routes.contains("default"), "{routes}");
    assert!(
        routes.contains("10.9.0.0/16 via 10.77.0.1") && routes.contains("10.8.0.0/16 via 10.77.0.254"),
        "{routes}"
    );
    let destinations: Vec<&Value> =
        after["routes"].as_array().unwrap().iter().map(|route| &route["dst"]).collect();
    assert_eq!(destinations, [&json!("10.9.0.0/16"), &json!("10.8.0.0/16")]);
    assert!(after["ips"][0].get("gateway").is_none());
    node.check(&this, &config, &after).unwrap();
    node.check(&this, &bridge(&node), &after).unwrap();
    pod.sh("ip route del 10.9.0.0/16");
    assert!(node.check(&this, &config, &after).unwrap_err().msg.contains("10.9.0.0/16"));
    node.check(&this, &with(&config, &json!({ "skipcheck": true })), &after).unwrap();
}

#[test]
fn sbr_sends_by_the_interface_that_has_the_source_address() {
    let Some(node) = Node::new("sbr") else { return };
    let pod = node.pod("pod");
    let this = Pod::of("c", &pod);
    let result = bridged(&node, &this);
    let config = chained("sbr", &result, &json!({}));
    assert_eq!(node.add(&this, &config), result);
    let (rules, table) = (pod.sh("ip rule"), pod.sh("ip route show table 100"));
    assert!(rules.contains("from 10.77.0.2 lookup 100"), "{rules}");
    assert!(table.contains("default via 10.77.0.1") && table.contains("10.77.0.0/24"), "{table}");
    assert!(!pod.sh("ip route").contains("default"));
    assert!(pod.sh("ip -6 rule").contains("from fd77::2 lookup 101"));
    pod.sh("ping -n -c 1 -W 5 -I 10.77.0.2 10.77.0.1");
    node.check(&this, &config, &result).unwrap();
    node.del(&this, &config);
    assert!(!pod.sh("ip rule; ip -6 rule").contains("lookup 10"));
    node.del(&this, &config);
    let hints = chained("sbr", &result, &json!({ "table": 500, "addSourceHints": true }));
    let second = node.pod("second");
    let that = Pod::of("d", &second);
    let result = bridged(&node, &that);
    node.add(&that, &with(&hints, &json!({ "prevResult": result })));
    assert!(second.sh("ip route show table 500").contains("src 10.77.0.3"));
    second.ping("10.77.0.1").unwrap();
}

#[test]
fn firewall_keeps_pods_apart_as_its_policy_says() {
    let Some(node) = Node::new("firewall") else { return };
    let spaces = [node.pod("one"), node.pod("two"), node.pod("three")];
    let place = [("c0", "t0"), ("c1", "t0"), ("c2", "t1")];
    for policy in ["open", "same-bridge", "isolated"] {
        for ((id, name), space) in place.iter().zip(&spaces) {
            let subnet = if *name == "t0" { "10.77.0.0/24" } else { "10.78.0.0/24" };
            let bridge = json!({
                "cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": name, "isDefaultGateway": true,
                "ipam": node.host_local(&[subnet]),
            });
            let this = Pod::of(id, space);
            let result = node.add(&this, &bridge);
            let config = chained("firewall", &result, &json!({ "name": name, "ingressPolicy": policy }));
            node.add(&this, &config);
            node.check(&this, &config, &result).unwrap();
        }
        let address = |space: &Namespace| {
            space
                .sh("ip -4 -o addr show eth0")
                .split_whitespace()
                .nth(3)
                .unwrap()
                .split('/')
                .next()
                .unwrap()
                .to_owned()
        };
        let ips: Vec<String> = spaces.iter().map(address).collect();
        let reached = (
            spaces[0].ping(&ips[1]).is_ok(),
            spaces[0].ping(&ips[2]).is_ok(),
            node.host.ping(&ips[0]).is_ok(),
        );
        let wanted = match policy {
            "open" => (true, true, true),
            "same-bridge" => (true, false, true),
            _ => (false, false, true),
        };
        assert_eq!(reached, wanted, "{policy}: same bridge, other bridge, from the host");
        for ((id, name), space) in place.iter().zip(&spaces) {
            let subnet = if *name == "t0" { "10.77.0.0/24" } else { "10.78.0.0/24" };
            let this = Pod::of(id, space);
            node.del(&this, &json!({ "cniVersion": "1.1.0", "name": name, "type": "firewall" }));
            node.del(&this, &json!({
                "cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": name, "ipam": node.host_local(&[subnet]),
            }));
        }
        assert!(!node.host.sh("nft list ruleset").contains("daddr 10.77"));
    }
}

#[test]
fn p7_a_chained_plugin_without_a_previous_result_is_refused() {
    let Some(node) = Node::new("previous") else { return };
    let pod = node.pod("pod");
    for plugin in ["tuning", "portmap", "bandwidth", "firewall", "sbr", "route-override"] {
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": plugin, "ingressRate": 8000, "ingressBurst": 8000,
            "runtimeConfig": { "portMappings": [{ "hostPort": 1, "containerPort": 1 }] },
        });
        let refused = node.call("ADD", Some(&Pod::of("c", &pod)), &config).unwrap_err();
        assert!(refused.code == 7 && refused.msg.contains("prevResult"), "{plugin}: {refused}");
        node.del(&Pod { space: None, ..Pod::of("c", &pod) }, &config);
    }
}
