// SPDX-License-Identifier: Apache-2.0
//! The kernel by way of ip(8), of iproute2, and nsenter(1), of util-linux.

use std::path::Path;
use std::process::Command;

use isthmus_cni_kit::error::{Error, code};
use serde::Deserialize;

/// ip(8) refused.
pub const REFUSED: u32 = code::FIRST_OWN;

/// Runs ip(8) with these words in a network namespace, or in the host's. Returns what it printed.
pub type Ip<'a> = &'a dyn Fn(Option<&Path>, &str) -> Result<String, Error>;

/// An interface, as `ip -json address show` has it, or `ip -json link show`, where only the latter has the alias.
#[derive(Deserialize)]
pub struct Link {
    #[serde(rename = "ifname")]
    pub name: String,
    #[serde(rename = "address", default)]
    pub mac: String,
    pub mtu: u32,
    #[serde(rename = "ifalias", default)]
    pub alias: String,
    #[serde(rename = "addr_info", default)]
    pub addresses: Vec<Address>,
}

#[derive(Deserialize)]
pub struct Address {
    #[serde(default)]
    pub local: String,
}

pub fn run(netns: Option<&Path>, words: &str) -> Result<String, Error> {
    let mut command = match netns {
        None => Command::new("ip"),
        Some(path) => {
            std::fs::metadata(path).map_err(|error| {
                Error::new(code::UNKNOWN_CONTAINER, format!("{}: {error}", path.display()))
            })?;
            let mut nsenter = Command::new("nsenter");
            nsenter.arg(format!("--net={}", path.display())).arg("ip");
            nsenter
        }
    };
    let output = command.args(words.split_whitespace()).output().map_err(|error| {
        Error::new(code::IO, format!("{:?} cannot be started", command.get_program()))
            .with_details(error.to_string())
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(REFUSED, format!("ip {words} failed")).with_details(said.trim()))
}

/// Every interface of a namespace, as `object` shows it: `address` or `link`.
pub fn links(ip: Ip, netns: Option<&Path>, object: &str) -> Result<Vec<Link>, Error> {
    let printed = ip(netns, &format!("-json {object} show"))?;
    serde_json::from_str(&printed).map_err(|error| {
        Error::new(code::DECODING, "what ip(8) printed cannot be read").with_details(error.to_string())
    })
}
