// SPDX-License-Identifier: Apache-2.0
//! `lab exec`: any program where it reaches all API servers and nodes, or in one node.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use super::{Record, ensure_root};
use crate::places::Places;
use crate::topology::Topology;

/// Becomes `program`: in the node `node`, or in the lab's network with its kubeconfig. Returns only on failure.
pub fn exec(places: &Places, node: Option<&str>, program: &[String]) -> Result<std::convert::Infallible> {
    ensure_root()?;
    let record = Record::read(places)?;
    let (first, rest) =
        program.split_first().context("no program: ./lab exec [cluster/node] -- program ...")?;
    record.site.enter()?;
    let mut command = match node {
        None => {
            let mut command = record.site.command(places, first);
            command.args(rest);
            command
        }
        Some(node) => {
            let node = find_node(&record.topology, node)?;
            let mut docker = record.site.docker(places, ["exec", "--interactive"]);
            if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
                docker.arg("--tty");
            }
            docker.arg(node).args(program);
            docker
        }
    };
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {first}"))
}

/// `east/worker` and `east-worker` are both the node that kind calls `east-worker`.
fn find_node(topology: &Topology, wanted: &str) -> Result<String> {
    let name = wanted.replacen('/', "-", 1);
    let all: Vec<String> = topology.clusters.iter().flat_map(|c| c.nodes()).map(|(name, _)| name).collect();
    if all.contains(&name) {
        return Ok(name);
    }
    bail!("there is no node {wanted}; the nodes are {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_cluster_and_role_or_by_its_name() {
        let duo = Topology::parse(include_str!("../../../tests/kind/topologies/duo.yaml")).unwrap();
        assert_eq!(find_node(&duo, "west/worker2").unwrap(), "west-worker2");
        assert_eq!(find_node(&duo, "west-control-plane").unwrap(), "west-control-plane");
        assert!(find_node(&duo, "north/worker").unwrap_err().to_string().contains("east-worker"));
    }
}
