// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin that a cluster has before Isthmus comes (`primary` of a topology): its configuration on each node, and
//! routes between the nodes, as small clusters have them.

use std::io::Write;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::Record;
use crate::places::Places;
use crate::run::{output, step};
use crate::topology::{Cluster, Primary};

/// Where the nodes hold it. Sorts behind what Isthmus writes.
const FILE: &str = "/etc/cni/net.d/10-primary.conflist";
/// How long the controller manager may take to give each node its pod CIDRs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
}

/// Gives the nodes of a cluster its primary plugin, if it has one.
pub(super) fn install(places: &Places, record: &Record, cluster: &Cluster) -> Result<()> {
    let Some(primary) = cluster.primary else { return Ok(()) };
    step(&format!("giving the nodes of {} a CNI plugin of their own", cluster.name), || {
        let nodes = nodes(places, record, cluster)?;
        for node in &nodes {
            write(places, record, node, &list(primary, &node.pod_cidrs))?;
            for (cidr, via) in routes(node, &nodes) {
                let (cidr, via) = (cidr.to_string(), via.to_string());
                let route = ["exec", &node.name, "ip", "route", "replace", &cidr, "via", &via];
                output(&mut record.site.docker(places, route))?;
            }
        }
        Ok(())
    })
}

/// All nodes, once each has its pod CIDRs.
fn nodes(places: &Places, record: &Record, cluster: &Cluster) -> Result<Vec<Node>> {
    let deadline = Instant::now() + PATIENCE;
    let (wanted, families) = (cluster.nodes().len(), cluster.pod_cidrs.len());
    loop {
        let mut kubectl = record.site.command(places, places.lab_bin().join("kubectl"));
        let text = output(kubectl.args(["--context", &cluster.name, "get", "nodes", "--output=json"]))?;
        let nodes = read(&serde_json::from_str(&text)?)?;
        if nodes.len() == wanted && nodes.iter().all(|node| node.pod_cidrs.len() == families) {
            return Ok(nodes);
        }
        ensure!(Instant::now() < deadline, "not all nodes of {} have pod CIDRs: {nodes:?}", cluster.name);
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn read(list: &Value) -> Result<Vec<Node>> {
    let node = |item: &Value| -> Result<Node> {
        let texts = |values: &Value| -> Vec<String> {
            values.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
        };
        let all = item["status"]["addresses"].as_array().into_iter().flatten();
        let internal = all.filter(|address| address["type"] == "InternalIP");
        Ok(Node {
            name: item["metadata"]["name"].as_str().context("a node without a name")?.to_owned(),
            addresses: internal.filter_map(|it| it["address"].as_str()?.parse().ok()).collect(),
            pod_cidrs: texts(&item["spec"]["podCIDRs"])
                .iter()
                .map(|cidr| cidr.parse())
                .collect::<Result<_, _>>()?,
        })
    };
    list["items"].as_array().context("no list of nodes")?.iter().map(node).collect()
}

/// The plugin's list of a node with these pod CIDRs.
fn list(primary: Primary, pod_cidrs: &[IpNet]) -> Value {
    let ranges: Vec<Value> = pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let everywhere =
        |cidr: &IpNet| json!({ "dst": if cidr.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } });
    let routes: Vec<Value> = pod_cidrs.iter().map(everywhere).collect();
    let ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    let first = match primary {
        Primary::Bridge => json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": true, "ipam": ipam,
        }),
        Primary::Ptp => json!({ "type": "ptp", "ipMasq": true, "ipam": ipam }),
    };
    let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    json!({ "cniVersion": "1.0.0", "name": "primary", "plugins": [first, ports] })
}

/// From a node to the pods of all others.
fn routes(node: &Node, all: &[Node]) -> Vec<(IpNet, IpAddr)> {
    let others = all.iter().filter(|other| other.name != node.name);
    let to = |other: &Node| -> Vec<(IpNet, IpAddr)> {
        let via = |cidr: &IpNet| {
            let same = other.addresses.iter().find(|address| address.is_ipv4() == cidr.addr().is_ipv4());
            same.map(|address| (*cidr, *address))
        };
        other.pod_cidrs.iter().filter_map(via).collect()
    };
    others.flat_map(to).collect()
}

/// Under its name in one step, since the runtime looks as soon as there is something.
fn write(places: &Places, record: &Record, node: &Node, list: &Value) -> Result<()> {
    let script = "cat > \"$1.new\" && mv \"$1.new\" \"$1\"";
    let line = ["exec", "--interactive", &node.name, "sh", "-c", script, "write", FILE];
    let mut child = record
        .site
        .docker(places, line)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot write to {}", node.name))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(&serde_json::to_vec_pretty(list)?)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{}: {FILE} cannot be written ({status})", node.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, number: u8) -> Node {
        let net = |text: String| text.parse().unwrap();
        Node {
            name: name.to_owned(),
            addresses: [format!("172.18.0.{number}"), format!("fc00::{number}")]
                .map(|a| a.parse().unwrap())
                .into(),
            pod_cidrs: vec![net(format!("10.1.{number}.0/24")), net(format!("fd00:10:1:{number}::/64"))],
        }
    }

    #[test]
    fn a_node_has_routes_to_the_pods_of_all_others_by_their_address_of_the_same_family() {
        let all = [node("a", 1), node("b", 2)];
        let told: Vec<String> =
            routes(&all[0], &all).iter().map(|(cidr, via)| format!("{cidr} via {via}")).collect();
        assert_eq!(told, ["10.1.2.0/24 via 172.18.0.2", "fd00:10:1:2::/64 via fc00::2"]);
    }

    #[test]
    fn a_nodes_list_gives_out_its_own_pod_cidrs_and_leads_everywhere() {
        for (primary, kind) in [(Primary::Bridge, "bridge"), (Primary::Ptp, "ptp")] {
            let list = list(primary, &node("a", 1).pod_cidrs);
            let first = &list["plugins"][0];
            assert_eq!(first["type"], kind);
            assert_eq!(first["ipam"]["ranges"][0][0]["subnet"], "10.1.1.0/24");
            assert_eq!(first["ipam"]["ranges"][1][0]["subnet"], "fd00:10:1:1::/64");
            assert_eq!(first["ipam"]["routes"], json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]));
        }
    }

    #[test]
    fn nodes_are_read_as_the_api_server_has_them() {
        let item = json!({ "metadata": { "name": "a" }, "spec": { "podCIDRs": ["10.1.1.0/24", "fd00:10:1:1::/64"] },
            "status": { "addresses": [{ "type": "InternalIP", "address": "172.18.0.1" },
                { "type": "InternalIP", "address": "fc00::1" }, { "type": "Hostname", "address": "a" }] } });
        assert_eq!(read(&json!({ "items": [item] })).unwrap(), [node("a", 1)]);
        let early = json!({ "metadata": { "name": "b" }, "spec": {}, "status": {} });
        assert_eq!(read(&json!({ "items": [early] })).unwrap()[0].pod_cidrs, []);
    }
}
