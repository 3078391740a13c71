// SPDX-License-Identifier: Apache-2.0
//! The checks, each on containers of its own, which it deletes again.

use anyhow::{Result, bail};
use isthmus_cni_kit::result::AddResult;
use isthmus_cni_kit::runtime::exec::Output;
use isthmus_cni_kit::version::Version;
use serde_json::{Value, json};

use super::Verdict::{Failed, Passed, Skipped};
use super::{Attachment, Subject, Verdict};

type Ask = fn(&Subject, &[Version]) -> Result<Verdict>;

/// What is asked, the clause of CNI 1.1.0, and how.
pub(super) const ALL: &[(&str, &str, Ask)] = &[
    ("VERSION needs no other variable", "2, VERSION", version_alone),
    ("an unknown CNI_COMMAND is an error object", "2, Errors", unknown_command),
    ("an error object says its cniVersion", "2, Errors", error_version),
    (
        "ADD without CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME is error 4",
        "2, Parameters; Errors",
        missing_variables,
    ),
    ("a version that nobody speaks is error 1", "2, Errors", unknown_version),
    ("a configuration that is no JSON is error 6", "2, Errors", no_json),
    ("a container ID with a slash is refused", "2, Parameters", bad_container_id),
    ("ADD makes CNI_IFNAME in CNI_NETNS and says so", "2, ADD; 5, ADD Success", add_makes_the_interface),
    ("ADD answers in the version that it is asked in, each of its own", "5, ADD Success", every_version),
    ("ADD for an interface that is there is an error", "2, ADD", add_twice),
    ("ADD that failed leaves the other container as it was", "2, ADD", add_twice_keeps),
    ("CHECK after ADD succeeds", "2, CHECK", check_after_add),
    ("CHECK finds that the interface is gone", "2, CHECK", check_after_link_loss),
    ("CHECK finds that the address is gone", "2, CHECK", check_after_address_loss),
    ("DEL takes the interface away, and again succeeds", "2, DEL", del_twice),
    ("DEL succeeds without prevResult", "2, DEL", del_without_result),
    ("DEL succeeds without CNI_NETNS", "2, DEL", del_without_netns),
    ("DEL succeeds when the namespace is gone", "2, DEL", del_after_netns),
    ("DEL of a container that was never added succeeds", "2, DEL", del_of_nobody),
    ("addresses of containers added side by side differ", "2, Parameters; 4", side_by_side),
    ("an address is free again after DEL without CNI_NETNS", "2, DEL; 4", address_returns),
    ("STATUS succeeds where ADD does, and prints nothing", "2, STATUS", status),
    ("GC frees what is not valid, keeps what is, and prints nothing", "2, GC", gc),
];

/// A failure with an object on standard output that has a code and a message; that code.
fn error_code(output: &Output) -> Result<u64> {
    if output.success {
        bail!("it succeeded");
    }
    let Ok(json) = serde_json::from_slice::<Value>(&output.stdout) else {
        bail!("it failed without an error object on standard output");
    };
    match json["code"].as_u64() {
        Some(code) if json["msg"].is_string() => Ok(code),
        _ => bail!("the error object lacks code or msg: {json}"),
    }
}

fn is_code(output: &Output, wanted: u64) -> Result<Verdict> {
    let code = error_code(output)?;
    Ok(if code == wanted { Passed } else { Failed(format!("the error has code {code}, not {wanted}")) })
}

/// Deletes what a check made, whatever came of it.
fn tidy(subject: &Subject, of: &Attachment, verdict: Result<Verdict>) -> Result<Verdict> {
    // A DEL that fails is the finding of other checks.
    let _ = subject.call("DEL", of, &json!({}));
    verdict
}

/// Adds a container, asks, deletes.
fn added(
    subject: &Subject,
    id: &str,
    ask: impl FnOnce(&Attachment, &Value) -> Result<Verdict>,
) -> Result<Verdict> {
    if let Some(why) = &subject.cannot_add {
        return Ok(Skipped(why.clone()));
    }
    let of = Attachment::new(id)?;
    let verdict = subject.add(&of).and_then(|result| ask(&of, &result));
    tidy(subject, &of, verdict)
}

fn version_alone(subject: &Subject, versions: &[Version]) -> Result<Verdict> {
    if versions.is_empty() {
        return Ok(Failed("it names no version of the specification".to_owned()));
    }
    let env = [("CNI_COMMAND".to_owned(), "VERSION".to_owned())].into();
    let output = subject.raw(env, subject.stdin(&json!({})))?;
    let json: Value = serde_json::from_slice(&output.stdout)?;
    let named = json["cniVersion"].is_string() && json["supportedVersions"].is_array();
    Ok(if output.success && named { Passed } else { Failed(format!("it printed {json}")) })
}

fn unknown_command(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    let of = Attachment::new("c-command")?;
    is_code(&subject.call("ABOLISH", &of, &json!({}))?, 4)
}

fn error_version(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    let of = Attachment::new("c-errors")?;
    let output = subject.call("ABOLISH", &of, &json!({}))?;
    error_code(&output)?;
    let json: Value = serde_json::from_slice(&output.stdout)?;
    Ok(if json["cniVersion"].is_string() { Passed } else { Failed(format!("it is {json}")) })
}

fn missing_variables(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    for missing in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let of = Attachment::new("c-missing")?;
        let mut env = of.env("ADD");
        env.insert("CNI_PATH".to_owned(), subject.path());
        env.remove(missing);
        match is_code(&subject.raw(env, subject.stdin(&json!({})))?, 4)? {
            Passed => {}
            other => return Ok(other),
        }
    }
    Ok(Passed)
}

fn unknown_version(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    let of = Attachment::new("c-version")?;
    let output = subject.call("ADD", &of, &json!({ "cniVersion": "99.0.0" }))?;
    tidy(subject, &of, is_code(&output, 1))
}

fn no_json(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    let of = Attachment::new("c-json")?;
    let mut env = of.env("ADD");
    env.insert("CNI_PATH".to_owned(), subject.path());
    is_code(&subject.raw(env, b"{\"cniVersion\":".to_vec())?, 6)
}

fn bad_container_id(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    let of = Attachment::new("../c")?;
    let output = subject.call("ADD", &of, &json!({}))?;
    tidy(subject, &of, error_code(&output).map(|_| Passed))
}

fn add_makes_the_interface(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    if let Some(why) = &subject.cannot_add {
        return Ok(Failed(why.clone()));
    }
    added(subject, "c-add", |of, result| {
        let there = of.space.interfaces()?;
        if there != ["eth0"] {
            return Ok(Failed(format!("the namespace has {there:?}")));
        }
        if result["cniVersion"] != subject.version.as_str() {
            return Ok(Failed(format!("the result has cniVersion {}", result["cniVersion"])));
        }
        let (_, result) = AddResult::from_json(result, subject.version)?;
        let inside =
            |one: &isthmus_cni_kit::result::Interface| one.name == "eth0" && one.sandbox == of.space.path();
        if subject.version.has_interfaces() && !result.interfaces.iter().any(inside) {
            return Ok(Failed("interfaces has no eth0 whose sandbox is CNI_NETNS".to_owned()));
        }
        let out =
            |ip: &isthmus_cni_kit::result::Ip| ip.interface.is_some_and(|at| at >= result.interfaces.len());
        Ok(match result.ips.iter().any(out) {
            true => Failed("an address names an interface that the result does not have".to_owned()),
            false => Passed,
        })
    })
}

fn every_version(subject: &Subject, versions: &[Version]) -> Result<Verdict> {
    if let Some(why) = &subject.cannot_add {
        return Ok(Skipped(why.clone()));
    }
    let mut wrong = Vec::new();
    for version in versions {
        let of = Attachment::new("c-versions")?;
        let more = json!({ "cniVersion": version });
        let printed =
            subject.expect("ADD", &of, &more).and_then(|out| Ok(serde_json::from_slice::<Value>(&out)?));
        let _ = subject.call("DEL", &of, &more);
        match printed {
            Ok(json) if json["cniVersion"] == version.as_str() => {
                wrong.extend(foreign_shape(&json, *version).map(|what| format!("{version}: {what}")));
            }
            Ok(json) => wrong.push(format!("{version}: answered in {}", json["cniVersion"])),
            Err(error) => wrong.push(format!("{version}: {error:#}")),
        }
    }
    Ok(if wrong.is_empty() { Passed } else { Failed(wrong.join("; ")) })
}

/// What a result has that its version does not, or lacks that it must have.
fn foreign_shape(result: &Value, version: Version) -> Option<&'static str> {
    let has = |key: &str| result.get(key).is_some_and(|value| !value.is_null());
    let families = |ip: &Value| matches!(ip["version"].as_str(), Some("4" | "6"));
    if !version.has_interfaces() {
        return (has("ips") || has("interfaces"))
            .then_some("it has ips or interfaces, which came with 0.3.0");
    }
    if has("ip4") || has("ip6") {
        return Some("it has ip4 or ip6, which ended with 0.2.0");
    }
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lacks = version < Version::V1_0_0 && !ips.iter().all(families);
    lacks.then_some("an address lacks its version, 4 or 6, which ended with 0.4.0")
}

fn add_twice(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    added(subject, "c-twice", |of, _| error_code(&subject.call("ADD", of, &json!({}))?).map(|_| Passed))
}

fn add_twice_keeps(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    added(subject, "c-keeps", |of, _| {
        let _ = subject.call("ADD", of, &json!({}))?;
        let there = of.space.interfaces()?;
        Ok(if there == ["eth0"] { Passed } else { Failed(format!("the namespace has {there:?} after it")) })
    })
}

fn with_check(subject: &Subject) -> Option<Verdict> {
    (!subject.version.has_check()).then(|| Skipped("CHECK came with 0.4.0".to_owned()))
}

fn check_after_add(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    if let Some(skipped) = with_check(subject) {
        return Ok(skipped);
    }
    added(subject, "c-check", |of, result| {
        subject.expect("CHECK", of, &json!({ "prevResult": result })).map(|_| Passed)
    })
}

fn check_after(subject: &Subject, id: &str, change: &'static [&'static str]) -> Result<Verdict> {
    if let Some(skipped) = with_check(subject) {
        return Ok(skipped);
    }
    added(subject, id, |of, result| {
        if change[0] == "address" && result["ips"].as_array().is_none_or(Vec::is_empty) {
            return Ok(Skipped("ADD gave no address".to_owned()));
        }
        of.space.ip(change)?;
        error_code(&subject.call("CHECK", of, &json!({ "prevResult": result }))?).map(|_| Passed)
    })
}

fn check_after_link_loss(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    check_after(subject, "c-link", &["link", "delete", "eth0"])
}

fn check_after_address_loss(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    check_after(subject, "c-address", &["address", "flush", "dev", "eth0"])
}

fn del_twice(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    added(subject, "c-del", |of, result| {
        let more = json!({ "prevResult": result });
        subject.expect("DEL", of, &more)?;
        let there = of.space.interfaces()?;
        if !there.is_empty() {
            return Ok(Failed(format!("after DEL the namespace has {there:?}")));
        }
        subject.expect("DEL", of, &more).map(|_| Passed)
    })
}

fn del_without_result(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    added(subject, "c-result", |of, _| subject.expect("DEL", of, &json!({})).map(|_| Passed))
}

/// DEL with another `CNI_NETNS`, or none.
fn del_with_netns(subject: &Subject, of: &Attachment, netns: Option<&str>) -> Result<Verdict> {
    let mut env = of.env("DEL");
    env.insert("CNI_PATH".to_owned(), subject.path());
    match netns {
        Some(path) => _ = env.insert("CNI_NETNS".to_owned(), path.to_owned()),
        None => _ = env.remove("CNI_NETNS"),
    }
    let output = subject.raw(env, subject.stdin(&json!({})))?;
    if output.success {
        return Ok(Passed);
    }
    Ok(Failed(isthmus_cni_kit::error::Error::of_output(&output.stdout, &output.stderr).to_string()))
}

fn del_without_netns(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    added(subject, "c-nonetns", |of, _| del_with_netns(subject, of, None))
}

fn del_after_netns(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    added(subject, "c-gone", |of, _| del_with_netns(subject, of, Some("/run/netns/isthmus-conformance-gone")))
}

fn del_of_nobody(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    let of = Attachment::new("c-nobody")?;
    subject.expect("DEL", &of, &json!({})).map(|_| Passed)
}

fn addresses(result: &Value, version: Version) -> Result<Vec<String>> {
    let (_, result) = AddResult::from_json(result, version)?;
    Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
}

fn side_by_side(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    if let Some(why) = &subject.cannot_add {
        return Ok(Skipped(why.clone()));
    }
    let all: Vec<Attachment> =
        (0..8).map(|number| Attachment::new(&format!("c-side{number}"))).collect::<Result<_>>()?;
    // Each in a thread of the node's namespace, which threads inherit.
    let results: Vec<Result<Value>> = std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|of| scope.spawn(|| subject.add(of))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a call ended early")))
            .collect()
    });
    let mut taken = Vec::new();
    let mut wrong = Vec::new();
    for result in results {
        match result.and_then(|result| addresses(&result, subject.version)) {
            Ok(addresses) => taken.extend(addresses),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    for of in &all {
        let _ = subject.call("DEL", of, &json!({}));
    }
    let count = taken.len();
    taken.sort();
    taken.dedup();
    if taken.len() < count {
        wrong.push(format!("{} of {count} addresses were given twice", count - taken.len()));
    }
    Ok(if wrong.is_empty() { Passed } else { Failed(wrong.join("; ")) })
}

fn address_returns(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    if let Some(why) = &subject.cannot_add {
        return Ok(Skipped(why.clone()));
    }
    let mut distinct = Vec::new();
    for round in 0..300 {
        let of = Attachment::new(&format!("c-return{round}"))?;
        let result = match subject.add(&of) {
            Ok(result) => addresses(&result, subject.version)?,
            Err(error) => return Ok(Failed(format!("after {round} rounds of ADD and DEL: {error:#}"))),
        };
        if result.is_empty() {
            return tidy(subject, &of, Ok(Skipped("ADD gave no address".to_owned())));
        }
        if let Failed(why) = del_with_netns(subject, &of, None)? {
            return tidy(subject, &of, Ok(Failed(why)));
        }
        if result.iter().any(|address| distinct.contains(address)) {
            return Ok(Passed);
        }
        distinct.extend(result);
    }
    Ok(Failed("no address came back in 300 rounds".to_owned()))
}

fn status(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    if !subject.version.has_status() {
        return Ok(Skipped(format!(
            "it or its IPAM plugin speaks up to {}; STATUS came with 1.1.0",
            subject.version
        )));
    }
    let env = [("CNI_COMMAND", "STATUS".to_owned()), ("CNI_PATH", subject.path())];
    let output =
        subject.raw(env.map(|(key, value)| (key.to_owned(), value)).into(), subject.stdin(&json!({})))?;
    if !output.success {
        return Ok(Failed(
            isthmus_cni_kit::error::Error::of_output(&output.stdout, &output.stderr).to_string(),
        ));
    }
    Ok(if output.stdout.trim_ascii().is_empty() { Passed } else { Failed("it printed something".to_owned()) })
}

fn gc(subject: &Subject, _: &[Version]) -> Result<Verdict> {
    if !subject.version.has_gc() {
        return Ok(Skipped(format!(
            "it or its IPAM plugin speaks up to {}; GC came with 1.1.0",
            subject.version
        )));
    }
    added(subject, "c-valid", |kept, kept_result| {
        let stale = Attachment::new("c-stale")?;
        let stale_result = subject.add(&stale)?;
        let valid = json!([{ "containerID": kept.id, "ifname": "eth0" }]);
        let more = json!({ "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid });
        let env = [("CNI_COMMAND", "GC".to_owned()), ("CNI_PATH", subject.path())];
        let output =
            subject.raw(env.map(|(key, value)| (key.to_owned(), value)).into(), subject.stdin(&more))?;
        let verdict = after_gc(subject, &output, (kept, kept_result), (&stale, &stale_result));
        tidy(subject, &stale, verdict)
    })
}

fn after_gc(
    subject: &Subject,
    output: &Output,
    (kept, kept_result): (&Attachment, &Value),
    (stale, stale_result): (&Attachment, &Value),
) -> Result<Verdict> {
    if !output.success {
        let why = isthmus_cni_kit::error::Error::of_output(&output.stdout, &output.stderr);
        return Ok(Failed(why.to_string()));
    }
    if !output.stdout.trim_ascii().is_empty() {
        return Ok(Failed("it printed something".to_owned()));
    }
    let still = subject.call("CHECK", kept, &json!({ "prevResult": kept_result }))?;
    if !still.success {
        return Ok(Failed("the valid attachment fails CHECK after it".to_owned()));
    }
    let freed = subject.call("CHECK", stale, &json!({ "prevResult": stale_result }))?;
    Ok(if freed.success { Failed("the stale attachment is as it was".to_owned()) } else { Passed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_in_the_shape_of_another_version_is_found() {
        let newest = json!({ "interfaces": [{ "name": "eth0" }], "ips": [{ "address": "10.0.0.2/24" }] });
        assert!(foreign_shape(&newest, Version::V0_2_0).is_some());
        assert!(foreign_shape(&newest, Version::V0_4_0).is_some());
        assert_eq!(foreign_shape(&newest, Version::V1_0_0), None);
        let with_family = json!({ "ips": [{ "version": "4", "address": "10.0.0.2/24" }] });
        assert_eq!(foreign_shape(&with_family, Version::V0_3_1), None);
        let oldest = json!({ "ip4": { "ip": "10.0.0.2/24" } });
        assert_eq!(foreign_shape(&oldest, Version::V0_1_0), None);
        assert!(foreign_shape(&oldest, Version::V1_1_0).is_some());
    }
}
