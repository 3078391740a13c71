// SPDX-License-Identifier: Apache-2.0
//! kind's configuration (`kind.x-k8s.io/v1alpha4`) of a cluster of a topology.

use anyhow::Result;
use serde::Serialize;

use crate::topology::{Cluster, Families, KubeProxyMode};

/// What the machine demands of a configuration.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// The lab itself may not raise limits or lower out-of-memory scores (no CAP_SYS_RESOURCE).
    pub lacks_sys_resource: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    kind: &'static str,
    api_version: &'static str,
    name: &'a str,
    networking: Networking,
    nodes: Vec<Node<'a>>,
    kubeadm_config_patches: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containerd_config_patches: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Networking {
    #[serde(rename = "disableDefaultCNI")]
    disable_default_cni: bool,
    ip_family: &'static str,
    pod_subnet: String,
    service_subnet: String,
    kube_proxy_mode: KubeProxyMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_server_address: Option<&'static str>,
}

#[derive(Serialize)]
struct Node<'a> {
    role: &'static str,
    image: &'a str,
}

/// Kubelets refuse to start on cgroup v1 unless told otherwise; on v2 this changes nothing.
const KUBELET_PATCH: &str =
    "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nfailCgroupV1: false\n";
/// Without CAP_SYS_RESOURCE no container may get a lower score than containerd's own.
const SCORE_PATCH: &str = "[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n";
/// Networks beside the cluster's own: pods whose RuntimeClass has such a handler get what `/etc/cni/<handler>.d` says, once
/// somebody writes it. For tests of CNI plugins in containerd.
pub const NETWORK_HANDLERS: [&str; 3] = ["network-a", "network-b", "network-c"];

/// The configuration as YAML.
pub fn kind_config(cluster: &Cluster, node_image: &str, machine: Machine) -> Result<String> {
    let list = |cidrs: &[ipnet::IpNet]| cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let families = cluster.families()?;
    let config = Config {
        kind: "Cluster",
        api_version: "kind.x-k8s.io/v1alpha4",
        name: &cluster.name,
        networking: Networking {
            disable_default_cni: true,
            ip_family: match families {
                Families::Ipv4 => "ipv4",
                Families::Ipv6 => "ipv6",
                Families::Dual => "dual",
            },
            pod_subnet: list(&cluster.pod_cidrs),
            service_subnet: list(&cluster.service_cidrs),
            kube_proxy_mode: cluster.kube_proxy_mode,
            api_server_address: (families == Families::Ipv6).then_some("127.0.0.1"),
        },
        nodes: cluster
            .nodes()
            .into_iter()
            .map(|(_, control_plane)| Node {
                role: if control_plane { "control-plane" } else { "worker" },
                image: node_image,
            })
            .collect(),
        kubeadm_config_patches: vec![KUBELET_PATCH],
        containerd_config_patches: containerd_patches(machine),
    };
    Ok(serde_yaml::to_string(&config)?)
}

fn containerd_patches(machine: Machine) -> Vec<String> {
    let score = machine.lacks_sys_resource.then(|| SCORE_PATCH.to_owned());
    NETWORK_HANDLERS.into_iter().map(network_patch).chain(score).collect()
}

/// As kind's own handlers are, but for the directory.
fn network_patch(handler: &str) -> String {
    let table = format!("plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{handler}");
    format!(
        "[{table}]\n  runtime_type = \"io.containerd.runc.v2\"\n  base_runtime_spec = \"/etc/containerd/cri-base.json\"\n  cni_conf_dir = \"/etc/cni/{handler}.d\"\n[{table}.options]\n  SystemdCgroup = true\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn the_configuration_of_east_is_the_golden_one() {
        let duo = Topology::parse(include_str!("../../tests/kind/topologies/duo.yaml")).unwrap();
        let yaml = kind_config(&duo.clusters[0], "node:1", Machine { lacks_sys_resource: true }).unwrap();
        assert_eq!(
            yaml,
            include_str!("../golden/kind-east.yaml"),
            "update xtask/golden/kind-east.yaml if intended"
        );
    }

    #[test]
    fn a_machine_with_all_capabilities_gets_no_patch_of_containerd() {
        let duo = Topology::parse(include_str!("../../tests/kind/topologies/duo.yaml")).unwrap();
        let yaml = kind_config(&duo.clusters[1], "node:1", Machine { lacks_sys_resource: false }).unwrap();
        assert!(!yaml.contains("restrict_oom_score_adj"), "{yaml}");
        assert!(yaml.contains("kubeProxyMode: iptables"), "{yaml}");
    }
}
