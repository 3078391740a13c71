// SPDX-License-Identifier: Apache-2.0
//! What a plugin is asked.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use crate::config::args::Args;
use crate::config::net_conf::{Attachment, NetConf};
use crate::error::{Error, code};
use crate::names::{check_container_id, check_ifname, check_network_name};
use crate::version::Version;

/// A call other than VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Join the network.
    Add,
    /// Leave it.
    Del,
    /// See whether all is as ADD left it.
    Check,
    /// Say whether ADD can be served.
    Status,
    /// Take away what belongs to no attachment.
    Gc,
}

impl Command {
    /// The word in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc => &["CNI_PATH"],
            // The Go library asks for the path here; the specification leaves it open.
            Self::Status => &[],
        }
    }

    /// The first version that has the call.
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }
}

impl FromStr for Command {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let all = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc];
        all.into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND {text:?}")))
    }
}

/// One call, checked. Variables that the call does not need may be empty.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, a path.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`: where plugins to delegate to are looked for.
    pub path: Vec<PathBuf>,
    /// The configuration.
    pub config: NetConf,
    /// For GC, what to keep; otherwise empty.
    pub valid_attachments: Vec<Attachment>,
    /// Standard input as it came, for delegation.
    pub stdin: Vec<u8>,
    /// The variables as they came, for delegation.
    pub env: BTreeMap<String, String>,
}

impl Request {
    /// What the runtime says about a container under this name: in `args.cni` of the configuration, else in `CNI_ARGS`, where the name
    /// may also stand in capitals (`mac` finds `MAC=…`).
    pub fn arg(&self, name: &str) -> Option<Value> {
        let of_config = self.config.arg(name).filter(|value| !value.is_null()).cloned();
        let of_variable = || self.args.get(name).or_else(|| self.args.get(&name.to_ascii_uppercase()));
        of_config.or_else(|| of_variable().map(Value::from))
    }

    pub(super) fn read(
        command: Command,
        env: &BTreeMap<String, String>,
        stdin: Vec<u8>,
        supported: &[Version],
    ) -> Result<Self, Error> {
        let var = |name: &str| env.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let missing: Vec<&str> =
            command.required().iter().copied().filter(|name| var(name).is_none()).collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(Error::new(code::INVALID_ENVIRONMENT, msg));
        }
        let config = NetConf::parse(&stdin).map_err(|error| name_supported(error, supported))?;
        check_version(command, config.version(), supported)?;
        check_network_name(config.name())?;
        var("CNI_CONTAINERID").map_or(Ok(()), check_container_id)?;
        var("CNI_IFNAME").map_or(Ok(()), check_ifname)?;
        let args = Args::parse(var("CNI_ARGS").unwrap_or_default())?;
        let netns = var("CNI_NETNS").map(PathBuf::from);
        if !matches!(var("CNI_NETNS_OVERRIDE"), Some("1" | "true" | "True" | "TRUE")) {
            netns.as_deref().map_or(Ok(()), check_netns)?;
        }
        let valid_attachments = match command {
            Command::Gc => config.valid_attachments()?,
            _ => Vec::new(),
        };
        Ok(Self {
            command,
            container_id: var("CNI_CONTAINERID").unwrap_or_default().to_owned(),
            netns,
            ifname: var("CNI_IFNAME").unwrap_or_default().to_owned(),
            args,
            path: var("CNI_PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default(),
            config,
            valid_attachments,
            stdin,
            env: env.clone(),
        })
    }
}

fn name_supported(error: Error, supported: &[Version]) -> Error {
    if error.code != code::INCOMPATIBLE_VERSION {
        return error;
    }
    let listed: Vec<&str> = supported.iter().map(|version| version.as_str()).collect();
    error.with_details(format!("this plugin speaks {}", listed.join(", ")))
}

fn check_version(command: Command, version: Version, supported: &[Version]) -> Result<(), Error> {
    let refusal = if !supported.contains(&version) {
        format!("incompatible CNI version {version}")
    } else if version < command.since() {
        format!("{} needs CNI version {} or later, not {version}", command.as_str(), command.since())
    } else {
        return Ok(());
    };
    Err(name_supported(Error::new(code::INCOMPATIBLE_VERSION, refusal), supported))
}

/// The container's namespace must not be our own. A path that cannot be read is the plugin's to judge: DEL has to
/// succeed without it.
fn check_netns(path: &Path) -> Result<(), Error> {
    match (fs::metadata(path), fs::metadata("/proc/self/ns/net")) {
        (Ok(theirs), Ok(own)) if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()) => {
            let msg = format!("CNI_NETNS {} is the plugin's own network namespace", path.display());
            Err(Error::new(code::INVALID_NETNS, msg))
        }
        _ => Ok(()),
    }
}
