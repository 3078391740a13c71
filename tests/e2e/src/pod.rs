// SPDX-License-Identifier: Apache-2.0
//! Pods, and programs that run in their network without going through the API server.

use anyhow::{Context, Result};

use crate::lab::{json, on_node};

/// Runs `"$@"` in the network namespace that holds the address $1.
pub(crate) const IN_POD: &str = r#"
address=$1; shift
for namespace in /run/netns/*; do
  if nsenter --net="$namespace" ip -o address show 2>/dev/null | grep -qF " $address/"; then
    exec nsenter --net="$namespace" "$@"
  fi
done
echo "no network namespace of this node has the address $address" >&2
exit 3"#;

/// A pod of the fixtures.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Cluster that it runs in.
    pub cluster: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Node that it runs on.
    pub node: String,
    /// Its IPv4 address.
    pub ipv4: String,
    /// Its IPv6 address.
    pub ipv6: String,
}

/// A pod of the namespace `e2e`: `one` and `two` share a node, `three` is on another.
#[track_caller]
pub fn pod(cluster: &str, name: &str) -> Pod {
    Pod::find(cluster, "e2e", name).unwrap_or_else(|error| panic!("{error:#}"))
}

impl Pod {
    /// Reads a pod from its cluster.
    ///
    /// # Errors
    /// If it is not there or has not both addresses.
    pub fn find(cluster: &str, namespace: &str, name: &str) -> Result<Self> {
        let object = json(cluster, &["-n", namespace, "pod", name])?;
        Self::read(cluster, &object)
    }

    /// The pods of a namespace that a label selects.
    ///
    /// # Errors
    /// As [`Pod::find`].
    pub fn labelled(cluster: &str, namespace: &str, label: &str) -> Result<Vec<Self>> {
        let list = json(cluster, &["-n", namespace, "pods", "-l", label])?;
        let items = list["items"].as_array().context("no list")?;
        items
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| Self::read(cluster, pod))
            .collect()
    }

    fn read(cluster: &str, object: &serde_json::Value) -> Result<Self> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let addresses: Vec<String> =
            object["status"]["podIPs"].as_array().into_iter().flatten().map(|ip| text(&ip["ip"])).collect();
        let of = |v6: bool| {
            let found = addresses.iter().find(|ip| ip.contains(':') == v6).cloned();
            found.with_context(|| {
                format!(
                    "pod {} in {cluster} lacks an address of each family: {addresses:?}",
                    object["metadata"]["name"]
                )
            })
        };
        Ok(Self {
            cluster: cluster.to_owned(),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            node: text(&object["spec"]["nodeName"]),
            ipv4: of(false)?,
            ipv6: of(true)?,
        })
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> [&str; 2] {
        [&self.ipv4, &self.ipv6]
    }

    /// Runs a program of the node in the pod's network; works while the API server is down.
    ///
    /// # Errors
    /// As [`crate::exec`].
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let line: Vec<&str> = [self.ipv4.as_str()].iter().chain(arguments).copied().collect();
        on_node(&self.node, IN_POD, &line).with_context(|| format!("in pod {}", self.name))
    }

    /// Asks another pod's web server for a path, by address.
    ///
    /// # Errors
    /// With curl's words.
    pub fn get(&self, address: &str, path: &str) -> Result<String> {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        self.run(&["curl", "-gsS", "--fail", "-m", "3", &format!("http://{host}:8080{path}")])
    }

    /// Runs a program of the pod's image, by kubectl: sees the pod's resolver and files.
    ///
    /// # Errors
    /// As [`crate::exec`].
    pub fn exec(&self, arguments: &[&str]) -> Result<String> {
        let line: Vec<&str> =
            ["-n", &self.namespace, "exec", &self.name, "--"].iter().chain(arguments).copied().collect();
        crate::kubectl(&self.cluster, &line)
    }
}
