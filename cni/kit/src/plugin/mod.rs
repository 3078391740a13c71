// SPDX-License-Identifier: Apache-2.0
//! The plugin's side: what is asked, checked, and what is answered (CNI 1.1.0, section 2).

pub mod delegate;
pub mod lock;
mod request;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::Value;

use crate::config::{object, read_bounded};
use crate::error::{Error, code};
use crate::result::{AddResult, VersionResult};
use crate::version::Version;

pub use request::{Command, Request};

/// A plugin. Every call may come again: nothing is remembered from the call before but what the plugin keeps itself.
pub trait Plugin {
    /// Adds the container to the network, or adjusts what the plugins before did.
    fn add(&self, request: &Request) -> Result<AddResult, Error>;

    /// Takes it away. Succeeds if it is away already, also without a namespace or a previous result.
    fn del(&self, request: &Request) -> Result<(), Error>;

    /// Whether all is as ADD left it.
    fn check(&self, request: &Request) -> Result<(), Error>;

    /// Whether ADD can be served: codes 50 and 51 if not.
    fn status(&self, request: &Request) -> Result<(), Error>;

    /// Takes away everything that belongs to none of the request's valid attachments.
    fn gc(&self, request: &Request) -> Result<(), Error>;

    /// One line about the plugin, for people who start it by hand.
    fn about(&self) -> String;

    /// Versions that the plugin speaks, oldest first.
    fn versions(&self) -> Vec<Version> {
        Version::ALL.to_vec()
    }
}

/// Serves one call with the process's environment, standard input and standard output.
pub fn main(plugin: &dyn Plugin) -> ExitCode {
    let env = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    ExitCode::from(run(plugin, &env, &mut io::stdin(), &mut io::stdout(), &mut io::stderr()))
}

/// Serves one call and returns the exit code, 0 or 1. Results and error objects go to `stdout`; `stderr` gets only
/// the words for people when `CNI_COMMAND` is not set.
pub fn run(
    plugin: &dyn Plugin,
    env: &BTreeMap<String, String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let command = env.get("CNI_COMMAND").map(String::as_str).unwrap_or_default();
    if command.is_empty() {
        let versions: Vec<String> = plugin.versions().iter().map(ToString::to_string).collect();
        // Nobody is left to tell if standard error is closed.
        let _ =
            writeln!(stderr, "{}\nCNI protocol versions supported: {}", plugin.about(), versions.join(", "));
        return 0;
    }
    let input = read_bounded(stdin, "standard input");
    let spoken = input.as_ref().map_or(Version::NEWEST, |bytes| spoken_version(bytes));
    let (answer, exit_code) = match input.and_then(|bytes| serve(plugin, command, env, bytes, spoken)) {
        Ok(answer) => (answer, 0),
        Err(error) => (Some(error.to_json(spoken)), 1),
    };
    let written = match answer {
        Some(json) => writeln!(stdout, "{json}").and_then(|()| stdout.flush()),
        None => Ok(()),
    };
    if written.is_ok() { exit_code } else { 1 }
}

/// The version to answer in: the configuration's if it is known.
fn spoken_version(bytes: &[u8]) -> Version {
    let Ok(map) = object(bytes, "the configuration") else { return Version::NEWEST };
    match map.get("cniVersion").and_then(Value::as_str) {
        Some(text) => text.parse().unwrap_or(Version::NEWEST),
        None => Version::OLDEST,
    }
}

fn serve(
    plugin: &dyn Plugin,
    command: &str,
    env: &BTreeMap<String, String>,
    stdin: Vec<u8>,
    spoken: Version,
) -> Result<Option<Value>, Error> {
    if command == "VERSION" {
        return Ok(Some(VersionResult::of(&plugin.versions()).to_json(spoken)));
    }
    let request = Request::read(command.parse()?, env, stdin, &plugin.versions())?;
    match request.command {
        Command::Add => return plugin.add(&request)?.to_json(request.config.version()).map(Some),
        Command::Del => plugin.del(&request)?,
        Command::Check if request.config.raw().get("prevResult").is_none_or(Value::is_null) => {
            return Err(Error::new(code::INVALID_CONFIG, "CHECK needs prevResult in the configuration"));
        }
        Command::Check => plugin.check(&request)?,
        Command::Status => plugin.status(&request)?,
        Command::Gc => plugin.gc(&request)?,
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
