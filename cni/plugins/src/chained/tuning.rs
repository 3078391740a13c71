// SPDX-License-Identifier: Apache-2.0
//! `tuning`: settings and properties of the pod's interface. What it changes of the interface is put back by DEL, for an interface that
//! outlives the pod.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::AddResult;
use isthmus_netlink::netns;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use serde::Deserialize;

use super::before::Before;
use crate::failure::{self, changed, invalid};
use crate::net::link::Link;
use crate::net::{Net, change_link, pod, set_flags};
use crate::{owner, settings, sysctl};

/// Stands for the interface's name in a setting.
const IFNAME: &str = "IFNAME";

/// Fields of the configuration; those of `args.cni` go before. `mac` is read with the other places that it comes by.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    #[serde(rename = "txQLen")]
    tx_queue_length: Option<u32>,
    allmulti: Option<bool>,
    #[serde(default)]
    data_dir: PathBuf,
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let mut fields: Self = request.config.settings()?;
        let args = request.config.raw().get("args").and_then(|args| args.get("cni"));
        if let Some(args) = args.filter(|args| args.is_object()) {
            let over: Self = serde_json::from_value(args.clone()).map_err(|error| {
                invalid("a field of args.cni has another shape").with_details(error.to_string())
            })?;
            fields.sysctl.extend(over.sysctl);
            fields.promisc = over.promisc.or(fields.promisc);
            fields.mtu = over.mtu.or(fields.mtu);
            fields.tx_queue_length = over.tx_queue_length.or(fields.tx_queue_length);
            fields.allmulti = over.allmulti.or(fields.allmulti);
        }
        // Go takes a zero for a field that is not set.
        fields.mtu = fields.mtu.filter(|mtu| *mtu > 0);
        fields.tx_queue_length = fields.tx_queue_length.filter(|length| *length > 0);
        if fields.data_dir.as_os_str().is_empty() {
            fields.data_dir = "/run/cni/tuning".into();
        }
        for key in fields.sysctl.keys() {
            let below_net = key.starts_with("net.") || key.starts_with("net/");
            if !below_net || sysctl::file(key).is_none() {
                return Err(invalid(format!("the setting {key:?} is not one of the network's (net.…)")));
            }
        }
        Ok(fields)
    }

    fn settings(&self, request: &Request) -> Vec<(String, String)> {
        let named = |key: &String| key.replace(IFNAME, &request.ifname);
        self.sysctl.iter().map(|(key, value)| (named(key), value.clone())).collect()
    }
}

/// What the interface has now of what is to be changed.
fn before(link: &Link, fields: &Fields, mac: Option<[u8; 6]>) -> Before {
    Before {
        mac: mac.map(|_| link.mac.clone()),
        promisc: fields.promisc.map(|_| link.promiscuous),
        mtu: fields.mtu.map(|_| link.mtu),
        tx_queue_length: fields.tx_queue_length.map(|_| link.queue_length),
        allmulti: fields.allmulti.map(|_| link.all_multicast),
    }
}

/// Changes that bring the interface there.
fn requests(wanted: &Before, index: u32) -> Result<Vec<isthmus_netlink::Request>, Error> {
    let mut changes = Vec::new();
    if let Some(mac) = &wanted.mac {
        changes.push(LinkAttribute::Address(settings::parse_mac(mac)?.to_vec()));
    }
    changes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    changes.extend(wanted.tx_queue_length.map(LinkAttribute::TxQueueLen));
    let mut requests: Vec<_> = changes.into_iter().map(|change| change_link(index, vec![change])).collect();
    requests.extend(wanted.promisc.map(|on| set_flags(index, LinkFlags::Promisc, on)));
    requests.extend(wanted.allmulti.map(|on| set_flags(index, LinkFlags::Allmulti, on)));
    Ok(requests)
}

fn file(directory: &Path, request: &Request) -> PathBuf {
    directory.join(format!("{}.json", owner::key(request)))
}

fn keep(directory: &Path, request: &Request, before: &Before) -> Result<(), Error> {
    if *before == Before::default() {
        return Ok(());
    }
    let file = file(directory, request);
    let text = before.bytes().map_err(|error| invalid(error.to_string()))?;
    let draft = file.with_extension("new");
    let kept = fs::create_dir_all(directory)
        .and_then(|()| fs::write(&draft, text))
        .and_then(|()| fs::rename(&draft, &file));
    kept.map_err(|error| failure::io(&file.display().to_string(), &error))
}

/// The plugin.
pub(crate) struct Tuning;

/// The interface's properties in the result become those that it has now.
fn note(request: &Request, result: &mut AddResult, mac: Option<[u8; 6]>, fields: &Fields) {
    let sandbox = pod::sandbox(request);
    for one in result.interfaces.iter_mut().filter(|one| one.name == request.ifname && one.sandbox == sandbox)
    {
        if let Some(mac) = mac {
            one.mac = settings::mac_text(&mac);
        }
        one.mtu = fields.mtu.or(one.mtu);
    }
}

fn write_settings(request: &Request, settings: &[(String, String)]) -> Result<(), Error> {
    let write = || {
        settings.iter().try_for_each(|(key, value)| {
            sysctl::write(key, value)
                .map_err(|error| failure::io(&format!("the setting {key} cannot be {value}"), &error))
        })
    };
    let path = pod::path(request)?;
    netns::run(path, write).map_err(|error| failure::io(&path.display().to_string(), &error))?
}

impl Plugin for Tuning {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields = Fields::of(request)?;
        let mac = settings::mac(request)?;
        let mut result = pod::previous(request)?;
        write_settings(request, &fields.settings(request))?;
        let mut net = Net::inside(pod::path(request)?)?;
        let link = net
            .link(&request.ifname)?
            .ok_or_else(|| failure::invalid(format!("the container has no interface {}", request.ifname)))?;
        keep(&fields.data_dir, request, &before(&link, &fields, mac))?;
        let wanted = Before {
            mac: mac.map(|mac| settings::mac_text(&mac)),
            promisc: fields.promisc.filter(|on| *on),
            mtu: fields.mtu,
            tx_queue_length: fields.tx_queue_length,
            allmulti: fields.allmulti,
        };
        net.execute("change the interface", &requests(&wanted, link.index)?)?;
        note(request, &mut result, mac, &fields);
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let directory = Fields::of(request)?.data_dir;
        let file = file(&directory, request);
        let before = match fs::read(&file) {
            Ok(bytes) => Before::parse(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failure::io(&file.display().to_string(), &error)),
        };
        if let Some(mut net) = pod::inside_if_there(request)?
            && let Some(link) = net.link(&request.ifname)?
        {
            // A link that goes away with the pod takes its properties along; an address that is none is nobody's.
            let _ = requests(&before, link.index).and_then(|all| net.execute("put the interface back", &all));
        }
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failure::io(&file.display().to_string(), &error))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        let (path, settings) = (pod::path(request)?, fields.settings(request));
        let compare = || {
            settings.iter().try_for_each(|(key, wanted)| match sysctl::read(key) {
                Ok(value) if value.split_ascii_whitespace().eq(wanted.split_ascii_whitespace()) => Ok(()),
                Ok(value) => Err(changed(format!("the setting {key} is {value}, not {wanted}"))),
                Err(error) => Err(changed(format!("the setting {key}: {error}"))),
            })
        };
        netns::run(path, compare).map_err(|error| failure::io(&path.display().to_string(), &error))??;
        let mut net = Net::inside(path)?;
        let link =
            net.link(&request.ifname)?.ok_or_else(|| changed(format!("{} is gone", request.ifname)))?;
        let mac = settings::mac(request)?.map(|mac| settings::mac_text(&mac));
        let facts = [
            ("address", mac.is_none_or(|mac| mac == link.mac)),
            ("MTU", fields.mtu.is_none_or(|mtu| mtu == link.mtu)),
            ("length of the queue", fields.tx_queue_length.is_none_or(|length| length == link.queue_length)),
            ("promiscuous mode", fields.promisc.is_none_or(|on| !on || link.promiscuous)),
            ("multicast mode", fields.allmulti.is_none_or(|on| on == link.all_multicast)),
        ];
        match facts.iter().find(|(_, same)| !same) {
            Some((what, _)) => Err(changed(format!("the {what} of {} is not as set", link.name))),
            None => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Fields::of(request).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let directory = Fields::of(request)?.data_dir;
        let stale = owner::Stale::of(request);
        let Ok(files) = fs::read_dir(&directory) else { return Ok(()) };
        let mut first = Ok(());
        for file in files.filter_map(Result::ok).map(|file| file.path()) {
            let mark = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if stale.contains(mark)
                && let Err(error) = fs::remove_file(&file)
            {
                first = first.and(Err(failure::io(&file.display().to_string(), &error)));
            }
        }
        first
    }

    fn about(&self) -> String {
        "tuning: settings and properties of the pod's interface".to_owned()
    }
}
