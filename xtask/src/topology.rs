// SPDX-License-Identifier: Apache-2.0
//! What a lab looks like: the files under `tests/kind/topologies`, parsed and checked.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Clusters of a lab that can have networks of their own.
pub const ROUTED_CLUSTERS: usize = 4;

/// A lab: its clusters and what lies between them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// The clusters; at least one.
    pub clusters: Vec<Cluster>,
    /// What lies between clusters. None, and no cluster behind address translation: all nodes share one link. Else each
    /// cluster has a network of its own, and only linked ones reach each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
}

/// One kind cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Also the context in the kubeconfig and the prefix of the node names.
    pub name: String,
    /// Number of control planes; one, for kind's load balancer image cannot be made here.
    pub control_planes: u8,
    /// Number of workers.
    pub workers: u8,
    /// The pods' ranges: one, or one IPv4 and one IPv6.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The Services' ranges, of the same families.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// How kube-proxy works.
    #[serde(default)]
    pub kube_proxy_mode: KubeProxyMode,
    /// Whether the cluster is behind address translation: it can call others, and nobody can call it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nat: bool,
    /// The CNI plugin that its nodes have before Isthmus comes. None: Isthmus is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Primary>,
}

/// A CNI plugin of the Go project, with addresses by `host-local` out of each node's pod CIDRs, and routes between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Primary {
    /// Every pod is a port of one bridge.
    Bridge,
    /// Every pod has a link of its own.
    Ptp,
}

/// kube-proxy's modes that work in kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KubeProxyMode {
    /// The default of this lab.
    #[default]
    Nftables,
    /// By the nft backend of iptables.
    Iptables,
    /// No kube-proxy.
    None,
}

/// What lies between two clusters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// The two clusters' names.
    pub between: [String; 2],
    /// Bytes of the largest packet.
    pub mtu: Option<u16>,
    /// Bytes per second at most.
    pub bytes_per_second: Option<u64>,
}

/// The address families of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    Dual,
}

impl Topology {
    /// Reads a topology file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("no topology {}: the topologies are the files in tests/kind/topologies", path.display())
        })?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    /// Parses a topology and checks everything that can be known before it is built.
    pub fn parse(text: &str) -> Result<Self> {
        let topology: Self = serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?;
        topology.check()?;
        Ok(topology)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.clusters.is_empty(), "clusters: at least one is needed");
        let mut names = BTreeSet::new();
        for cluster in &self.clusters {
            cluster.check().with_context(|| format!("cluster {}", cluster.name))?;
            ensure!(names.insert(&cluster.name), "two clusters are called {}", cluster.name);
        }
        if let Some(name) =
            self.links.iter().flat_map(|link| &link.between).find(|name| !names.contains(name))
        {
            bail!("links: there is no cluster {name}");
        }
        for link in &self.links {
            ensure!(link.between[0] != link.between[1], "links: {} is linked with itself", link.between[0]);
            ensure!(
                link.mtu.is_none_or(|mtu| (1280..=1500).contains(&mtu)),
                "links: mtu: 1280 to 1500 bytes; IPv6 needs 1280, the nodes' own links have 1500"
            );
            ensure!(
                link.bytes_per_second.is_none_or(|rate| rate >= 100_000),
                "links: bytesPerSecond: at least 100000, or clusters never meet"
            );
        }
        ensure!(
            !self.is_routed() || self.clusters.len() <= ROUTED_CLUSTERS,
            "at most {ROUTED_CLUSTERS} clusters with networks of their own"
        );
        self.check_ranges_differ()
    }

    /// Whether each cluster has a network of its own.
    pub fn is_routed(&self) -> bool {
        !self.links.is_empty() || self.clusters.iter().any(|cluster| cluster.nat)
    }

    fn check_ranges_differ(&self) -> Result<()> {
        let ranges: Vec<(&str, &IpNet)> = self
            .clusters
            .iter()
            .flat_map(|cluster| {
                cluster
                    .pod_cidrs
                    .iter()
                    .chain(&cluster.service_cidrs)
                    .map(|cidr| (cluster.name.as_str(), cidr))
            })
            .collect();
        for (index, (name, range)) in ranges.iter().enumerate() {
            for (other_name, other) in &ranges[index + 1..] {
                ensure!(
                    name != other_name || !(range.contains(*other) || other.contains(*range)),
                    "cluster {name}: {range} and {other} overlap"
                );
            }
        }
        Ok(())
    }
}

impl Cluster {
    /// The names of the nodes, as kind gives them, and whether each is a control plane.
    pub fn nodes(&self) -> Vec<(String, bool)> {
        let named = |role: &str, count: u8, control_plane: bool| -> Vec<(String, bool)> {
            (1..=count)
                .map(|number| {
                    let suffix = if number == 1 { String::new() } else { number.to_string() };
                    (format!("{}-{role}{suffix}", self.name), control_plane)
                })
                .collect()
        };
        [named("control-plane", self.control_planes, true), named("worker", self.workers, false)].concat()
    }

    /// The families of its ranges.
    pub fn families(&self) -> Result<Families> {
        families(&self.pod_cidrs)
    }

    fn check(&self) -> Result<()> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !self.name.is_empty() && self.name.len() <= 20 && self.name.chars().all(label),
            "name: 1 to 20 of a-z, 0-9 and -"
        );
        ensure!(
            self.control_planes == 1,
            "controlPlanes: only 1 is supported, more want kind's load balancer image"
        );
        ensure!(self.workers <= 8, "workers: at most 8");
        let pods = families(&self.pod_cidrs).context("podCIDRs")?;
        let services = families(&self.service_cidrs).context("serviceCIDRs")?;
        ensure!(pods == services, "podCIDRs and serviceCIDRs are of different families");
        Ok(())
    }
}

fn families(cidrs: &[IpNet]) -> Result<Families> {
    match cidrs {
        [IpNet::V4(_)] => Ok(Families::Ipv4),
        [IpNet::V6(_)] => Ok(Families::Ipv6),
        [IpNet::V4(_), IpNet::V6(_)] => Ok(Families::Dual),
        _ => bail!("one range, or one IPv4 range followed by one IPv6 range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUO: &str = include_str!("../../tests/kind/topologies/duo.yaml");

    fn refusal(from: &str, to: &str) -> String {
        assert!(DUO.contains(from), "the sample has no {from}");
        format!("{:#}", Topology::parse(&DUO.replacen(from, to, 1)).unwrap_err())
    }

    #[test]
    fn every_topology_of_the_repository_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kind/topologies");
        for entry in std::fs::read_dir(folder).unwrap() {
            Topology::read(&entry.unwrap().path()).unwrap();
        }
    }

    #[test]
    fn duo_has_the_node_names_that_kind_gives() {
        let names: Vec<String> =
            Topology::parse(DUO).unwrap().clusters[0].nodes().into_iter().map(|n| n.0).collect();
        assert_eq!(names, ["east-control-plane", "east-worker", "east-worker2"]);
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        assert!(refusal("workers: 2", "wrokers: 2").contains("wrokers"));
    }

    #[test]
    fn links_that_nothing_could_cross_are_refused() {
        let linked = |link: &str| Topology::parse(&format!("{DUO}links:\n  - {{{link}}}\n")).map(|_| ());
        assert!(linked("between: [east, west], mtu: 1400").is_ok());
        for (link, why) in [
            ("between: [east, north]", "no cluster north"),
            ("between: [east, east]", "with itself"),
            ("between: [east, west], mtu: 900", "1280"),
            ("between: [east, west], bytesPerSecond: 10", "100000"),
        ] {
            let error = format!("{:#}", linked(link).unwrap_err());
            assert!(error.contains(why), "{link}: {error}");
        }
    }

    #[test]
    fn wrong_ranges_and_names_are_refused() {
        assert!(refusal("10.101.0.0/16", "10.1.128.0/24").contains("overlap"));
        assert!(refusal("[10.101.0.0/16, \"fd00:10:101::/112\"]", "[10.101.0.0/16]").contains("families"));
        assert!(refusal("name: west", "name: east").contains("two clusters"));
        assert!(refusal("name: west", "name: West_1").contains("a-z"));
        assert!(refusal("controlPlanes: 1", "controlPlanes: 3").contains("load balancer"));
    }
}
