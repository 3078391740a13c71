// SPDX-License-Identifier: Apache-2.0
//! The network configuration: as the agent reads it, and as the plugin looks for the version in it.

use std::path::Path;

use isthmus_cni::SUPPORTED_VERSIONS;
use isthmus_cni::plugin::{self, Outcome};
use isthmus_cni::wire::Request;
use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::names::check_network_name;
use isthmus_cni_kit::version::Version;
use serde_json::Value;

use crate::Seed;
use crate::private::cni::call::read_config;

const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

pub(crate) fn run(bytes: &[u8]) {
    let read = COMMANDS.map(|command| read_config(bytes, command));
    let [add, del, check, gc, status, _] = &read;
    for outcome in &read {
        match outcome {
            Ok(config) => holds(config),
            Err(error) => is_told(error),
        }
    }
    assert_eq!(add.is_ok(), del.is_ok());
    assert_eq!(gc.is_ok(), status.is_ok());
    assert!(add.is_ok() || check.is_err(), "CHECK is younger than ADD");
    assert!(check.is_ok() || gc.is_err(), "GC is younger than CHECK");
    let spoken = spoken_version(bytes);
    // The plugin has no parser of JSON: it knows no escapes, and takes no text that is not UTF-8.
    let plain = std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\\'));
    if let Ok(config) = add
        && plain
    {
        assert_eq!(spoken, config.version().as_str(), "plugin and agent see different versions");
    }
}

fn holds(config: &NetConf) {
    assert!(SUPPORTED_VERSIONS.contains(&config.version().as_str()));
    assert!(check_network_name(config.name()).is_ok() && !config.name().contains('/'));
}

fn is_told(error: &Error) {
    assert!([code::DECODING, code::INCOMPATIBLE_VERSION, code::INVALID_CONFIG].contains(&error.code));
    let object = error.to_json(Version::NEWEST);
    assert_eq!(object["code"], error.code);
    assert_eq!(object["msg"], error.msg.as_str());
}

/// The version that the plugin answers in, to VERSION and in its own errors. It asks nobody for these.
fn spoken_version(stdin: &[u8]) -> String {
    let ask = |command: &str| {
        let env = vec![("CNI_COMMAND".to_owned(), command.to_owned())];
        plugin::run(&Request { env, stdin: stdin.to_vec() }, Path::new("/nonexistent"))
    };
    let version = |outcome: Outcome| {
        let object: Value = serde_json::from_slice(&outcome.stdout).expect("an object");
        object["cniVersion"].as_str().expect("a version").to_owned()
    };
    let told = version(ask("VERSION"));
    assert_eq!(version(ask("MOVE \"\\\u{7}")), told);
    assert_eq!(version(ask("ADD")), told);
    assert!(SUPPORTED_VERSIONS.contains(&told.as_str()));
    told
}

pub(crate) fn seeds() -> Vec<Seed> {
    let gc = r#"{"cniVersion":"1.1.0","name":"isthmus","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}],"cni.dev/attachments":[]}"#;
    let nested = r#"{ "a": {"cniVersion": "9.9.9"}, "b": ["cniVersion", "8"], "c": "cniVersion", "cniVersion" : "1.0.0", "name":"x" }"#;
    vec![
        ("add", br#"{"cniVersion":"0.4.0","name":"isthmus","type":"isthmus-cni","prevResult":{"ips":[{"address":"10.1.0.5/32"}]}}"#.to_vec()),
        ("gc", gc.into()),
        ("nested-version", nested.into()),
        ("escaped-version", br#"{"cni\u0056ersion":"1\u002e0.0","name":"x"}"#.to_vec()),
        ("no-version", br#"{"name":"isthmus"}"#.to_vec()),
        ("bad-name", br#"{"cniVersion":"1.1.0","name":"../x"}"#.to_vec()),
        ("not-closed", br#"{"cniVersion":"1.0.0"#.to_vec()),
        ("brackets", b"}}}]]{\"\\\"".to_vec()),
    ]
}
