// SPDX-License-Identifier: Apache-2.0
//! What lies between clusters that do not share a link: a network of its own for each, and the lab's namespace as the
//! router between them, with the largest packet, the rate and the address translation that the topology asks for.
//!
//! All of it is routes and rules of the lab's own namespace: it ends with that.

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::Record;
use super::site::Site;
use crate::places::Places;
use crate::run::{command, output, succeeds};
use crate::topology::{Link, ROUTED_CLUSTERS, Topology};

/// The network of clusters that share one link. Made by us, so that two clusters made at once do not both make it, and
/// so that its addresses are known.
const SHARED: Network =
    Network { name: "kind", bridge: None, ipv4: "172.18.0.0/16", ipv6: "fc00:f853:ccd:e793::/64" };
/// Networks of clusters that are apart, in the clusters' order.
const APART: [Network; ROUTED_CLUSTERS] = [
    Network { name: "lab-0", bridge: Some("lab-0"), ipv4: "172.19.0.0/16", ipv6: "fc00:f853:ccd:e800::/64" },
    Network { name: "lab-1", bridge: Some("lab-1"), ipv4: "172.20.0.0/16", ipv6: "fc00:f853:ccd:e801::/64" },
    Network { name: "lab-2", bridge: Some("lab-2"), ipv4: "172.21.0.0/16", ipv6: "fc00:f853:ccd:e802::/64" },
    Network { name: "lab-3", bridge: Some("lab-3"), ipv4: "172.22.0.0/16", ipv6: "fc00:f853:ccd:e803::/64" },
];
/// On networks that we made: `lab down` removes those and no others.
const LABEL: &str = "dev.isthmus.lab";
/// Routing tables of narrow links.
const FIRST_TABLE: u32 = 100;
/// A policed link lets this much through at once.
const BURST: &str = "256 kbytes";

/// A Docker network of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    /// Docker's name of it.
    pub(super) name: &'static str,
    bridge: Option<&'static str>,
    ipv4: &'static str,
    ipv6: &'static str,
}

/// The network of a cluster.
pub(super) fn network(topology: &Topology, name: &str) -> Network {
    let position = topology.clusters.iter().position(|cluster| cluster.name == name);
    match position {
        Some(position) if topology.is_routed() => APART[position],
        _ => SHARED,
    }
}

/// Makes the networks of all clusters, and what lies between them.
pub(super) fn make(places: &Places, record: &Record) -> Result<()> {
    let topology = &record.topology;
    ensure!(
        !topology.is_routed() || record.site == Site::Own,
        "links and nat want the lab's own Docker daemon, apart from this machine's rules: set ISTHMUS_LAB_DOCKER=own"
    );
    for cluster in &topology.clusters {
        ensure_network(places, record.site, network(topology, &cluster.name))?;
    }
    if !topology.is_routed() {
        return Ok(());
    }
    let file = places.state.join("links.nft");
    std::fs::write(&file, rules(topology))?;
    output(command("nft", ["-f"]).arg(&file))?;
    for line in lines(topology) {
        output(&mut command(line[0].as_str(), &line[1..]))?;
    }
    Ok(())
}

fn ensure_network(places: &Places, site: Site, network: Network) -> Result<()> {
    if succeeds(&mut site.docker(places, ["network", "inspect", network.name])) {
        return Ok(());
    }
    let mut create =
        site.docker(places, ["network", "create", "--driver=bridge", "--ipv6", "--label", LABEL]);
    create.args(["--subnet", network.ipv4, "--subnet", network.ipv6]);
    let option = |name: &str, value: &str| ["--opt".to_owned(), format!("com.docker.network.{name}={value}")];
    create.args(option("driver.mtu", "1500"));
    create
        .args(option("bridge.enable_ip_masquerade", if network.bridge.is_some() { "false" } else { "true" }));
    if let Some(bridge) = network.bridge {
        create.args(option("bridge.name", bridge));
        // Other clusters' nodes reach nodes here directly; whether they may is for the rules below.
        create.args(option("bridge.gateway_mode_ipv4", "nat-unprotected"));
        create.args(option("bridge.gateway_mode_ipv6", "nat-unprotected"));
    }
    output(create.arg(network.name)).map(drop)
}

/// Removes the networks that [`make`] made on this Docker.
pub(super) fn remove_networks(places: &Places, site: Site) -> Result<()> {
    let filter = format!("label={LABEL}");
    let ours = output(&mut site.docker(places, ["network", "ls", "--quiet", "--filter", &filter]))?;
    for id in ours.split_whitespace() {
        output(&mut site.docker(places, ["network", "rm", id]))?;
    }
    Ok(())
}

/// The two bridges and networks of a link.
fn ends(topology: &Topology, link: &Link) -> [Network; 2] {
    [0, 1].map(|end| network(topology, &link.between[end]))
}

/// nft(8) of what lies between: only clusters with a link reach each other, as fast as it is; a cluster behind address
/// translation is seen as its router and cannot be called.
fn rules(topology: &Topology) -> String {
    let mut text = String::from(
        "table inet isthmus_lab {\n\tchain between {\n\t\ttype filter hook forward priority -10\n",
    );
    let translated = topology.clusters.iter().filter(|cluster| cluster.nat);
    let translated: Vec<Network> = translated.map(|cluster| network(topology, &cluster.name)).collect();
    // Writing into a String cannot fail.
    for network in &translated {
        // Frames between its own nodes come by here, too, where bridges call iptables.
        let _ = writeln!(
            text,
            "\t\tiifname \"lab-*\" iifname != {0:?} oifname {0:?} ct state new drop",
            network.name
        );
    }
    for link in &topology.links {
        let [one, other] = ends(topology, link);
        for (from, to) in [(one, other), (other, one)] {
            let way = format!("iifname {:?} oifname {:?}", from.name, to.name);
            if let Some(rate) = link.bytes_per_second {
                let _ = writeln!(text, "\t\t{way} limit rate over {rate} bytes/second burst {BURST} drop");
            }
            let _ = writeln!(text, "\t\t{way} accept");
        }
    }
    text.push_str("\t\tiifname \"lab-*\" oifname \"lab-*\" iifname . oifname != { ");
    let own = topology.clusters.iter().map(|cluster| network(topology, &cluster.name).name);
    let own: Vec<String> = own.map(|name| format!("{name:?} . {name:?}")).collect();
    let _ = writeln!(text, "{} }} drop\n\t}}", own.join(", "));
    text.push_str("\tchain translation {\n\t\ttype nat hook postrouting priority srcnat\n");
    for network in &translated {
        let _ = writeln!(text, "\t\tiifname {0:?} oifname != {0:?} masquerade", network.name);
    }
    text.push_str("\t}\n}\n");
    text
}

/// Programs to run: what a link carries goes past Docker's own rules, and routes of narrow links say how narrow.
fn lines(topology: &Topology) -> Vec<Vec<String>> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut lines = Vec::new();
    let mut table = FIRST_TABLE;
    for link in &topology.links {
        let [one, other] = ends(topology, link);
        for (from, to) in [(one, other), (other, one)] {
            for iptables in ["iptables", "ip6tables"] {
                lines.push(words(format!("{iptables} -I FORWARD -i {} -o {} -j ACCEPT", from.name, to.name)));
            }
            let Some(mtu) = link.mtu else { continue };
            for (family, cidr) in [("-4", to.ipv4), ("-6", to.ipv6)] {
                lines.push(words(format!(
                    "ip {family} route add {cidr} dev {} table {table} mtu {mtu}",
                    to.name
                )));
                lines.push(words(format!("ip {family} rule add iif {} to {cidr} lookup {table}", from.name)));
            }
            table += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed() -> Topology {
        Topology::parse(include_str!("../../../tests/kind/topologies/routed.yaml")).unwrap()
    }

    #[test]
    fn clusters_without_links_share_one_network_and_others_have_their_own() {
        let duo = Topology::parse(include_str!("../../../tests/kind/topologies/duo.yaml")).unwrap();
        assert_eq!(network(&duo, "east"), network(&duo, "west"));
        assert_ne!(network(&routed(), "east"), network(&routed(), "west"));
    }

    #[test]
    fn a_cluster_behind_translation_is_masqueraded_and_not_called() {
        let text = rules(&routed());
        assert!(text.contains("iifname \"lab-1\" oifname != \"lab-1\" masquerade"), "{text}");
        assert!(text.contains("oifname \"lab-1\" ct state new drop"), "{text}");
    }

    #[test]
    fn a_narrow_link_is_narrow_both_ways_and_for_both_families() {
        let lines: Vec<String> = lines(&routed()).iter().map(|line| line.join(" ")).collect();
        let narrow = lines.iter().filter(|line| line.contains("mtu 1400")).count();
        assert_eq!(narrow, 4, "{lines:#?}");
    }
}
