// SPDX-License-Identifier: Apache-2.0
//! Requests, read from their text.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::{
    Endpoint, MAX_LINE_BYTES, MAX_LINES, MAX_PEERS, MAX_REQUEST_BYTES, Operation, PresharedKey, PrivateKey,
    PublicKey, Reason, Refusal,
};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Tell the state of the interface.
    Get,
    /// Change it.
    Set(SetRequest),
}

/// Changes of an interface. What is `None` or false stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetRequest {
    /// The new private key; `None` inside takes it away.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port to listen on; 0 asks for any.
    pub listen_port: Option<u16>,
    /// The mark of outgoing datagrams; 0 for none.
    pub fwmark: Option<u32>,
    /// All peers go before [`Self::peers`] come.
    pub replace_peers: bool,
    /// Sections of peers, one after the other. A peer can have several.
    pub peers: Vec<SetPeer>,
}

/// Changes of one peer, which is made where it is not there. What is `None` or false stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPeer {
    /// Which peer.
    pub public_key: PublicKey,
    /// It goes, and the rest of the section says nothing.
    pub remove: bool,
    /// The section says nothing about a peer that is not there.
    pub update_only: bool,
    /// The new pre-shared key; `None` inside takes it away.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where the peer is.
    pub endpoint: Option<Endpoint>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive_s: Option<u16>,
    /// Its allowed IPs go before [`Self::allowed_ips`] come.
    pub replace_allowed_ips: bool,
    /// Networks, one after the other.
    pub allowed_ips: Vec<AllowedIp>,
}

impl SetPeer {
    /// A section without lines.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive_s: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// A line about an allowed IP. The networks have no bits beyond their prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIp {
    /// The peer gets the network, also from another.
    Add(IpNet),
    /// The peer gives the network up; whoever else has it keeps it.
    Remove(IpNet),
}

/// Reads one request with the empty line at its end.
///
/// # Errors
/// The first thing that is wrong, without a word of the text.
pub fn parse(bytes: &[u8]) -> Result<Request, Refusal> {
    let refused = |operation, reason| Refusal { operation, reason };
    if bytes.len() > MAX_REQUEST_BYTES {
        return Err(refused(None, Reason::TooLong));
    }
    let (first, rest) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => return Err(refused(None, Reason::Unfinished)),
    };
    match first {
        b"get=1" if rest == b"\n" => Ok(Request::Get),
        b"get=1" if rest.is_empty() => Err(refused(Some(Operation::Get), Reason::Unfinished)),
        b"get=1" => Err(refused(Some(Operation::Get), Reason::LinesInGet)),
        b"set=1" => match set(rest) {
            Ok(request) => Ok(Request::Set(request)),
            Err(reason) => Err(refused(Some(Operation::Set), reason)),
        },
        _ => Err(refused(None, Reason::UnknownOperation)),
    }
}

/// What follows `set=1`.
fn set(rest: &[u8]) -> Result<SetRequest, Reason> {
    let mut request = SetRequest::default();
    if rest == b"\n" {
        return Ok(request);
    }
    let lines = rest.strip_suffix(b"\n\n").ok_or(Reason::Unfinished)?;
    for (at, bytes) in lines.split(|byte| *byte == b'\n').enumerate() {
        let line = at + 2;
        if line > MAX_LINES {
            return Err(Reason::TooManyLines);
        }
        if bytes.len() > MAX_LINE_BYTES {
            return Err(Reason::LongLine { line });
        }
        let equals = bytes.iter().position(|byte| *byte == b'=').ok_or(Reason::NoEquals { line })?;
        let (key, value) = (&bytes[..equals], &bytes[equals + 1..]);
        // No value that is valid has other characters, so they are found where the value is read.
        let value = std::str::from_utf8(value).unwrap_or_default();
        if key == b"public_key" {
            let public_key =
                PublicKey::from_hex(value).ok_or(Reason::BadValue { line, key: "public_key" })?;
            if request.peers.len() == MAX_PEERS {
                return Err(Reason::TooManyPeers);
            }
            request.peers.push(SetPeer::new(public_key));
            continue;
        }
        let valid = match request.peers.last_mut() {
            Some(peer) => peer_line(peer, key, value),
            None => device_line(&mut request, key, value),
        };
        valid.map_err(|wrong| match wrong {
            Wrong::Key => Reason::UnknownKey { line },
            Wrong::Value(key) => Reason::BadValue { line, key },
        })?;
    }
    Ok(request)
}

enum Wrong {
    Key,
    Value(&'static str),
}

fn device_line(request: &mut SetRequest, key: &[u8], value: &str) -> Result<(), Wrong> {
    match key {
        b"private_key" => {
            request.private_key = Some(PrivateKey::from_hex(value).ok_or(Wrong::Value("private_key"))?);
        }
        b"listen_port" => request.listen_port = Some(number(value).ok_or(Wrong::Value("listen_port"))?),
        b"fwmark" => request.fwmark = Some(number(value).ok_or(Wrong::Value("fwmark"))?),
        b"replace_peers" => request.replace_peers = is_true(value).ok_or(Wrong::Value("replace_peers"))?,
        _ => return Err(Wrong::Key),
    }
    Ok(())
}

fn peer_line(peer: &mut SetPeer, key: &[u8], value: &str) -> Result<(), Wrong> {
    match key {
        b"remove" => peer.remove = is_true(value).ok_or(Wrong::Value("remove"))?,
        b"update_only" => peer.update_only = is_true(value).ok_or(Wrong::Value("update_only"))?,
        b"preshared_key" => {
            peer.preshared_key = Some(PresharedKey::from_hex(value).ok_or(Wrong::Value("preshared_key"))?);
        }
        b"endpoint" => peer.endpoint = Some(value.parse().map_err(|_| Wrong::Value("endpoint"))?),
        b"persistent_keepalive_interval" => {
            let seconds = number(value).ok_or(Wrong::Value("persistent_keepalive_interval"))?;
            peer.keepalive_s = Some(seconds);
        }
        b"replace_allowed_ips" => {
            peer.replace_allowed_ips = is_true(value).ok_or(Wrong::Value("replace_allowed_ips"))?;
            peer.allowed_ips.clear();
        }
        b"allowed_ip" => peer.allowed_ips.push(allowed_ip(value).ok_or(Wrong::Value("allowed_ip"))?),
        b"protocol_version" if value == "1" => {}
        b"protocol_version" => return Err(Wrong::Value("protocol_version")),
        _ => return Err(Wrong::Key),
    }
    Ok(())
}

fn allowed_ip(value: &str) -> Option<AllowedIp> {
    match value.strip_prefix('-') {
        Some(network) => network_of(network).map(AllowedIp::Remove),
        None => network_of(value).map(AllowedIp::Add),
    }
}

/// `address/prefix length`, the bits beyond the prefix cut off.
fn network_of(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.len() > 1 && length.starts_with('0') {
        return None;
    }
    Some(IpNet::new(address.parse::<IpAddr>().ok()?, number(length)?).ok()?.trunc())
}

fn is_true(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

/// Decimal digits and nothing else.
pub(crate) fn number<T: FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
