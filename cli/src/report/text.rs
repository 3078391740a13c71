// SPDX-License-Identifier: Apache-2.0
//! The report for people: what needs attention first, then what is there.

use super::Report;
use crate::table;

impl Report {
    /// The whole report as text.
    pub(crate) fn text(&self) -> String {
        let id = self.cluster_id.as_deref().unwrap_or("without an ID yet");
        let mut text = format!(
            "cluster {id} (context {}): operator {} ready, agent {} ready\n",
            self.context, self.operator, self.agent
        );
        text.push_str(&self.verdict());
        let sections: [(&str, String); 7] = [
            ("nodes", self.nodes_text()),
            ("pools", self.pools_text()),
            ("peerings", self.peerings_text()),
            ("tunnels", self.tunnels_text()),
            ("exports", self.exports_text()),
            ("imports", self.imports_text()),
            ("egress", self.egress_text()),
        ];
        for (_, section) in sections.iter().filter(|(_, section)| section.lines().count() > 1) {
            text.push('\n');
            text.push_str(section);
        }
        text
    }

    fn verdict(&self) -> String {
        if self.problems.is_empty() {
            return "All is ready.\n".to_owned();
        }
        let mut text = format!("{} not as it shall be:\n", self.problems.len());
        for problem in &self.problems {
            text.push_str(&format!("  ! {}  {}: {}\n", problem.object, problem.reason, problem.message));
        }
        text
    }

    fn nodes_text(&self) -> String {
        let row = |node: &super::NodeRow| {
            vec![
                node.node.clone(),
                flag(Some(node.ready)),
                listed(&node.mesh_addresses),
                node.blocks.to_string(),
                node.allocated.to_string(),
            ]
        };
        table::render(
            &["NODE", "READY", "MESH ADDRESSES", "BLOCKS", "PODS' ADDRESSES"],
            &self.nodes.iter().map(row).collect::<Vec<_>>(),
        )
    }

    fn pools_text(&self) -> String {
        let row = |pool: &super::PoolRow| {
            let used = format!("{}/{}", pool.allocated, pool.capacity.as_deref().unwrap_or("?"));
            vec![pool.pool.clone(), flag(Some(pool.ready)), pool.cidr.clone(), pool.blocks.to_string(), used]
        };
        table::render(
            &["POOL", "READY", "CIDR", "BLOCKS", "USED"],
            &self.pools.iter().map(row).collect::<Vec<_>>(),
        )
    }

    fn peerings_text(&self) -> String {
        let row = |peering: &super::PeeringRow| {
            vec![
                peering.peering.clone(),
                flag(Some(peering.ready)),
                text_or_dash(peering.cluster_id.as_deref()),
                flag(peering.connected),
                flag(peering.fresh),
                text_or_dash(peering.tunnels.as_deref()),
                listed(&peering.remote_cidrs),
                listed(&peering.local_gateways),
            ]
        };
        let head = [
            "PEERING",
            "READY",
            "CLUSTER",
            "CONNECTED",
            "FRESH",
            "TUNNELS UP",
            "REMOTE CIDRS",
            "LOCAL GATEWAYS",
        ];
        table::render(&head, &self.peerings.iter().map(row).collect::<Vec<_>>())
    }

    fn tunnels_text(&self) -> String {
        let row = |tunnel: &super::TunnelRow| {
            vec![
                with_lane(&tunnel.node, tunnel.lane),
                with_lane(&tunnel.gateway, tunnel.remote_lane),
                tunnel.peering.clone(),
                if tunnel.up { "up" } else { "down" }.to_owned(),
                tunnel.rtt_micros.map_or_else(dash, milliseconds),
                tunnel.loss_percent.map_or_else(dash, |percent| format!("{percent}%")),
                tunnel.mtu.map_or_else(dash, |bytes| bytes.to_string()),
                tunnel.handshake_age_seconds.map_or_else(dash, age),
                text_or_dash(tunnel.endpoint.as_deref()),
                tunnel.mode.clone().unwrap_or_default(),
            ]
        };
        let head =
            ["TUNNEL FROM", "TO", "PEERING", "STATE", "RTT", "LOSS", "MTU", "HANDSHAKE", "ENDPOINT", "MODE"];
        table::render(&head, &self.tunnels.iter().map(row).collect::<Vec<_>>())
    }

    fn exports_text(&self) -> String {
        let row = |export: &super::ExportRow| {
            vec![export.export.clone(), flag(export.valid), flag(export.ready), flag(export.conflict)]
        };
        table::render(
            &["EXPORT", "VALID", "READY", "CONFLICT"],
            &self.exports.iter().map(row).collect::<Vec<_>>(),
        )
    }

    fn imports_text(&self) -> String {
        let row = |import: &super::ImportRow| {
            vec![import.name.clone(), import.r#type.clone(), listed(&import.ips), listed(&import.clusters)]
        };
        table::render(&["IMPORT", "TYPE", "IP", "FROM"], &self.imports.iter().map(row).collect::<Vec<_>>())
    }

    fn egress_text(&self) -> String {
        let row = |policy: &super::EgressRow| {
            vec![
                policy.policy.clone(),
                flag(Some(policy.ready)),
                listed(&policy.egress_ips),
                text_or_dash(policy.gateway_node.as_deref()),
            ]
        };
        table::render(
            &["EGRESS POLICY", "READY", "EGRESS IPS", "GATEWAY"],
            &self.egress.iter().map(row).collect::<Vec<_>>(),
        )
    }
}

fn dash() -> String {
    "-".to_owned()
}

fn text_or_dash(text: Option<&str>) -> String {
    text.map_or_else(dash, str::to_owned)
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { dash() } else { items.join(",") }
}

fn flag(value: Option<bool>) -> String {
    match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
    .to_owned()
}

fn milliseconds(micros: i64) -> String {
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

fn age(seconds: i64) -> String {
    match seconds {
        0..=59 => "< 1 min".to_owned(),
        60..=3599 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// A node, and behind a slash which lane of it, where that is not the first.
fn with_lane(node: &str, lane: i32) -> String {
    if lane == 0 { node.to_owned() } else { format!("{node}/{lane}") }
}
