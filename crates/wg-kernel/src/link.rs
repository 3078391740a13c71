// SPDX-License-Identifier: Apache-2.0
//! Links of kind `wireguard` (rtnetlink(7)).

use std::collections::BTreeMap;
use std::io;

use crate::device::terminated;
use crate::netlink::{CREATE_NEW, DUMP, Netlink, attributes, nest, put};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
/// `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;
const FLAG_UP: u32 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const KIND: &str = "wireguard";

pub(crate) fn create(route: &mut Netlink, name: &str, mtu_bytes: u16) -> io::Result<()> {
    let mut body = header(0);
    put(&mut body, IFNAME, &terminated(name));
    put(&mut body, MTU, &u32::from(mtu_bytes).to_ne_bytes());
    nest(&mut body, LINK_INFO, |out| put(out, INFO_KIND, KIND.as_bytes()));
    route.request(NEW_LINK, CREATE_NEW, &body).map(drop)
}

pub(crate) fn set_up(route: &mut Netlink, name: &str) -> io::Result<()> {
    let mut body = header(FLAG_UP);
    put(&mut body, IFNAME, &terminated(name));
    route.request(NEW_LINK, 0, &body).map(drop)
}

pub(crate) fn delete(route: &mut Netlink, name: &str) -> io::Result<()> {
    let mut body = header(0);
    put(&mut body, IFNAME, &terminated(name));
    route.request(DELETE_LINK, 0, &body).map(drop)
}

/// All links by name; true for those of our kind.
pub(crate) fn all(route: &mut Netlink) -> io::Result<BTreeMap<String, bool>> {
    let answers = route.request(GET_LINK, DUMP, &header(0))?;
    Ok(answers.iter().filter_map(|answer| read(answer.get(HEADER_BYTES..)?)).collect())
}

fn read(body: &[u8]) -> Option<(String, bool)> {
    let value = |wanted: u16| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let info = value(LINK_INFO).unwrap_or_default();
    let kind = attributes(info).find(|(kind, _)| *kind == INFO_KIND).map(|(_, value)| text(value));
    Some((text(value(IFNAME)?), kind.as_deref() == Some(KIND)))
}

/// Without an index: the name says which. Flags that are set here are also the ones that change.
fn header(flags: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes
}
