// SPDX-License-Identifier: Apache-2.0
//! An OCI runtime in front of runc. Docker gives privileged containers every capability there is; where the
//! lab itself lacks CAP_SYS_RESOURCE runc then fails with "unable to apply caps". This strikes that one from
//! the container's configuration and becomes runc.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// The name under which this program is installed as Docker's runtime.
pub const NAME: &str = "isthmus-oci-runtime";
const STRUCK: &str = "CAP_SYS_RESOURCE";
/// Its number in `CapBnd` (linux/capability.h).
const STRUCK_BIT: u32 = 24;

/// Whether this process lacks the capability that privileged containers would get.
pub fn lacks_sys_resource() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    bounding_set(&status).is_some_and(|bits| bits & (1 << STRUCK_BIT) == 0)
}

/// Does what Docker asks of a runtime. Returns only to say why it could not become runc.
pub fn run(arguments: &[String]) -> Result<std::convert::Infallible> {
    if lacks_sys_resource()
        && let Some((path, place)) = configuration(arguments)
    {
        rewrite(&path, place).with_context(|| format!("cannot rewrite {}", path.display()))?;
    }
    let error = Command::new("runc").args(arguments).exec();
    Err(error).context("cannot start runc (apt-get install runc)")
}

/// Where in a configuration the process is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Container,
    Process,
}

/// The file that says which capabilities the process gets, if this call starts one.
fn configuration(arguments: &[String]) -> Option<(PathBuf, Place)> {
    let value_of = |names: [&str; 2]| {
        arguments.iter().enumerate().find_map(|(index, argument)| {
            let (name, value) =
                argument.split_once('=').map_or((argument.as_str(), None), |(n, v)| (n, Some(v)));
            let value = value.or_else(|| arguments.get(index + 1).map(String::as_str));
            names.contains(&name).then_some(value?)
        })
    };
    let calls = |command: &str| arguments.iter().any(|argument| argument == command);
    if calls("create") || calls("run") {
        let bundle = value_of(["--bundle", "-b"]).unwrap_or(".");
        Some((Path::new(bundle).join("config.json"), Place::Container))
    } else if calls("exec") {
        value_of(["--process", "-p"]).map(|path| (path.into(), Place::Process))
    } else {
        None
    }
}

fn rewrite(path: &Path, place: Place) -> Result<()> {
    let mut configuration: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    match place {
        Place::Container => strike(&mut configuration["process"]),
        Place::Process => strike(&mut configuration),
    }
    Ok(std::fs::write(path, serde_json::to_vec(&configuration)?)?)
}

fn strike(process: &mut Value) {
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return };
    for set in sets.values_mut().filter_map(Value::as_array_mut) {
        set.retain(|capability| capability != STRUCK);
    }
}

fn bounding_set(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn create_names_its_bundle_and_exec_its_process_file() {
        let create = words("--root /r --log /l create --bundle /b --pid-file /p id");
        assert_eq!(configuration(&create), Some(("/b/config.json".into(), Place::Container)));
        let exec = words("--root /r exec --process=/x.json --detach id");
        assert_eq!(configuration(&exec), Some(("/x.json".into(), Place::Process)));
        assert_eq!(configuration(&words("--root /r delete --force id")), None);
    }

    #[test]
    fn only_the_missing_capability_is_struck() {
        let mut process =
            json!({"capabilities": {"bounding": ["CAP_NET_ADMIN", STRUCK], "effective": [STRUCK]}});
        strike(&mut process);
        assert_eq!(process, json!({"capabilities": {"bounding": ["CAP_NET_ADMIN"], "effective": []}}));
    }

    #[test]
    fn the_bounding_set_is_read_from_the_process_status() {
        assert_eq!(bounding_set("Name:\tx\nCapBnd:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
    }
}
