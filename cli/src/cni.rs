// SPDX-License-Identifier: Apache-2.0
//! `isthmus cni`, also `cnitool`: takes a network namespace through a list of CNI plugins, in any language. Variables and arguments
//! are those of the Go project's cnitool.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use isthmus_cni_kit::config::args::Args;
use isthmus_cni_kit::config::list::NetworkList;
use isthmus_cni_kit::config::load;
use isthmus_cni_kit::config::net_conf::Attachment;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::result::VersionResult;
use isthmus_cni_kit::runtime::cache::Cache;
use isthmus_cni_kit::runtime::chain::{Container, Runtime};
use isthmus_cni_kit::runtime::exec::{Call, Exec, Programs, find};
use isthmus_cni_kit::version::Version;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::args::{Cni, CniCommand, CniNetwork, Output};
use crate::out::{put, say};
use crate::scaffold;
use isthmus_cni_conformance::{self as conformance, Verdict};

/// Carries a command out. Returns the exit code.
pub(crate) fn run(cni: &Cni) -> Result<u8> {
    let path: Vec<PathBuf> =
        std::env::split_paths(&cni.path).filter(|dir| !dir.as_os_str().is_empty()).collect();
    let programs = Programs { path: path.clone(), deadline: Duration::from_secs(cni.timeout_s) };
    let cache = Cache::new(&cni.cache_dir);
    let runtime = Runtime { exec: &programs, cache: &cache, path: path.clone() };
    match &cni.command {
        CniCommand::Add(of) => {
            let result = runtime.add_or_undo(&list(cni, &of.network)?, &container(cni, of)?)?;
            print(&result)?;
        }
        CniCommand::Check(of) => runtime.check(&list(cni, &of.network)?, &container(cni, of)?)?,
        CniCommand::Del(of) => runtime.del(&list(cni, &of.network)?, &container(cni, of)?)?,
        CniCommand::Status { network, .. } => runtime.status(&list(cni, network)?)?,
        CniCommand::Gc { network, keep, .. } => {
            let keep = keep.iter().map(|text| attachment(text)).collect::<Result<Vec<_>>>()?;
            if let Err(errors) = runtime.gc(&list(cni, network)?, &keep) {
                errors.iter().for_each(|error| eprintln!("isthmus: {error}"));
                return Ok(crate::NOT_READY);
            }
        }
        CniCommand::Version { plugin } => print(&version(&programs, plugin)?)?,
        CniCommand::Conformance { config, output } => return conformance(programs, config, *output),
        CniCommand::New { name, dir, kit } => {
            put!("{}", scaffold::write(name, dir.as_deref(), kit.as_deref())?)
        }
        CniCommand::Explain { of, call } => print(&explain(cni, of, call, path)?)?,
    }
    Ok(crate::OK)
}

fn print(json: &Value) -> Result<()> {
    say!("{}", serde_json::to_string_pretty(json)?);
    Ok(())
}

fn list(cni: &Cni, network: &str) -> Result<NetworkList> {
    load::find(&cni.conf_dir, network, Version::NEWEST)
        .with_context(|| format!("network {network:?} in {}", cni.conf_dir.display()))
}

fn container(cni: &Cni, of: &CniNetwork) -> Result<Container> {
    let args = Args::parse(&cni.args)?.into();
    let capability_args: Map<String, Value> = match cni.capability_args.as_str() {
        "" => Map::new(),
        text => serde_json::from_str(text).context("CAP_ARGS is not a JSON object")?,
    };
    let id = cni.container_id.clone().unwrap_or_else(|| container_id(&of.netns));
    Ok(Container { id, netns: of.netns.clone(), ifname: cni.ifname.clone(), args, capability_args })
}

/// Derived from the namespace's path, by the rule of the Go project's cnitool: the first ten bytes of its SHA-512.
fn container_id(netns: &str) -> String {
    let hash = Sha512::digest(netns);
    let hex: Vec<String> = hash[..10].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("cnitool-{}", hex.concat())
}

fn attachment(text: &str) -> Result<Attachment> {
    let (container_id, ifname) =
        text.split_once('/').with_context(|| format!("--keep {text:?} is not CONTAINER/INTERFACE"))?;
    Ok(Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

fn version(programs: &Programs, plugin: &str) -> Result<Value> {
    let call = Call {
        plugin: plugin.to_owned(),
        env: BTreeMap::from([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]),
        stdin: json!({ "cniVersion": Version::NEWEST }).to_string().into_bytes(),
    };
    let printed = programs.run(&call)?;
    let json: Value = serde_json::from_slice(&printed).context("its answer to VERSION is no JSON")?;
    let supported = VersionResult::from_json(&json)?.supported;
    Ok(json!({ "plugin": plugin, "program": find(plugin, &programs.path)?, "supportedVersions": supported }))
}

fn conformance(programs: Programs, config: &std::path::Path, output: Output) -> Result<u8> {
    let list = load::load_file(config, Version::NEWEST).with_context(|| config.display().to_string())?;
    let mut first = list.plugins.first().context("the list has no plugin")?.clone();
    first.insert("name".to_owned(), Value::from(list.name.as_str()));
    let rows = conformance::run(programs, first)?;
    let failed = rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_))).count();
    match output {
        Output::Json => say!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Yaml => put!("{}", crate::yaml::print(&rows)?),
        Output::Table => {
            for row in &rows {
                let (mark, why) = match &row.verdict {
                    Verdict::Passed => ("ok     ", ""),
                    Verdict::Failed(why) => ("FAILED ", why.as_str()),
                    Verdict::Skipped(why) => ("skipped", why.as_str()),
                };
                say!("{mark}  {} (section {})", row.check, row.clause);
                if !why.is_empty() {
                    say!("         {}", why.replace('\n', " "));
                }
            }
            say!("{} checks, {failed} failed", rows.len());
        }
    }
    Ok(if failed == 0 { crate::OK } else { crate::NOT_READY })
}

/// Notes calls in place of making them. A plugin that adds hands on what it got: that is how the chain would go.
#[derive(Default)]
struct Explainer(RefCell<Vec<Call>>);

impl Exec for Explainer {
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
        self.0.borrow_mut().push(call.clone());
        let request: Value = serde_json::from_slice(&call.stdin).unwrap_or_default();
        let result = match request.get("prevResult") {
            Some(before) => before.clone(),
            None => json!({ "cniVersion": request["cniVersion"] }),
        };
        Ok(result.to_string().into_bytes())
    }
}

/// What would be sent to each plugin. Nothing runs, and nothing is kept.
fn explain(cni: &Cni, of: &CniNetwork, call: &str, path: Vec<PathBuf>) -> Result<Value> {
    let (list, container) = (list(cni, &of.network)?, container(cni, of)?);
    let aside = tempfile::tempdir().context("no place for a copy of what is kept of ADD")?;
    let cache = Cache::new(aside.path());
    // Without one, or with one that cannot be read, the calls are those without a result.
    if let Ok(Some(entry)) = Cache::new(&cni.cache_dir).get(&list.name, &container.id, &container.ifname) {
        cache.put(&entry)?;
    }
    let explainer = Explainer::default();
    let runtime = Runtime { exec: &explainer, cache: &cache, path: path.clone() };
    match call.to_ascii_uppercase().as_str() {
        "ADD" => _ = runtime.add(&list, &container)?,
        "DEL" => runtime.del(&list, &container)?,
        "CHECK" => runtime.check(&list, &container)?,
        "STATUS" => runtime.status(&list)?,
        "GC" => runtime.gc(&list, &[]).map_err(|errors| anyhow!("{}", errors[0]))?,
        _ => bail!("--call {call:?}: give ADD, DEL, CHECK, STATUS or GC"),
    }
    let calls = explainer.0.into_inner().into_iter().map(|call| {
        let stdin: Value = serde_json::from_slice(&call.stdin).unwrap_or_default();
        json!({ "plugin": call.plugin, "program": find(&call.plugin, &path).ok(), "env": call.env, "stdin": stdin })
    });
    Ok(json!({ "network": list.name, "cniVersion": list.version, "calls": calls.collect::<Vec<_>>() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_id_begins_the_hash_of_the_namespaces_path() {
        let id = container_id("/var/run/netns/test");
        assert_eq!(id.len(), "cnitool-".len() + 20);
        assert_eq!(id, "cnitool-7b8a61d5d8e94d07cbe4", "as sha512sum(1) has it");
        assert_ne!(id, container_id("/var/run/netns/other"));
    }
}
