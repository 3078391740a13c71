// SPDX-License-Identifier: Apache-2.0
//! What the CNI specification asks of a plugin, tried on one, in network namespaces that the check makes.

mod checks;
mod spaces;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::result::VersionResult;
use isthmus_cni_kit::runtime::exec::{Call, Output, Programs};
use isthmus_cni_kit::version::Version;
use serde::Serialize;
use serde_json::{Map, Value, json};

use spaces::Space;

/// Where the plugin was found right, wrong or was not asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is asked, as a sentence.
    pub check: &'static str,
    /// Where the specification says so.
    pub clause: &'static str,
    pub verdict: Verdict,
}

/// Runs every check on a plugin with this configuration, on a node that is a network namespace of the check's own. Needs root.
///
/// # Errors
/// Not root; no plugin of this type, or one that does not answer to VERSION. What the plugin does wrong is in the rows.
pub fn run(programs: Programs, config: Map<String, Value>) -> Result<Vec<Row>> {
    spaces::in_new(move || run_here(programs, config))?
}

/// The same where the calling thread is: for a plugin that needs more of its node, such as a process of its own.
///
/// # Errors
/// As [`run`].
pub fn run_here(programs: Programs, config: Map<String, Value>) -> Result<Vec<Row>> {
    let plugin = config.get("type").and_then(Value::as_str).context("the configuration has no type")?;
    let version = Version::NEWEST;
    let ipam = config.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
    let ipam = ipam.map(str::to_owned);
    let mut subject = Subject { plugin: plugin.to_owned(), programs, config, version, cannot_add: None };
    let mut supported = subject.versions(&subject.plugin)?;
    if let Some(known) = ipam.and_then(|ipam| subject.versions(&ipam).ok()) {
        // The plugin hands its configuration on: a version has to suit both.
        supported.retain(|version| known.contains(version));
    }
    subject.version = supported.last().copied().unwrap_or(Version::OLDEST);
    let trial = Attachment::new("c-trial")?;
    subject.cannot_add = subject.add(&trial).err().map(|error| format!("with this configuration {error:#}"));
    // Its failure is the finding of a check.
    let _ = subject.call("DEL", &trial, &json!({}))?;
    let asked = checks::ALL.iter().map(|(check, clause, ask)| {
        let verdict = match ask(&subject, &supported) {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Failed(format!("{error:#}")),
        };
        Row { check, clause, verdict }
    });
    Ok(asked.collect())
}

/// The plugin that is tried.
struct Subject {
    plugin: String,
    programs: Programs,
    config: Map<String, Value>,
    /// The newest version that it, its IPAM plugin and we speak.
    version: Version,
    /// Why no container can be added at all: checks that need one are skipped.
    cannot_add: Option<String>,
}

/// What a container's calls have in common.
struct Attachment {
    id: String,
    space: Space,
}

impl Attachment {
    fn new(id: &str) -> Result<Self> {
        Ok(Self { id: id.to_owned(), space: Space::new()? })
    }

    fn env(&self, command: &str) -> BTreeMap<String, String> {
        let pairs = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", self.id.clone()),
            ("CNI_NETNS", self.space.path()),
            ("CNI_IFNAME", "eth0".to_owned()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

impl Subject {
    /// Versions that a plugin and this program speak, oldest first.
    fn versions(&self, plugin: &str) -> Result<Vec<Version>> {
        let env = [("CNI_COMMAND".to_owned(), "VERSION".to_owned())].into();
        let call = Call { plugin: plugin.to_owned(), env, stdin: self.stdin(&json!({})) };
        let output = self.programs.output(&call)?;
        let json: Value = serde_json::from_slice(&output.stdout)
            .context("VERSION did not print JSON: this is no CNI plugin, or it is broken")?;
        let mut known: Vec<Version> =
            VersionResult::from_json(&json)?.supported.iter().filter_map(|text| text.parse().ok()).collect();
        known.sort();
        Ok(known)
    }

    fn path(&self) -> String {
        let dirs: Vec<String> = self.programs.path.iter().map(|dir| dir.display().to_string()).collect();
        dirs.join(":")
    }

    /// Configuration with the version in use, and with more fields.
    fn stdin(&self, more: &Value) -> Vec<u8> {
        let mut config = self.config.clone();
        config.insert("cniVersion".to_owned(), Value::from(self.version.as_str()));
        config
            .extend(more.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        Value::Object(config).to_string().into_bytes()
    }

    /// A call as it is given.
    fn raw(&self, env: BTreeMap<String, String>, stdin: Vec<u8>) -> Result<Output> {
        Ok(self.programs.output(&Call { plugin: self.plugin.clone(), env, stdin })?)
    }

    fn call(&self, command: &str, of: &Attachment, more: &Value) -> Result<Output> {
        let mut env = of.env(command);
        env.insert("CNI_PATH".to_owned(), self.path());
        self.raw(env, self.stdin(more))
    }

    /// A call that has to succeed; what it printed.
    fn expect(&self, command: &str, of: &Attachment, more: &Value) -> Result<Vec<u8>> {
        let output = self.call(command, of, more)?;
        if output.success {
            return Ok(output.stdout);
        }
        let why = Error::of_output(&output.stdout, &output.stderr);
        Err(anyhow::anyhow!("{command} failed: {why}"))
    }

    fn add(&self, of: &Attachment) -> Result<Value> {
        let printed = self.expect("ADD", of, &json!({}))?;
        serde_json::from_slice(&printed).context("the result of ADD is no JSON")
    }
}
