// SPDX-License-Identifier: Apache-2.0
//! `dhcp`: an address that a DHCP server gives. A daemon asks for it in the pod's namespace, and prolongs it while the pod is there.

mod calls;
mod client;
mod daemon;
mod exchange;
mod flags;
mod lease;
mod record;
mod socket;
mod store;
mod tenancy;
mod wire;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::{Plugin, Request};
use isthmus_cni_kit::result::{AddResult, Ip, Route};
use serde::Deserialize;

use super::{fields, told};
use crate::failure::{changed, invalid};
use crate::net::{pod, route};
use calls::{Ask, Call, Key, Reply};
use lease::Lease;
use wire::Options;

pub(crate) use daemon::main as daemon;

/// More than a message holds beside everything else.
const PROVIDED_MAX: usize = 1024;
/// `RT_SCOPE_LINK`: of a route without a next hop.
const SCOPE_LINK: u32 = 253;
/// Names that dhcp-options(5) has and the Go plugin knows.
const NAMES: [(&str, u8); 6] = [
    ("dhcp-client-identifier", wire::code::CLIENT_ID),
    ("subnet-mask", wire::code::SUBNET_MASK),
    ("routers", wire::code::ROUTER),
    ("host-name", 12),
    ("user-class", 77),
    ("vendor-class-identifier", 60),
];
/// What the client itself says.
const OWN: [u8; 7] = [
    0,
    wire::code::REQUESTED_ADDRESS,
    wire::code::OVERLOAD,
    wire::code::KIND,
    wire::code::SERVER,
    wire::code::WANTED,
    u8::MAX,
];

/// Fields of `ipam`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    daemon_socket_path: PathBuf,
    #[serde(default)]
    provide: Vec<Provided>,
    #[serde(default)]
    request: Vec<Requested>,
    /// Metric of the routes; 0 leaves it to the kernel.
    #[serde(default)]
    priority: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provided {
    option: String,
    #[serde(default)]
    value: String,
    /// The key of `CNI_ARGS` that has the value.
    #[serde(default)]
    from_arg: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Requested {
    #[serde(default)]
    skip_default: bool,
    #[serde(default)]
    option: String,
}

fn option_code(text: &str) -> Result<u8, Error> {
    let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
    named.or_else(|| text.parse().ok()).ok_or_else(|| {
        let names = NAMES.map(|(name, _)| name).join(", ");
        invalid(format!("the DHCP option {text:?} is neither a number to 255 nor one of {names}"))
    })
}

impl Fields {
    fn of(request: &Request) -> Result<Self, Error> {
        let mut fields: Self = fields(request)?;
        if fields.daemon_socket_path.as_os_str().is_empty() {
            fields.daemon_socket_path = calls::SOCKET.into();
        }
        fields.requested()?;
        fields.provided(|_| None)?;
        Ok(fields)
    }

    /// Options to send. A value of `CNI_ARGS` goes before one of the configuration.
    fn provided<'a>(&self, args: impl Fn(&str) -> Option<&'a str>) -> Result<Options, Error> {
        let mut options = Options::new();
        for one in &self.provide {
            let code = option_code(&one.option)?;
            if OWN.contains(&code) {
                return Err(invalid(format!("the DHCP option {:?} is the client's own to send", one.option)));
            }
            let value = args(&one.from_arg).unwrap_or(&one.value);
            if value.len() > 255 {
                return Err(invalid(format!(
                    "the value of the DHCP option {:?} is longer than 255 bytes",
                    one.option
                )));
            }
            if !value.is_empty() {
                options.insert(code, value.into());
            }
        }
        match options.values().map(Vec::len).sum::<usize>() > PROVIDED_MAX {
            true => {
                Err(invalid(format!("values of DHCP options have more than {PROVIDED_MAX} bytes together")))
            }
            false => Ok(options),
        }
    }

    /// Codes of the options to ask for.
    fn requested(&self) -> Result<Vec<u8>, Error> {
        let named = self.request.iter().filter(|one| !one.option.is_empty());
        let mut codes: Vec<u8> = named.map(|one| option_code(&one.option)).collect::<Result<_, _>>()?;
        if !self.request.iter().any(|one| one.skip_default) {
            codes.extend([wire::code::ROUTER, wire::code::SUBNET_MASK]);
        }
        let mut seen = std::collections::BTreeSet::new();
        codes.retain(|code| seen.insert(*code));
        Ok(codes)
    }

    fn ask(&self, call: &Call) -> Result<Reply, Error> {
        calls::ask(&self.daemon_socket_path, call)
    }
}

fn key(request: &Request) -> Key {
    Key {
        network: request.config.name().to_owned(),
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    }
}

/// The daemon may work in another directory.
fn from_the_root(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| crate::failure::io(&path.display().to_string(), &error))
}

/// What the plugin prints.
fn result(lease: &Lease, priority: u32) -> AddResult {
    let ip = Ip {
        interface: None,
        address: lease.address.into(),
        gateway: lease.gateway.map(Into::into),
        extra: serde_json::Map::new(),
    };
    let route = |(dst, via): &(Ipv4Net, Ipv4Addr)| Route {
        // As the Go plugin writes it.
        scope: via.is_unspecified().then_some(SCOPE_LINK),
        priority: Some(priority).filter(|priority| *priority > 0),
        ..route::plain((*dst).into(), Some((*via).into()))
    };
    AddResult { ips: vec![ip], routes: lease.routes.iter().map(route).collect(), ..AddResult::default() }
}

/// The plugin.
pub(crate) struct Dhcp;

impl Plugin for Dhcp {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let fields = Fields::of(request)?;
        let ask = Ask {
            key: key(request),
            netns: from_the_root(pod::path(request)?)?,
            provide: fields.provided(|name| request.args.get(name))?,
            request: fields.requested()?,
        };
        match fields.ask(&Call::Allocate(ask))? {
            Reply::Lease(lease) => Ok(told(request, result(&lease, fields.priority))),
            other => Err(Error::new(code::DECODING, format!("the daemon answered ADD with {other:?}"))),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        match Fields::of(request)?.ask(&Call::Release(key(request))) {
            // Nobody prolongs the lease then: it ends by itself.
            Err(error) if error.code == code::UNAVAILABLE => Ok(()),
            other => other.map(drop),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let fields = Fields::of(request)?;
        let before = request.config.prev_result()?;
        match (fields.ask(&Call::Check(key(request)))?, before) {
            (Reply::Lease(lease), Some(result))
                if result.ips.iter().all(|ip| ip.address != lease.address.into()) =>
            {
                Err(changed(format!("the lease is of {}, which is not in the result of ADD", lease.address)))
            }
            _ => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Fields::of(request)?.ask(&Call::Status).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid =
            request.valid_attachments.iter().map(|one| (one.container_id.clone(), one.ifname.clone()));
        let call = Call::Collect { network: request.config.name().to_owned(), valid: valid.collect() };
        Fields::of(request)?.ask(&call).map(drop)
    }

    fn about(&self) -> String {
        "dhcp: an address that a DHCP server gives; `dhcp daemon` keeps it".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Fields {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn options_are_named_or_numbered_and_values_of_the_caller_go_before() {
        let fields = read(serde_json::json!({
            "provide": [{ "option": "host-name", "value": "web" }, { "option": "60", "value": "x", "fromArg": "CLASS" }],
            "request": [{ "option": "121" }, { "option": "routers" }],
        }));
        let provided = fields.provided(|name| (name == "CLASS").then_some("pod")).unwrap();
        assert_eq!(provided, Options::from([(12, b"web".to_vec()), (60, b"pod".to_vec())]));
        assert_eq!(fields.requested().unwrap(), [121, 3, 1]);
        let alone =
            read(serde_json::json!({ "request": [{ "skipDefault": true, "option": "subnet-mask" }] }));
        assert_eq!(alone.requested().unwrap(), [1]);
    }

    #[test]
    fn an_option_that_cannot_be_sent_is_refused_with_code_7() {
        for (option, value) in [("colour", "x"), ("256", "x"), ("53", "x"), ("12", &*"x".repeat(256))] {
            let fields = read(serde_json::json!({ "provide": [{ "option": option, "value": value }] }));
            assert_eq!(fields.provided(|_| None).map_err(|error| error.code), Err(7), "{option}");
        }
        let long = "x".repeat(255);
        let many: Vec<_> = (100..106)
            .map(|code: u8| serde_json::json!({ "option": code.to_string(), "value": long }))
            .collect();
        assert!(read(serde_json::json!({ "provide": many })).provided(|_| None).is_err());
    }
}
