// SPDX-License-Identifier: Apache-2.0
//! What the CNI library reads: configurations, lists, results, arguments.

use isthmus_cni_kit::config::args::Args;
use isthmus_cni_kit::config::list::NetworkList;
use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::names::check_network_name;
use isthmus_cni_kit::result::AddResult;
use isthmus_cni_kit::runtime::derive;
use isthmus_cni_kit::version::Version;
use serde_json::{Map, Value, json};

use crate::Seed;

pub(crate) fn run(bytes: &[u8]) {
    match NetConf::parse(bytes) {
        Ok(config) => {
            // Reading the parts may fail; it must not panic.
            let _ = (config.dns().is_ok(), config.prev_result().is_ok(), config.valid_attachments().is_ok());
            let _ = (config.ipam_type(), config.has_capability("mac"), config.arg("ips"));
        }
        Err(error) => is_told(&error),
    }
    match NetworkList::parse(bytes, Version::NEWEST) {
        Ok(list) => requests_are_clean(&list),
        Err(error) => is_told(&error),
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(args) = Args::parse(text)
    {
        assert!(args.iter().all(|(key, value)| args.get(key) == Some(value)));
    }
    if let Ok(json) = serde_json::from_slice::<Value>(bytes) {
        results(&json);
        let _ = Error::from_json(&json);
    }
}

fn is_told(error: &Error) {
    let known = [code::INCOMPATIBLE_VERSION, code::INVALID_ENVIRONMENT, code::DECODING, code::INVALID_CONFIG];
    assert!(known.contains(&error.code), "{error}");
    assert_eq!(Error::from_json(&error.to_json(Version::NEWEST)).as_ref(), Some(error));
}

/// No plugin is sent what is the runtime's own, and each is sent the list's name and version.
fn requests_are_clean(list: &NetworkList) {
    assert!(check_network_name(&list.name).is_ok());
    let supplied: Map<String, Value> = [("mac".to_owned(), json!("02:00:00:00:00:01"))].into_iter().collect();
    for plugin in &list.plugins {
        let request = derive::request(list, plugin, &supplied, None);
        assert!(
            request
                .keys()
                .all(|key| !key.starts_with("cni.dev/") && key != "capabilities" && key != "prevResult")
        );
        assert_eq!((&request["name"], &request["cniVersion"]), (&json!(list.name), &json!(list.version)));
    }
}

/// What is read is written in every version, and in the one that can express all it reads back as it was.
fn results(json: &Value) {
    let Ok((_, result)) = AddResult::from_json(json, Version::NEWEST) else { return };
    for version in Version::ALL {
        if let Ok(written) = result.to_json(version) {
            assert_eq!(written["cniVersion"], version.as_str());
            assert!(AddResult::from_json(&written, version).is_ok(), "{written} cannot be read back");
        }
    }
    let written = result.to_json(Version::NEWEST).expect("the newest version expresses all of it");
    let (_, again) = AddResult::from_json(&written, Version::NEWEST).expect("it is a result");
    assert_eq!(again, result);
}

pub(crate) fn seeds() -> Vec<Seed> {
    let list = json!({
        "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "pods", "disableCheck": "true",
        "plugins": [
            { "type": "bridge", "ipam": { "type": "host-local" }, "cni.dev/x": 1 },
            { "type": "tuning", "capabilities": { "mac": true }, "prevResult": {} },
        ],
    });
    let result = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1400, "sandbox": "/run/netns/x", "own": 1 }],
        "ips": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 0 }, { "address": "fd00::5/64" }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "table": 7 }],
        "dns": { "nameservers": ["10.1.0.1"], "search": ["a.b"] },
    });
    let older = json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{ "dst": "0.0.0.0/0" }] } });
    let gc = json!({ "cniVersion": "1.1.0", "name": "n", "type": "t", "cni.dev/attachments": [{ "containerID": "c", "ifname": "eth0" }] });
    vec![
        ("list", list.to_string().into_bytes()),
        ("result", result.to_string().into_bytes()),
        ("result-0.2.0", older.to_string().into_bytes()),
        ("gc", gc.to_string().into_bytes()),
        ("args", b"IgnoreUnknown=1;IP=10.1.0.7;K8S_POD_NAME=web".to_vec()),
        ("error", br#"{"cniVersion":"1.0.0","code":11,"msg":"busy"}"#.to_vec()),
    ]
}
