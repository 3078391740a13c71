// SPDX-License-Identifier: Apache-2.0
//! What a lab looks like: the files under `tests/kind/topologies`, parsed and checked.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A lab: its clusters and what lies between them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// The clusters; at least one.
    pub clusters: Vec<Cluster>,
    /// What lies between clusters. None: all nodes share one link.
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
    /// Whether the cluster is behind address translation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nat: bool,
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
        ensure!(
            self.links.is_empty(),
            "links: routed, narrow or lossy links are not built yet; leave `links` out"
        );
        self.check_ranges_differ()
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
        ensure!(!self.nat, "nat: not built yet; leave it out");
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
    fn what_is_not_built_yet_is_refused_with_the_way_out() {
        assert!(refusal("workers: 2", "workers: 2\n    nat: true").contains("leave it out"));
        let linked = format!("{DUO}links:\n  - between: [east, west]\n    mtu: 1280\n");
        assert!(format!("{:#}", Topology::parse(&linked).unwrap_err()).contains("leave `links` out"));
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
