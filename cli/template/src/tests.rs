// SPDX-License-Identifier: Apache-2.0
//! Calls without a process, without root and without a kernel: ip(8) and the IPAM plugin are played.

use std::cell::RefCell;
use std::path::Path;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::run;
use isthmus_cni_kit::runtime::exec::{Call, Exec};
use serde_json::{Value, json};

use crate::plugin::{EXISTS, Veth};

/// Notes what it is asked, and gives 10.0.0.2.
#[derive(Default)]
struct Ipam(RefCell<Vec<String>>);

impl Exec for Ipam {
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
        self.0.borrow_mut().push(call.env["CNI_COMMAND"].clone());
        let ips = json!([{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]);
        let given = json!({"cniVersion": "1.1.0", "ips": ips, "routes": [{"dst": "0.0.0.0/0"}]});
        Ok(given.to_string().into_bytes())
    }
}

/// Calls the plugin for eth0 of a container that has the interface `there`; the command of ip(8) with `failing` in it fails. Returns
/// what was printed, what ip(8) was told (`+` inside the container), and what the IPAM plugin was asked.
fn call(command: &str, there: &str, failing: &str, more: &Value) -> (Value, Vec<String>, Vec<String>) {
    let told = RefCell::new(Vec::<String>::new());
    let ip = |netns: Option<&Path>, words: &str| {
        if words.starts_with("-json") {
            // Every word of the command that made the pair passes for an interface.
            let pair = told.borrow().iter().find(|line| line.starts_with("link add")).cloned();
            let names = pair.unwrap_or(there.to_owned());
            let links = names.split(' ').map(|name| json!({"ifname": name, "mtu": 1400}));
            return Ok(Value::from_iter(links).to_string());
        }
        told.borrow_mut().push(format!("{}{words}", netns.map_or("", |_| "+")));
        if words.contains(failing) { Err(Error::new(100, "no")) } else { Ok(String::new()) }
    };
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "plug", "unknown": 1});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/none"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let (ipam, mut stdout) = (Ipam::default(), Vec::new());
    let plugin = Veth { ip: &ip, exec: &ipam };
    run(&plugin, &env, &mut config.to_string().as_bytes(), &mut stdout, &mut Vec::new());
    (serde_json::from_slice(&stdout).unwrap_or_default(), told.take(), ipam.0.take())
}

const NOTHING: &str = "no such command";

#[test]
fn add_makes_a_pair_with_the_addresses_of_the_ipam_plugin() {
    let (result, ip, ipam) = call("ADD", "", NOTHING, &json!({"ipam": {"type": "pool"}}));
    assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/none", "{result}");
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]));
    assert!(ip.contains(&"+address add 10.0.0.2/32 dev eth0 ".to_owned()), "{ip:?}");
    assert_eq!(ipam, ["ADD"]);
}

#[test]
fn add_that_fails_half_way_takes_the_pair_and_the_addresses_back() {
    let (error, ip, ipam) = call("ADD", "", "route add", &json!({"ipam": {"type": "pool"}}));
    assert_eq!((&error["code"], ipam), (&json!(100), vec!["ADD".to_owned(), "DEL".to_owned()]));
    assert!(ip.last().is_some_and(|last| last.starts_with("link delete dev veth")), "{ip:?}");
}

#[test]
fn add_for_an_interface_that_is_there_touches_nothing() {
    let (error, ip, ipam) = call("ADD", "eth0", NOTHING, &json!({"ipam": {"type": "pool"}}));
    assert_eq!((&error["code"], ip.len(), ipam.len()), (&json!(EXISTS), 0, 0));
}

#[test]
fn in_a_chain_the_interface_is_set_up_and_the_result_handed_on() {
    let before = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}], "own": 1});
    let (result, ip, _) = call("ADD", "eth0", NOTHING, &json!({"mtu": 1400, "prevResult": before}));
    assert_eq!(ip, ["+link set dev eth0 mtu 1400"]);
    assert_eq!((&result["interfaces"][0]["mtu"], &result["own"]), (&json!(1400), &json!(1)));
}

#[test]
fn a_configuration_that_cannot_be_is_refused_with_code_7() {
    for more in [json!({}), json!({"mtu": "wide", "ipam": {"type": "pool"}})] {
        let (error, _, ipam) = call("ADD", "eth0", NOTHING, &more);
        assert_eq!((&error["code"], ipam.len()), (&json!(7), 0), "{more}");
    }
}

#[test]
fn del_succeeds_when_everything_is_gone() {
    let (printed, _, ipam) = call("DEL", "", "link delete", &json!({"ipam": {"type": "pool"}}));
    assert_eq!((printed, ipam), (Value::Null, vec!["DEL".to_owned()]));
}
