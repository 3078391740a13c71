// SPDX-License-Identifier: Apache-2.0
//! What plugin and daemon say to each other: one line of JSON each way, over a socket that only root can reach.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::names::{check_container_id, check_ifname, check_network_name};
use serde::{Deserialize, Serialize};

use super::lease::Lease;
use super::wire::Options;

pub(crate) const SOCKET: &str = "/run/cni/dhcp.sock";
/// A configuration has less.
const LINE_MAX: u64 = 1024 * 1024;
/// The daemon gives up before, unless it is told to wait for longer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(600);

/// Whose a lease is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Key {
    pub(crate) network: String,
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

impl Key {
    /// Option 61 as the Go plugin has it, so that a server knows the client again: a type of 0, then names, 254 bytes at most.
    pub(crate) fn client_id(&self) -> Vec<u8> {
        let text = format!("{}/{}/{}", self.container_id, self.network, self.ifname);
        std::iter::once(0).chain(text.bytes().take(254)).collect()
    }

    /// Names as the specification has them. The daemon makes a file's name and a path of nothing else.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_network_name(&self.network)?;
        check_container_id(&self.container_id)?;
        check_ifname(&self.ifname)
    }
}

/// ADD's question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) key: Key,
    /// Of the host, without the daemon's prefix.
    pub(crate) netns: PathBuf,
    pub(crate) provide: Options,
    pub(crate) request: Vec<u8>,
}

/// A question of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Call {
    /// A lease, a new one if there is none.
    Allocate(Ask),
    /// The lease that there is.
    Check(Key),
    Release(Key),
    /// Releases those of the network that are not named: containers and interfaces.
    Collect {
        network: String,
        valid: Vec<(String, String)>,
    },
    Status,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Reply {
    Lease(Lease),
    Done,
    Failed { code: u32, msg: String, details: String },
}

impl From<Result<Reply, Error>> for Reply {
    fn from(result: Result<Self, Error>) -> Self {
        result.unwrap_or_else(|error| Self::Failed {
            code: error.code,
            msg: error.msg,
            details: error.details,
        })
    }
}

fn absent(socket: &Path, error: &io::Error) -> Error {
    let msg = format!("no DHCP daemon at {} ({error}): start it with `dhcp daemon`", socket.display());
    Error::new(code::UNAVAILABLE, msg)
}

/// Asks the daemon. Code 50 if there is none, or it is not ours.
pub(crate) fn ask(socket: &Path, call: &Call) -> Result<Reply, Error> {
    let mut stream = UnixStream::connect(socket).map_err(|error| absent(socket, &error))?;
    let said = stream.set_read_timeout(Some(ANSWER_PATIENCE)).and_then(|()| say(&mut stream, call));
    let line = said.and_then(|()| hear(&stream)).map_err(|error| absent(socket, &error))?;
    if line.starts_with(b"HTTP/") {
        let msg = format!(
            "the daemon at {} is the Go project's: stop it, and start this one's `dhcp daemon`",
            socket.display()
        );
        return Err(Error::new(code::UNAVAILABLE, msg));
    }
    match serde_json::from_slice(&line) {
        Ok(Reply::Failed { code, msg, details }) => Err(Error { code, msg, details }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(absent(socket, &error.into())),
    }
}

/// Writes one line.
pub(crate) fn say(stream: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line.
pub(crate) fn hear(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_named_as_the_go_plugin_names_it_and_within_what_an_option_holds() {
        let key = |container: &str| Key {
            network: "net".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        };
        assert_eq!(key("c").client_id(), b"\0c/net/eth0");
        assert_eq!(key(&"c".repeat(400)).client_id().len(), 255);
        assert!(key("../c").check().is_err() && key("c").check().is_ok());
    }
}
