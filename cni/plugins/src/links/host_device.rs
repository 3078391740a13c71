// SPDX-License-Identifier: Apache-2.0
//! `host-device`: an interface of the host moves into the pod, and back.

use std::fs;
use std::path::{Path, PathBuf};

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::names::check_ifname;
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Interface};
use serde::Deserialize;

use super::lent::{self, lend};
use super::{Ipam, forward, in_pod, with_addresses};
use crate::failure::{self, invalid};
use crate::net::link::Link;
use crate::net::{Net, pod};
use crate::settings;

/// Fields of the configuration, of which one names the device.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    device: String,
    #[serde(default)]
    hwaddr: String,
    #[serde(default)]
    kernelpath: String,
    #[serde(default, rename = "pciBusID")]
    pci_bus_id: String,
    #[serde(default, rename = "DPDKMode")]
    dpdk_mode: bool,
}

/// How the device is found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Device {
    Name(String),
    Mac(String),
    KernelPath(PathBuf),
    Pci(String),
}

impl Fields {
    fn device(&self, request: &Request) -> Result<Device, Error> {
        let of_runtime = request.config.runtime_config("deviceID").and_then(|value| value.as_str());
        let pci = of_runtime.filter(|text| !text.is_empty()).unwrap_or(&self.pci_bus_id);
        let mut all = Vec::new();
        if !self.device.is_empty() {
            check_ifname(&self.device).map_err(|error| invalid(error.msg))?;
            all.push(Device::Name(self.device.clone()));
        }
        if !self.hwaddr.is_empty() {
            all.push(Device::Mac(settings::mac_text(&settings::parse_mac(&self.hwaddr)?)));
        }
        if !self.kernelpath.is_empty() {
            let path = Path::new(&self.kernelpath);
            if !path.starts_with("/sys/devices") || self.kernelpath.contains("..") {
                return Err(invalid("kernelpath is not below /sys/devices"));
            }
            all.push(Device::KernelPath(path.to_owned()));
        }
        if !pci.is_empty() {
            if pci.contains(['/', '\0']) || pci.contains("..") {
                return Err(invalid("pciBusID is no PCI address, such as 0000:01:00.0"));
            }
            all.push(Device::Pci(pci.to_owned()));
        }
        match (all.pop(), all.is_empty()) {
            (Some(device), true) => Ok(device),
            _ => Err(invalid("one of device, hwaddr, kernelpath and pciBusID has to name the interface")),
        }
    }
}

/// The interface's name below a device's directory in sysfs.
fn name_below(directory: &Path) -> Result<String, Error> {
    let mut entries =
        fs::read_dir(directory).map_err(|error| failure::io(&directory.display().to_string(), &error))?;
    let first = entries.next().and_then(Result::ok).and_then(|entry| entry.file_name().into_string().ok());
    first.ok_or_else(|| invalid(format!("{} has no interface", directory.display())))
}

fn find(device: &Device, host: &mut Net) -> Result<Link, Error> {
    match device {
        Device::Name(name) => host.named(name, "device"),
        Device::Mac(mac) => host
            .links()?
            .into_iter()
            .find(|link| link.mac.eq_ignore_ascii_case(mac))
            .ok_or_else(|| invalid(format!("hwaddr {mac}: there is no such interface"))),
        Device::KernelPath(path) => {
            let name = name_below(&path.join("net"))?;
            host.named(&name, "kernelpath")
        }
        Device::Pci(address) => {
            let name = name_below(&Path::new("/sys/bus/pci/devices").join(address).join("net"))?;
            host.named(&name, "pciBusID")
        }
    }
}

/// The plugin.
pub(crate) struct HostDevice;

fn take_in(request: &Request, device: &Device) -> Result<(), Error> {
    let netns = pod::open(request)?;
    let mut host = Net::here()?;
    let link = find(device, &mut host)?;
    lend(&mut host, &link, &netns, &request.ifname)
}

/// Moves the device back under its own name. What is not there, or did not come from here, is left.
fn give_back(request: &Request) -> Result<(), Error> {
    let Some(mut inside) = pod::inside_if_there(request)? else { return Ok(()) };
    let Some(link) = inside.link(&request.ifname)? else { return Ok(()) };
    lent::give_back(&mut inside, &link, None)
}

impl HostDevice {
    fn set_up(request: &Request, device: &Device, result: AddResult) -> Result<AddResult, Error> {
        let mut result = in_pod::set_up(request, result)?;
        if let (Device::Pci(address), Some(interface)) = (device, result.interfaces.first_mut()) {
            interface.pci_id = Some(address.clone());
        }
        Ok(result)
    }
}

impl Plugin for HostDevice {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields: Fields = request.config.settings()?;
        let device = fields.device(request)?;
        if let (true, Device::Pci(address)) = (fields.dpdk_mode, &device) {
            // A program of the pod drives it: there is no interface to move.
            let interface = Interface {
                name: request.ifname.clone(),
                sandbox: pod::sandbox(request),
                pci_id: Some(address.clone()),
                ..Interface::default()
            };
            let set_up = |(), result| Ok(AddResult { interfaces: vec![interface], ..result });
            return with_addresses(request, Ipam::Optional, || Ok(()), set_up, |_| Ok(()));
        }
        pod::refuse_taken(request)?;
        let set_up = |(), result| Self::set_up(request, &device, result);
        with_addresses(request, Ipam::Optional, || take_in(request, &device), set_up, give_back)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        give_back(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        forward(request)?;
        if request.config.settings::<Fields>()?.dpdk_mode {
            return Ok(());
        }
        pod::check(request, &pod::previous(request)?).map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        // Which device it is may come with each ADD.
        request.config.settings::<Fields>()?;
        forward(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        forward(request)
    }

    fn about(&self) -> String {
        "host-device: an interface of the host moves into the pod, and back".to_owned()
    }
}
