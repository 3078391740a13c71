// SPDX-License-Identifier: Apache-2.0
//! VLANs of a bridge's ports (IEEE 802.1Q): which a port carries, and which its untagged packets belong to.

use std::collections::BTreeMap;

use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::names::check_ifname;
use isthmus_netlink::Request;
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::Deserialize;

use crate::failure::{self, NO_FEATURE, changed, invalid};
use crate::net::link::{Link, NewLink};
use crate::net::{Net, change_link, up};
use crate::owner;

pub(super) const OPTION: &str = "CONFIG_BRIDGE_VLAN_FILTERING";
/// What untagged packets of a trunk belong to, if nothing else is said.
const NATIVE: u16 = 1;

/// One entry of `vlanTrunk`: a range, a single one, or both.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Trunk {
    #[serde(rename = "minID")]
    min_id: Option<u16>,
    #[serde(rename = "maxID")]
    max_id: Option<u16>,
    id: Option<u16>,
}

/// What a port carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vlans {
    /// That of the pod's untagged packets, if the configuration names one.
    pub(super) own: Option<u16>,
    ports: BTreeMap<u16, BridgeVlanInfoFlags>,
    keep_others: bool,
}

fn valid(id: u16, what: &str) -> Result<u16, Error> {
    match id {
        1..=4094 => Ok(id),
        _ => Err(invalid(format!("{what} {id} is not from 1 to 4094"))),
    }
}

impl Trunk {
    fn ids(&self) -> Result<impl Iterator<Item = u16>, Error> {
        let range = match (self.min_id, self.max_id) {
            (Some(min), Some(max)) if min <= max => {
                Some(valid(min, "minID of vlanTrunk")?..=valid(max, "maxID of vlanTrunk")?)
            }
            (Some(min), Some(max)) => {
                return Err(invalid(format!("minID {min} of vlanTrunk is above its maxID {max}")));
            }
            (None, None) => None,
            _ => return Err(invalid("an entry of vlanTrunk has only one of minID and maxID")),
        };
        let single = self.id.map(|id| valid(id, "id of vlanTrunk")).transpose()?;
        Ok(range.into_iter().flatten().chain(single))
    }
}

impl Vlans {
    /// Reads the fields; none if the bridge need not filter. Code 7 for numbers that are no VLAN's.
    pub(super) fn of(vlan: u16, trunk: Option<&[Trunk]>, keep_others: bool) -> Result<Option<Self>, Error> {
        if vlan == 0 && trunk.is_none() {
            return Ok(None);
        }
        let own = Some(vlan).filter(|vlan| *vlan != 0).map(|vlan| valid(vlan, "vlan")).transpose()?;
        let mut ports = BTreeMap::new();
        for one in trunk.unwrap_or_default() {
            ports.extend(one.ids()?.map(|id| (id, BridgeVlanInfoFlags::empty())));
        }
        if let Some(untagged) = own.or_else(|| (!ports.is_empty()).then_some(NATIVE)) {
            ports.insert(untagged, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged);
        }
        let keep_others = keep_others || ports.is_empty();
        Ok(Some(Self { own, ports, keep_others }))
    }

    /// That of a gateway: it speaks in the pods' own VLAN only.
    fn of_gateway(&self, own: u16) -> Self {
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        Self { own: Some(own), ports: BTreeMap::from([(own, flags)]), keep_others: self.keep_others }
    }

    /// Makes the port carry these, and no others.
    pub(super) fn apply(&self, host: &mut Net, port: u32) -> Result<(), Error> {
        let there = host.vlans(port)?;
        let mut requests = Vec::new();
        if !self.keep_others {
            let others = there.keys().filter(|id| !self.ports.contains_key(id));
            let others: BTreeMap<u16, BridgeVlanInfoFlags> =
                others.map(|id| (*id, BridgeVlanInfoFlags::empty())).collect();
            if !others.is_empty() {
                requests.push(Request::route(&RouteNetlinkMessage::DelLink(message(port, &others)), 0));
            }
        }
        if !self.ports.is_empty() {
            requests.push(Request::route(&RouteNetlinkMessage::SetLink(message(port, &self.ports)), 0));
        }
        host.execute("set the VLANs of the bridge's port", &requests)
    }

    /// Code 102 unless the port carries these.
    pub(super) fn check(&self, host: &mut Net, port: &Link) -> Result<(), Error> {
        let there = host.vlans(port.index)?;
        let lost = self.ports.iter().find(|(id, flags)| there.get(id) != Some(flags));
        match lost {
            Some((id, _)) => Err(changed(format!("{} does not carry the VLAN {id} as set", port.name))),
            None => Ok(()),
        }
    }

    /// The host's interface in the pods' VLAN, `cni0.7`: the other end of a port of the bridge. It stays, as the bridge does.
    pub(super) fn gateway(&self, host: &mut Net, bridge: &Link) -> Result<Option<Link>, Error> {
        let Some(own) = self.own else { return Ok(None) };
        let name = format!("{}.{own}", bridge.name);
        check_ifname(&name).map_err(|error| invalid(format!("the VLAN's gateway: {}", error.msg)))?;
        let port = owner::port_name("vlan", &name);
        let peer = NewLink::named(&name).mtu(bridge.mtu).message();
        let pair = NewLink::named(&port)
            .mtu(bridge.mtu)
            .kind(InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))));
        match host.create(pair.message()) {
            // Another container's call was first.
            Err(error) if error.code == failure::EXISTS => {}
            other => other?,
        }
        let (port, link) =
            (host.named(&port, "port of the VLAN's gateway")?, host.named(&name, "gateway of the VLAN")?);
        let join = change_link(port.index, vec![LinkAttribute::Controller(bridge.index)]);
        host.execute("make the VLAN's gateway a port", &[join, up(port.index), up(link.index)])?;
        self.of_gateway(own).apply(host, port.index)?;
        Ok(Some(link))
    }
}

/// Ranges take two entries, however long they are.
fn entries(ports: &BTreeMap<u16, BridgeVlanInfoFlags>) -> Vec<BridgeVlanInfo> {
    let mut runs: Vec<(u16, u16, BridgeVlanInfoFlags)> = Vec::new();
    for (id, flags) in ports {
        match runs.last_mut() {
            Some((_, last, of)) if *last + 1 == *id && of == flags && flags.is_empty() => *last = *id,
            _ => runs.push((*id, *id, *flags)),
        }
    }
    let entry = |vid, flags| BridgeVlanInfo { flags, vid };
    let run = |(first, last, flags): (u16, u16, BridgeVlanInfoFlags)| match first == last {
        true => vec![entry(first, flags)],
        false => vec![
            entry(first, flags | BridgeVlanInfoFlags::RangeBegin),
            entry(last, flags | BridgeVlanInfoFlags::RangeEnd),
        ],
    };
    runs.into_iter().flat_map(run).collect()
}

fn message(port: u32, ports: &BTreeMap<u16, BridgeVlanInfoFlags>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    // To the bridge, not to the port's own driver.
    let to = AfSpecBridge::Flags(BridgeFlag::Controller);
    let spec = std::iter::once(to).chain(entries(ports).into_iter().map(AfSpecBridge::VlanInfo));
    message.attributes.push(LinkAttribute::AfSpecBridge(spec.collect()));
    message
}

impl Net {
    /// VLANs of a port.
    fn vlans(&mut self, port: u32) -> Result<BTreeMap<u16, BridgeVlanInfoFlags>, Error> {
        let mut ask = LinkMessage::default();
        ask.header.interface_family = AddressFamily::Bridge;
        ask.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let all = self.dump(&RouteNetlinkMessage::GetLink(ask))?;
        let of_port = all.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) if message.header.index == port => {
                Some(&message.attributes)
            }
            _ => None,
        });
        let infos = of_port.flatten().filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecBridge(spec) => Some(spec),
            _ => None,
        });
        let vlan = |one: &AfSpecBridge| match one {
            AfSpecBridge::VlanInfo(info) => Some((info.vid, info.flags)),
            _ => None,
        };
        Ok(infos.flatten().filter_map(vlan).collect())
    }
}

/// Whether the bridge tells VLANs apart; one that was made without stays so. Code 7 then.
pub(super) fn expect_filtering(bridge: &Link) -> Result<(), Error> {
    match &bridge.data {
        Some(InfoData::Bridge(data)) if data.contains(&InfoBridge::VlanFiltering(true)) => Ok(()),
        _ => Err(invalid(format!("the bridge {} does not tell VLANs apart", bridge.name))
            .with_details(format!("`ip link set {} type bridge vlan_filtering 1` makes it so", bridge.name))),
    }
}

/// Names what the kernel lacks.
pub(super) fn explained(error: Error) -> Error {
    match error.code {
        NO_FEATURE => {
            Error::new(NO_FEATURE, format!("the kernel's bridges do not tell VLANs apart: it needs {OPTION}"))
        }
        _ => error,
    }
}

/// Code 50 if the kernel cannot.
pub(super) fn expect() -> Result<(), Error> {
    let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]);
    match super::feature::probe(&InfoKind::Bridge, Some(data)) {
        Err(error) if error.code == NO_FEATURE => Err(Error::new(code::UNAVAILABLE, explained(error).msg)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vlan: u16, trunk: serde_json::Value) -> Result<Option<Vlans>, Error> {
        let trunk: Option<Vec<Trunk>> = serde_json::from_value(trunk).unwrap();
        Vlans::of(vlan, trunk.as_deref(), false)
    }

    #[test]
    fn a_trunk_is_ranges_and_single_ones_and_its_untagged_packets_belong_somewhere() {
        let shown = |vlan, trunk| -> Vec<(u16, u16)> {
            let vlans = of(vlan, trunk).unwrap().unwrap();
            entries(&vlans.ports).iter().map(|entry| (entry.vid, entry.flags.bits())).collect()
        };
        let (untagged, begin, end) = (6, 8, 16);
        let trunk = serde_json::json!([{ "minID": 100, "maxID": 103 }, { "id": 7 }, { "id": 104 }]);
        assert_eq!(shown(0, trunk.clone()), [(1, untagged), (7, 0), (100, begin), (104, end)]);
        assert_eq!(shown(101, trunk), [(7, 0), (100, 0), (101, untagged), (102, begin), (104, end)]);
        assert_eq!(shown(7, serde_json::Value::Null), [(7, untagged)]);
        assert_eq!(of(0, serde_json::Value::Null), Ok(None));
        assert!(
            of(0, serde_json::json!([])).unwrap().unwrap().keep_others,
            "it filters, with what every port has"
        );
    }

    #[test]
    fn numbers_that_are_no_vlans_are_refused_with_code_7() {
        for (vlan, trunk) in [
            (4095, serde_json::Value::Null),
            (0, serde_json::json!([{ "minID": 0, "maxID": 3 }])),
            (0, serde_json::json!([{ "minID": 4, "maxID": 3 }])),
            (0, serde_json::json!([{ "minID": 4 }])),
            (0, serde_json::json!([{ "maxID": 4 }])),
            (0, serde_json::json!([{ "id": 4095 }])),
        ] {
            assert_eq!(of(vlan, trunk.clone()).map_err(|error| error.code), Err(7), "{vlan} {trunk}");
        }
    }
}
