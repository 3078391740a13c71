// SPDX-License-Identifier: Apache-2.0
//! Running programs in the lab: on its network, on its nodes, and kubectl.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/e2e lies in the checkout")
        .to_owned()
}

/// A command that runs in the lab, with kubectl, kind and docker of the lab in reach.
pub(crate) fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(root().join("lab"));
    command.args(["exec", "--"]).args(arguments).current_dir(root());
    command
}

/// Runs a program where it reaches all API servers and nodes; returns its stdout.
///
/// # Errors
/// With what it printed on stderr, if it does not end with 0.
pub fn exec(arguments: &[&str]) -> Result<String> {
    run(command(arguments.iter().copied()), None)
}

/// Runs a shell script on a node, such as `east-worker`; `$1` and on are the arguments.
///
/// # Errors
/// As [`exec`].
pub fn on_node(node: &str, script: &str, arguments: &[&str]) -> Result<String> {
    let line = ["docker", "exec", node, "bash", "-c", script, "script"];
    run(command(line.into_iter().chain(arguments.iter().copied())), None)
        .with_context(|| format!("on {node}"))
}

/// Runs kubectl in a cluster.
///
/// # Errors
/// As [`exec`].
pub fn kubectl(cluster: &str, arguments: &[&str]) -> Result<String> {
    run(command(["kubectl", "--context", cluster].into_iter().chain(arguments.iter().copied())), None)
}

/// What `kubectl get` returns as JSON.
///
/// # Errors
/// As [`exec`].
pub fn json(cluster: &str, arguments: &[&str]) -> Result<Value> {
    let line: Vec<&str> = ["get"].iter().chain(arguments).chain(&["-o", "json"]).copied().collect();
    serde_json::from_str(&kubectl(cluster, &line)?).context("read kubectl's answer")
}

/// Applies a manifest.
///
/// # Errors
/// With the API server's words.
pub fn apply(cluster: &str, manifest: &str) -> Result<String> {
    run(command(["kubectl", "--context", cluster, "apply", "-f", "-"]), Some(manifest))
}

/// Deletes what is named and waits until it is gone; what is not there is fine.
///
/// # Errors
/// As [`exec`].
pub fn delete(cluster: &str, arguments: &[&str]) -> Result<String> {
    let line: Vec<&str> =
        ["delete", "--ignore-not-found", "--timeout=60s"].iter().chain(arguments).copied().collect();
    kubectl(cluster, &line)
}

/// A file of `tests/e2e/fixtures`.
pub fn fixture(name: &str) -> String {
    let path = root().join("tests/e2e/fixtures").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a command to its end, with text on its stdin.
pub(crate) fn run(mut command: Command, input: Option<&str>) -> Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ./lab exec")?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(text.as_bytes()).context("write the input")?;
    }
    let output = child.wait_with_output().context("wait for ./lab exec")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{:?} ended with {}: {}",
            command.get_args().skip(2).collect::<Vec<_>>(),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
