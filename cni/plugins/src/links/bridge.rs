// SPDX-License-Identifier: Apache-2.0
//! `bridge`: the pods of a network are ports of one bridge of the host.

mod vlan;

use std::fs::File;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::AddResult;
use rtnetlink::packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags,
    LinkInfo,
};
use serde::Deserialize;

use super::{Ipam, feature, forward, veth, with_addresses};
use crate::failure::{self, changed, invalid};
use crate::net::link::{Link, NewLink};
use crate::net::{
    AddressOptions, Net, add_address, change_link, delete_address, down, pod, route, set_flags, up,
};
use crate::nft::{masquerade, spoof};
use crate::{settings, sysctl};
use vlan::{Trunk, Vlans};

/// Fields of the configuration. `mac` is read with the other places that it comes by.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    mtu: Option<u32>,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: u16,
    vlan_trunk: Option<Vec<Trunk>>,
    #[serde(default)]
    preserve_default_vlan: bool,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    port_isolation: bool,
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let mut fields: Self = request.config.settings()?;
        if fields.bridge.is_empty() {
            "cni0".clone_into(&mut fields.bridge);
        }
        isthmus_cni_kit::names::check_ifname(&fields.bridge).map_err(|error| invalid(error.msg))?;
        fields.is_gateway |= fields.is_default_gateway;
        if fields.hairpin_mode && fields.promisc_mode {
            return Err(invalid("hairpinMode and promiscMode exclude each other"));
        }
        fields.vlans()?;
        if fields.disable_container_interface && request.config.ipam_type().is_some() {
            return Err(invalid(
                "disableContainerInterface excludes ipam: an interface that is down has no addresses",
            ));
        }
        Ok(fields)
    }

    fn vlans(&self) -> Result<Option<Vlans>, Error> {
        Vlans::of(self.vlan, self.vlan_trunk.as_deref(), self.preserve_default_vlan)
    }
}

/// The plugin.
pub(crate) struct Bridge;

/// The bridge, made if it is not there.
fn ensure_bridge(host: &mut Net, fields: &Fields) -> Result<Link, Error> {
    let name = &fields.bridge;
    let filters = fields.vlans()?.is_some();
    if host.link(name)?.is_none() {
        // Spanning tree off: a port forwards at once.
        let mut data = vec![InfoBridge::ForwardDelay(0)];
        data.extend(filters.then_some(InfoBridge::VlanFiltering(true)));
        let data = InfoData::Bridge(data);
        let link = NewLink::named(name).mtu(fields.mtu.unwrap_or(0)).kind(InfoKind::Bridge, Some(data));
        match host.create(link.message()) {
            // Another container's call was first.
            Err(error) if error.code == failure::EXISTS => {}
            other => other.map_err(|error| if filters { vlan::explained(error) } else { error })?,
        }
    }
    let link = host.named(name, "bridge")?;
    if !link.is(&InfoKind::Bridge) {
        return Err(invalid(format!("the interface {name} is not a bridge")));
    }
    if filters {
        vlan::expect_filtering(&link)?;
    }
    sysctl::ensure(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
    if !fields.enabledad {
        // The host asks for a pod's address from its own of the link, which it could not use yet.
        sysctl::ensure(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
    }
    let mut requests = Vec::new();
    if fields.promisc_mode && !link.promiscuous {
        requests.push(set_flags(link.index, LinkFlags::Promisc, true));
    }
    if !link.up {
        requests.push(up(link.index));
    }
    host.execute("take the bridge up", &requests)?;
    Ok(link)
}

/// The pair's end on the host becomes a port.
fn port_requests(index: u32, bridge: &Link, fields: &Fields) -> Vec<isthmus_netlink::Request> {
    let mut requests = vec![change_link(index, vec![LinkAttribute::Controller(bridge.index)])];
    let mut port = Vec::new();
    if fields.hairpin_mode {
        port.push(InfoBridgePort::HairpinMode(true));
    }
    if fields.port_isolation {
        port.push(InfoBridgePort::Isolated(true));
    }
    if !port.is_empty() {
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ];
        requests.push(change_link(index, vec![LinkAttribute::LinkInfo(info)]));
    }
    requests.push(up(index));
    requests
}

/// The first address of the network, which a gateway has by custom.
fn first_host(net: IpNet) -> Option<IpAddr> {
    let single = net.prefix_len() == net.max_prefix_len();
    let first = match net.network() {
        IpAddr::V4(network) => IpAddr::from(u32::from(network).checked_add(1)?.to_be_bytes()),
        IpAddr::V6(network) => IpAddr::from(u128::from(network).checked_add(1)?.to_be_bytes()),
    };
    (!single).then_some(first)
}

/// Fills in gateways and default routes as the configuration asks, and says what the bridge's addresses are to be.
fn complete(result: &mut AddResult, fields: &Fields) -> Vec<IpNet> {
    if !fields.is_gateway {
        return Vec::new();
    }
    let mut gateways = Vec::new();
    for ip in &mut result.ips {
        ip.gateway = ip.gateway.or_else(|| first_host(ip.address));
        let Some(gateway) = ip.gateway else { continue };
        let net = IpNet::new(gateway, ip.address.prefix_len());
        gateways.extend(net.ok().filter(|net| !gateways.contains(net)));
        let default: IpNet = if gateway.is_ipv6() {
            IpNet::V6(ipnet::Ipv6Net::default())
        } else {
            IpNet::V4(ipnet::Ipv4Net::default())
        };
        if fields.is_default_gateway && !result.routes.iter().any(|route| route.dst == default) {
            result.routes.push(route::plain(default, Some(gateway)));
        }
    }
    gateways
}

/// The bridge has the gateways' addresses. One of the same network that differs is replaced with `forceAddress`, else refused.
fn ensure_gateways(host: &mut Net, bridge: &Link, wanted: &[IpNet], force: bool) -> Result<(), Error> {
    let there = host.addresses(bridge.index)?;
    for net in wanted {
        if there.contains(net) {
            continue;
        }
        let overlaps = |other: &&IpNet| other.contains(&net.trunc()) || net.contains(&other.trunc());
        let other: Vec<&IpNet> = there.iter().filter(overlaps).collect();
        if let (Some(other), false) = (other.first(), force) {
            let msg = format!("the bridge {} has the address {other}, not {net}", bridge.name);
            return Err(invalid(msg).with_details("forceAddress replaces it"));
        }
        let mut requests: Vec<_> = other.iter().map(|other| delete_address(bridge.index, **other)).collect();
        requests.push(add_address(bridge.index, *net, AddressOptions::default()));
        if let Err(error) = host.execute("give the bridge its address", &requests)
            && !host.addresses(bridge.index)?.contains(net)
        {
            return Err(error);
        }
    }
    // As set, it stays: the kernel would take the lowest of the ports' otherwise, and change it as they come and go.
    if wanted.is_empty() {
        return Ok(());
    }
    let mac = settings::parse_mac(&host.named(&bridge.name, "bridge")?.mac)?;
    host.execute(
        "keep the bridge's address",
        &[change_link(bridge.index, vec![LinkAttribute::Address(mac.to_vec())])],
    )
}

/// The bridge and its new port; the port's other end is in the pod.
struct Joined {
    bridge: Link,
    port: Link,
}

fn join(request: &Request, netns: &File, fields: &Fields) -> Result<Joined, Error> {
    let mut host = Net::here()?;
    let bridge = ensure_bridge(&mut host, fields)?;
    let wanted =
        veth::Wanted { mtu: fields.mtu.unwrap_or(0), pod_mac: settings::mac(request)?, router: false };
    let port = veth::make(request, netns, &mut host, wanted)?;
    if fields.macspoofchk {
        // Before the pod can send: the IPAM may take its time.
        let pod = Net::inside(pod::path(request)?)?.named(&request.ifname, "pod's interface")?;
        spoof::add(request, &port.name, &pod.mac)?;
    }
    host.execute("make the interface a port of the bridge", &port_requests(port.index, &bridge, fields))?;
    if let Some(vlans) = fields.vlans()? {
        vlans.apply(&mut host, port.index)?;
    }
    Ok(Joined { bridge, port })
}

fn set_up(
    request: &Request,
    fields: &Fields,
    Joined { bridge, port }: Joined,
    mut result: AddResult,
) -> Result<AddResult, Error> {
    let mut host = Net::here()?;
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    let gateways = complete(&mut result, fields);
    let address = AddressOptions { detect_duplicates: fields.enabledad, ..AddressOptions::default() };
    let mut pod = pod::set_up(request, &result, pod::SetUp { address, via_gateway: false })?;
    if fields.disable_container_interface {
        Net::inside(pod::path(request)?)?.execute("take the interface down", &[down(pod.index)])?;
        pod.up = false;
    } else {
        host.wait_until_it_sends(port.index)?;
    }
    let mut of_vlan = None;
    if fields.is_gateway {
        of_vlan = fields.vlans()?.map(|vlans| vlans.gateway(&mut host, &bridge)).transpose()?.flatten();
        let link = of_vlan.as_ref().unwrap_or(&bridge);
        ensure_gateways(&mut host, link, &gateways, fields.force_address)?;
        let has = |v6: bool| gateways.iter().any(|net| matches!(net, IpNet::V6(_)) == v6);
        sysctl::forward(has(false), has(true))?;
    }
    if fields.ip_masq {
        masquerade::add(request, &result.ips)?;
    }
    let bridge = host.named(&bridge.name, "bridge")?;
    let inside = pod::interface(&pod, &pod::sandbox(request));
    result.interfaces = vec![pod::interface(&bridge, ""), pod::interface(&port, ""), inside];
    result.interfaces.extend(of_vlan.map(|link| pod::interface(&link, "")));
    Ok(result)
}

fn undo(request: &Request) -> Result<(), Error> {
    let rules = masquerade::RULES.delete(request);
    let guards = spoof::RULES.delete(request);
    veth::delete(request).and(rules).and(guards)
}

impl Plugin for Bridge {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields = Fields::of(request)?;
        settings::mac(request)?;
        let netns = pod::open(request)?;
        pod::refuse_taken(request)?;
        let make = || join(request, &netns, &fields);
        with_addresses(
            request,
            Ipam::Optional,
            make,
            |made, result| set_up(request, &fields, made, result),
            undo,
        )
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        undo(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        let fields = Fields::of(request)?;
        let result = pod::previous(request)?;
        if !fields.disable_container_interface {
            pod::check(request, &result)?;
        }
        let mut host = Net::here()?;
        let bridge = host
            .link(&fields.bridge)?
            .filter(|link| link.is(&InfoKind::Bridge))
            .ok_or_else(|| changed(format!("the bridge {} is gone", fields.bridge)))?;
        let name = veth::host_name(request);
        match host.link(&name)? {
            None => return Err(changed(format!("the host's end {name} is gone"))),
            Some(port) if port.controller != Some(bridge.index) => {
                return Err(changed(format!("{name} is no port of the bridge {}", bridge.name)));
            }
            Some(port) => fields.vlans()?.map_or(Ok(()), |vlans| vlans.check(&mut host, &port))?,
        }
        if fields.ip_masq {
            masquerade::check(request)?;
        }
        if fields.macspoofchk {
            spoof::RULES.chain.check_own(request, 1)?;
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        feature::expect(&InfoKind::Veth, "CONFIG_VETH")?;
        feature::expect(&InfoKind::Bridge, "CONFIG_BRIDGE")?;
        if fields.vlans()?.is_some() {
            vlan::expect()?;
        }
        if fields.ip_masq || fields.macspoofchk {
            crate::nft::available()?;
        }
        forward(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let addresses = forward(request);
        let rules = masquerade::RULES.collect(request);
        let guards = spoof::RULES.collect(request);
        veth::collect(request).and(rules).and(guards).and(addresses)
    }

    fn about(&self) -> String {
        "bridge: the pods of a network are ports of one bridge of the host".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_the_first_address_of_the_network_unless_the_network_is_one_address() {
        let first = |text: &str| first_host(text.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(first("10.1.2.77/24").as_deref(), Some("10.1.2.1"));
        assert_eq!(first("10.1.2.77/32"), None);
        assert_eq!(first("fd00::77/64").as_deref(), Some("fd00::1"));
    }
}
