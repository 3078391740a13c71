// SPDX-License-Identifier: Apache-2.0
//! Calls through a whole list of plugins (CNI 1.1.0, section 3, "Lifecycle & Ordering").
//!
//! A container has one call at a time, and GC runs alone on its network, among all processes that keep results in the same directory:
//! the others wait.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::cache::{Cache, Entry};
use super::derive;
use super::exec::{Call, Exec};
use crate::config::list::NetworkList;
use crate::config::net_conf::{Attachment, OLD_ATTACHMENTS, VALID_ATTACHMENTS};
use crate::error::{Error, code};
use crate::names::{check_container_id, check_ifname, check_network_name};
use crate::plugin::Command;
use crate::result::AddResult;

/// A container as far as its network is concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_NETNS`: path of the network namespace, made before ADD. Empty on DEL if it is gone already.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Pairs for `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What the runtime has for each capability, such as `portMappings`.
    pub capability_args: Map<String, Value>,
}

/// Takes containers through lists of plugins.
pub struct Runtime<'a> {
    /// Runs a plugin.
    pub exec: &'a dyn Exec,
    /// Keeps what ADD returned.
    pub cache: &'a Cache,
    /// For `CNI_PATH`: where plugins find those that they delegate to.
    pub path: Vec<PathBuf>,
}

impl Runtime<'_> {
    /// Adds a container to a network: each plugin gets the result of the one before. Returns the last one's, in the list's
    /// version, and keeps it.
    ///
    /// # Errors
    /// Codes 4 and 7 for names that are not allowed, before anything runs; else what the first plugin that failed said. The
    /// plugins before it have done their part: [`Self::del`] has to follow, as [`Self::add_or_undo`] does.
    pub fn add(&self, list: &NetworkList, container: &Container) -> Result<Value, Error> {
        check(list, container)?;
        let _held = self.cache.locks().call(&list.name, &container.id)?;
        self.add_locked(list, container)
    }

    fn add_locked(&self, list: &NetworkList, container: &Container) -> Result<Value, Error> {
        let mut result: Option<Value> = None;
        for plugin in &list.plugins {
            let printed = self.run(list, plugin, Command::Add, Some(container), result.as_ref(), None)?;
            result =
                Some(read_result(list, &printed).map_err(|error| of_plugin(plugin, Command::Add, &error))?);
        }
        let result = result.ok_or_else(|| {
            Error::new(code::INVALID_CONFIG, format!("network {} has no plugin", list.name))
        })?;
        self.cache.put(&entry(list, container, &result)?)?;
        Ok(result)
    }

    /// As [`Self::add`]; if that fails, DEL runs before it returns. What failed there, too, is in the details.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_or_undo(&self, list: &NetworkList, container: &Container) -> Result<Value, Error> {
        check(list, container)?;
        let _held = self.cache.locks().call(&list.name, &container.id)?;
        self.add_locked(list, container).map_err(|failed| match self.del_locked(list, container) {
            Ok(()) => failed,
            Err(undone) => {
                let details = [failed.details.as_str(), &format!("DEL after it: {undone}")];
                let details: Vec<&str> = details.into_iter().filter(|text| !text.is_empty()).collect();
                Error { details: details.join("; "), ..failed }
            }
        })
    }

    /// Takes a container out of a network: plugins in reverse order, each with the final result of ADD (since 0.4.0). May be
    /// called again, and without a namespace. A result that is missing or cannot be read hinders nothing.
    ///
    /// # Errors
    /// What the first plugin that failed said; those before it in the list were not called.
    pub fn del(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        check(list, container)?;
        let _held = self.cache.locks().call(&list.name, &container.id)?;
        self.del_locked(list, container)
    }

    fn del_locked(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        let kept = self.cache.get(&list.name, &container.id, &container.ifname).ok().flatten();
        let result = kept.and_then(|entry| entry.result).filter(|_| list.version.has_result_on_del());
        for plugin in list.plugins.iter().rev() {
            self.run(list, plugin, Command::Del, Some(container), result.as_ref(), None)?;
        }
        self.cache.remove(&list.name, &container.id, &container.ifname)
    }

    /// Whether all is as ADD left it: plugins in order, each with the final result of ADD. Nothing if the list disables it.
    ///
    /// # Errors
    /// Code 1 before version 0.4.0, code 3 for a container that was not added here; else what the first plugin that failed said.
    pub fn check(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        check(list, container)?;
        if !list.version.has_check() {
            let msg = format!("network {} has version {}; CHECK came with 0.4.0", list.name, list.version);
            return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
        }
        if list.disable_check {
            return Ok(());
        }
        let _held = self.cache.locks().call(&list.name, &container.id)?;
        let kept = self.cache.get(&list.name, &container.id, &container.ifname)?;
        let result = kept.and_then(|entry| entry.result).ok_or_else(|| {
            let msg = format!("no result of ADD is kept for {} on network {}", container.id, list.name);
            Error::new(code::UNKNOWN_CONTAINER, msg)
        })?;
        for plugin in &list.plugins {
            self.run(list, plugin, Command::Check, Some(container), Some(&result), None)?;
        }
        Ok(())
    }

    /// Whether ADD can be served. Lists of a version before 1.1.0 cannot say; nothing runs for them.
    ///
    /// # Errors
    /// What the first plugin that is not ready said: code 50 or 51.
    pub fn status(&self, list: &NetworkList) -> Result<(), Error> {
        check_network_name(&list.name)?;
        if !list.version.has_status() {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.run(list, plugin, Command::Status, None, None, None)?;
        }
        Ok(())
    }

    /// Takes away what belongs to no valid attachment: first DEL for each that is kept here and not valid, then GC with every
    /// plugin, whatever the others say (since 1.1.0). Nothing if the list disables it. No substitute for DEL.
    ///
    /// # Errors
    /// All that failed.
    pub fn gc(&self, list: &NetworkList, valid: &[Attachment]) -> Result<(), Vec<Error>> {
        check_network_name(&list.name).map_err(|error| vec![error])?;
        if list.disable_gc {
            return Ok(());
        }
        let keep: BTreeSet<(&str, &str)> =
            valid.iter().map(|one| (one.container_id.as_str(), one.ifname.as_str())).collect();
        let _held = self.cache.locks().gc(&list.name).map_err(|error| vec![error])?;
        let mut failed = Vec::new();
        match self.cache.of_network(&list.name) {
            Ok(entries) => {
                let stale = entries
                    .iter()
                    .filter(|one| !keep.contains(&(one.container_id.as_str(), one.if_name.as_str())));
                failed.extend(stale.filter_map(|entry| self.del_in_gc(list, &container(entry)).err()));
            }
            Err(error) => failed.push(error),
        }
        if list.version.has_gc() {
            let run = |plugin| self.run(list, plugin, Command::Gc, None, None, Some(valid)).err();
            failed.extend(list.plugins.iter().filter_map(run));
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    fn del_in_gc(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        check(list, container)?;
        let _held = self.cache.locks().call_in_gc(&container.id)?;
        self.del_locked(list, container)
    }

    fn run(
        &self,
        list: &NetworkList,
        plugin: &Map<String, Value>,
        command: Command,
        container: Option<&Container>,
        prev_result: Option<&Value>,
        valid: Option<&[Attachment]>,
    ) -> Result<Vec<u8>, Error> {
        let none = Map::new();
        let supplied = container.map_or(&none, |container| &container.capability_args);
        let mut request = derive::request(list, plugin, supplied, prev_result);
        if let Some(valid) = valid {
            let valid =
                serde_json::to_value(valid).map_err(|error| Error::new(code::DECODING, error.to_string()))?;
            // The second is what the Go library said before the specification was released.
            request.insert(VALID_ATTACHMENTS.to_owned(), valid.clone());
            request.insert(OLD_ATTACHMENTS.to_owned(), valid);
        }
        let call = Call {
            plugin: type_of(plugin).to_owned(),
            env: self.env(command, container),
            stdin: Value::Object(request).to_string().into_bytes(),
        };
        self.exec.run(&call).map_err(|error| of_plugin(plugin, command, &error))
    }

    fn env(&self, command: Command, container: Option<&Container>) -> BTreeMap<String, String> {
        let path: Vec<String> = self.path.iter().map(|dir| dir.display().to_string()).collect();
        let mut env = BTreeMap::from([
            ("CNI_COMMAND".to_owned(), command.as_str().to_owned()),
            ("CNI_PATH".to_owned(), path.join(":")),
        ]);
        if let Some(container) = container {
            let args: Vec<String> =
                container.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let of_container = [
                ("CNI_CONTAINERID", container.id.clone()),
                ("CNI_NETNS", container.netns.clone()),
                ("CNI_IFNAME", container.ifname.clone()),
                ("CNI_ARGS", args.join(";")),
            ];
            env.extend(of_container.map(|(key, value)| (key.to_owned(), value)));
        }
        env
    }
}

fn check(list: &NetworkList, container: &Container) -> Result<(), Error> {
    check_network_name(&list.name)?;
    check_container_id(&container.id)?;
    check_ifname(&container.ifname)
}

fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The same error, with whose it is.
fn of_plugin(plugin: &Map<String, Value>, command: Command, error: &Error) -> Error {
    let msg = format!("plugin {} failed ({}): {}", type_of(plugin), command.as_str(), error.msg);
    Error { msg, ..error.clone() }
}

/// What a plugin printed, in the list's version. As it is if it has that version: nothing of it is lost.
fn read_result(list: &NetworkList, printed: &[u8]) -> Result<Value, Error> {
    let mut json: Value = serde_json::from_slice(printed)
        .map_err(|error| Error::new(code::DECODING, format!("its result is no JSON: {error}")))?;
    let (version, result) = AddResult::from_json(&json, list.version)?;
    if version != list.version {
        return result.to_json(list.version);
    }
    json["cniVersion"] = Value::from(list.version.as_str());
    Ok(json)
}

fn entry(list: &NetworkList, container: &Container, result: &Value) -> Result<Entry, Error> {
    let config =
        serde_json::to_vec(&list.raw).map_err(|error| Error::new(code::DECODING, error.to_string()))?;
    let mut entry = Entry::new(&list.name, &container.id, &container.ifname, &config);
    entry.netns.clone_from(&container.netns);
    entry.cni_args.clone_from(&container.args);
    entry.capability_args.clone_from(&container.capability_args);
    entry.result = Some(result.clone());
    Ok(entry)
}

fn container(entry: &Entry) -> Container {
    Container {
        id: entry.container_id.clone(),
        netns: entry.netns.clone(),
        ifname: entry.if_name.clone(),
        args: entry.cni_args.clone(),
        capability_args: entry.capability_args.clone(),
    }
}

#[cfg(test)]
mod tests;
