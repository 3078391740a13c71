// SPDX-License-Identifier: Apache-2.0
//! `bond`: several interfaces of the pod, or of the host, as one.

use std::fs::File;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use rtnetlink::packet_route::link::{
    BondAllPortActive, BondFailOverMac, BondMode, BondXmitHashPolicy, InfoBond, InfoData, InfoKind,
    LinkAttribute,
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Ipam;
use super::in_pod::{self, Kind};
use super::lent::{self, lend};
use crate::failure::{changed, invalid};
use crate::net::link::{Link, NewLink};
use crate::net::{Net, change_link, down, pod, up};

/// Fields of the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    mode: String,
    #[serde(default)]
    links_in_container: bool,
    fail_over_mac: Option<u8>,
    /// In milliseconds.
    #[serde(default, deserialize_with = "number_or_text")]
    miimon: Option<u32>,
    #[serde(default)]
    links: Vec<Member>,
    mtu: Option<u32>,
    all_slaves_active: Option<u8>,
    tlb_dynamic_lb: Option<u8>,
    xmit_hash_policy: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Member {
    name: String,
}

fn number_or_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
        other => serde_json::from_value(other).map(Some).map_err(serde::de::Error::custom),
    }
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields: Self = request.config.settings()?;
        if fields.links.len() < 2 {
            return Err(invalid("links of the configuration names fewer than two interfaces"));
        }
        fields.data()?;
        Ok(fields)
    }

    fn mode(&self) -> Result<BondMode, Error> {
        Ok(match self.mode.as_str() {
            "balance-rr" => BondMode::BalanceRr,
            "active-backup" => BondMode::ActiveBackup,
            "balance-xor" => BondMode::BalanceXor,
            "broadcast" => BondMode::Broadcast,
            "802.3ad" => BondMode::Ieee8023Ad,
            "balance-tlb" => BondMode::BalanceTlb,
            "balance-alb" => BondMode::BalanceAlb,
            other => {
                return Err(invalid(format!("mode {other:?} is no mode of a bond, such as active-backup")));
            }
        })
    }

    fn hash_policy(&self) -> Result<Option<BondXmitHashPolicy>, Error> {
        Ok(Some(match self.xmit_hash_policy.as_deref() {
            None | Some("") => return Ok(None),
            Some("layer2") => BondXmitHashPolicy::Layer2,
            Some("layer3+4") => BondXmitHashPolicy::Layer34,
            Some("layer2+3") => BondXmitHashPolicy::Layer23,
            Some("encap2+3") => BondXmitHashPolicy::Encap23,
            Some("encap3+4") => BondXmitHashPolicy::Encap34,
            Some("vlan+srcmac") => BondXmitHashPolicy::VlanSrcMac,
            Some(other) => return Err(invalid(format!("xmitHashPolicy {other:?} is not known"))),
        }))
    }

    fn data(&self) -> Result<Vec<InfoBond>, Error> {
        let mut data = vec![InfoBond::Mode(self.mode()?)];
        data.extend(self.miimon.map(InfoBond::MiiMon));
        data.extend(self.fail_over_mac.map(|how| InfoBond::FailOverMac(BondFailOverMac::from(how))));
        data.extend(self.all_slaves_active.map(|how| InfoBond::AllPortsActive(BondAllPortActive::from(how))));
        data.extend(self.tlb_dynamic_lb.map(|how| InfoBond::TlbDynamicLb(how != 0)));
        data.extend(self.hash_policy()?.map(InfoBond::XmitHashPolicy));
        Ok(data)
    }
}

/// The plugin.
pub(crate) struct Bond;

impl Bond {
    /// Moves the members into the pod's namespace where they are not there already.
    fn bring_members(request: &Request, fields: &Fields, netns: &File) -> Result<(), Error> {
        if fields.links_in_container {
            return Ok(());
        }
        let (mut host, mut inside) = (Net::here()?, Net::inside(pod::path(request)?)?);
        let mut links = Vec::new();
        // Before the first one moves.
        for Member { name } in &fields.links {
            links.push(host.named(name, "link")?);
            if inside.link(name)?.is_some() {
                return Err(invalid(format!("link {name:?}: the container has an interface of this name")));
            }
        }
        let mut pairs = links.iter().zip(&fields.links);
        pairs.try_for_each(|(link, member)| lend(&mut host, link, netns, &member.name))
    }
}

impl Kind for Bond {
    const ABOUT: &'static str = "bond: several interfaces of the pod as one";
    const IPAM: Ipam = Ipam::Optional;

    fn needs(&self) -> (InfoKind, &'static str) {
        (InfoKind::Bond, "CONFIG_BONDING")
    }

    fn validate(&self, request: &Request) -> Result<(), Error> {
        Fields::of(request).map(drop)
    }

    fn make(&self, request: &Request, netns: &File) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        Self::bring_members(request, &fields, netns)?;
        let mut net = Net::inside(pod::path(request)?)?;
        let members: Vec<Link> =
            fields.links.iter().map(|member| net.named(&member.name, "link")).collect::<Result<_, _>>()?;
        let link = NewLink::named(&request.ifname)
            .mtu(fields.mtu.unwrap_or(0))
            .kind(InfoKind::Bond, Some(InfoData::Bond(fields.data()?)));
        net.create(link.message())?;
        let bond = net.named(&request.ifname, "bond")?;
        // The kernel takes members that are down only.
        let requests: Vec<_> = members
            .iter()
            .flat_map(|member| {
                let join = change_link(member.index, vec![LinkAttribute::Controller(bond.index)]);
                [down(member.index), join, up(member.index)]
            })
            .collect();
        net.execute("add a link to the bond", &requests)
    }

    /// Members that came from the host go back there; those that were in the pod stay.
    fn remove(&self, request: &Request) -> Result<(), Error> {
        let deleted = in_pod::delete(request);
        let fields: Fields = request.config.settings()?;
        let Some(mut net) = pod::inside_if_there(request)?.filter(|_| !fields.links_in_container) else {
            return deleted;
        };
        let mut back = |member: &Member| match net.link(&member.name)? {
            Some(link) => lent::give_back(&mut net, &link, Some(&member.name)),
            None => Ok(()),
        };
        fields.links.iter().map(&mut back).fold(deleted, Result::and)
    }

    fn check(&self, request: &Request, link: &Link) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        let mode = fields.mode()?;
        if !matches!(&link.data, Some(InfoData::Bond(data)) if data.contains(&InfoBond::Mode(mode))) {
            return Err(changed(format!("{} has another mode than {mode:?}", link.name)));
        }
        let mut net = Net::inside(pod::path(request)?)?;
        for member in &fields.links {
            let seen = net.link(&member.name)?;
            if seen.and_then(|seen| seen.controller) != Some(link.index) {
                return Err(changed(format!("{} is not in the bond", member.name)));
            }
        }
        Ok(())
    }
}
