// SPDX-License-Identifier: Apache-2.0
//! The agents' view of their nodes, by `isthmus-agent ipam` inside their pods, as `kubectl exec` runs it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use isthmus_model::addresses::NodeAddresses;
use isthmus_model::ownership::SYSTEM_NAMESPACE;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use kube::{Client, ResourceExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::check::Attachment;
use crate::failure;

const CONTAINER: &str = "agent";
const PROGRAM: &str = "/usr/bin/isthmus-agent";
/// Longest that one node may take: DEL waits for 20 s at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than 10,000 pods of a node need.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Pods of running agents by node.
pub(super) async fn agents(client: Client) -> Result<BTreeMap<String, String>> {
    let ours = ListParams::default().labels("app.kubernetes.io/name=isthmus-agent");
    let pods = Api::<Pod>::namespaced(client, SYSTEM_NAMESPACE).list(&ours).await;
    let pods = pods.map_err(|error| failure::explain(error, "look for the agents"))?;
    let running = pods.items.into_iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    Ok(running.filter_map(|pod| Some((pod.spec.as_ref()?.node_name.clone()?, pod.name_any()))).collect())
}

/// What journal and kernel of an agent's node hold.
pub(super) async fn dump(client: Client, agent: &str) -> Result<NodeAddresses> {
    understood(&run(client, agent, &["ipam", "dump"]).await?)
}

/// A node's answer. What it names is printed: there must be nothing in it that a terminal obeys.
fn understood(answer: &[u8]) -> Result<NodeAddresses> {
    let addresses: NodeAddresses = serde_json::from_slice(answer)
        .context("its agent's answer is not understood; is it of this version?")?;
    let texts =
        addresses.held.iter().flat_map(|held| [&held.container, &held.ifname, &held.namespace, &held.pod]);
    if texts.flat_map(|text| text.chars()).any(char::is_control) {
        bail!("its agent's answer names something with control characters");
    }
    Ok(addresses)
}

/// Has the agent give back what an interface holds, if that has no link.
pub(super) async fn release(client: Client, agent: &str, of: &Attachment) -> Result<()> {
    let arguments = ["ipam", "release", "--container", &of.container, "--ifname", &of.ifname];
    run(client, agent, &arguments).await.map(drop)
}

async fn run(client: Client, agent: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let ran = timeout(PATIENCE, exec(client, agent, arguments)).await;
    ran.with_context(|| format!("pod {agent}: no answer in {} s", PATIENCE.as_secs()))?
}

async fn exec(client: Client, agent: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let api = Api::<Pod>::namespaced(client, SYSTEM_NAMESPACE);
    let how = AttachParams::default().container(CONTAINER).stdin(false).stdout(true).stderr(true);
    let command = [PROGRAM].into_iter().chain(arguments.iter().copied());
    let process = api.exec(agent, command, &how).await;
    let mut process =
        process.map_err(|error| failure::explain(error, &format!("run isthmus-agent in pod {agent}")))?;
    let (stdout, stderr) = (process.stdout().context("no output")?, process.stderr().context("no output")?);
    let status = process.take_status().context("no exit code")?;
    let (said, complained, ended) = tokio::join!(bounded(stdout), bounded(stderr), status);
    match ended.as_ref().and_then(|ended| ended.status.as_deref()) {
        Some("Success") => said,
        _ => bail!("pod {agent}: {}", last_words(&complained?, ended.and_then(|ended| ended.message))),
    }
}

async fn bounded(from: impl AsyncRead + Unpin) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > ANSWER_BYTES_MAX {
        bail!("an answer of more than {ANSWER_BYTES_MAX} bytes");
    }
    Ok(bytes)
}

/// What a program that failed said, on one line and without control characters.
fn last_words(stderr: &[u8], status: Option<String>) -> String {
    let text = String::from_utf8_lossy(stderr);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line =
        if words.is_empty() { status.unwrap_or_else(|| "it failed".to_owned()) } else { words.join(" ") };
    line.chars().filter(|one| !one.is_control()).take(512).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_answer_with_control_characters_is_refused() {
        let answer = |pod: &str| {
            let held = serde_json::json!({
                "container": "c", "ifname": "eth0", "namespace": "shop", "pod": pod, "link": "ist1", "addresses": ["10.1.0.1"],
            });
            serde_json::json!({ "held": [held], "links": ["ist1"], "routes": { "10.1.0.1/32": ["ist1"] } })
                .to_string()
        };

        assert_eq!(understood(answer("web").as_bytes()).unwrap().held[0].pod, "web");
        assert!(understood(answer("web\u{1b}[2J").as_bytes()).is_err());
    }

    #[test]
    fn what_an_agent_complains_of_cannot_write_to_the_terminal() {
        let words = last_words(b"Error: read the journal\n\nCaused by:\n\x1b[31m  denied\n", None);

        assert_eq!(words, "Error: read the journal Caused by: [31m denied");
    }
}
