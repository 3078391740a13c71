// SPDX-License-Identifier: Apache-2.0
//! Calls of a plugin to another, such as one for addresses (CNI 1.1.0, section 4): the same variables, and the whole configuration as it
//! came. [`CniPath`](crate::runtime::exec::CniPath) runs the programs.

use serde_json::Value;

use super::{Command, Request};
use crate::error::{Error, code};
use crate::result::AddResult;
use crate::runtime::exec::{Call, Exec};

/// Has the other plugin add, and returns its result: of a plugin for addresses, one without interfaces.
///
/// # Errors
/// What the other one said. Whoever fails after this has to undo it with [`forward`] and [`Command::Del`]; [`add_then`] does.
pub fn add(request: &Request, exec: &dyn Exec, plugin: &str) -> Result<AddResult, Error> {
    let printed = call(request, exec, plugin, Command::Add)?;
    let json: Value = serde_json::from_slice(&printed)
        .map_err(|error| Error::new(code::DECODING, format!("the result of {plugin} is no JSON: {error}")))?;
    let (_, mut result) = AddResult::from_json(&json, request.config.version())?;
    result.recall_details();
    Ok(result)
}

/// Has the other plugin add, then does the rest with its result. If either fails, the other one deletes again.
///
/// # Errors
/// What failed; that the deletion failed, too, is in the details.
pub fn add_then<T>(
    request: &Request,
    exec: &dyn Exec,
    plugin: &str,
    rest: impl FnOnce(AddResult) -> Result<T, Error>,
) -> Result<T, Error> {
    add(request, exec, plugin).and_then(rest).map_err(|failed| {
        match call(request, exec, plugin, Command::Del) {
            Ok(_) => failed,
            Err(undone) => {
                let details = format!("{} DEL of {plugin} after it: {undone}", failed.details);
                failed.with_details(details.trim_start())
            }
        }
    })
}

/// Hands DEL, CHECK, STATUS or GC on to the other plugin.
///
/// # Errors
/// What it said.
pub fn forward(request: &Request, exec: &dyn Exec, plugin: &str) -> Result<(), Error> {
    call(request, exec, plugin, request.command).map(|_| ())
}

fn call(request: &Request, exec: &dyn Exec, plugin: &str, command: Command) -> Result<Vec<u8>, Error> {
    let mut env = request.env.clone();
    env.retain(|key, _| key.starts_with("CNI_"));
    env.insert("CNI_COMMAND".to_owned(), command.as_str().to_owned());
    exec.run(&Call { plugin: plugin.to_owned(), env, stdin: request.stdin.clone() })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::plugin::{Plugin, run};

    /// Leaves addresses to `ipam`, and fails after that if it is told to.
    struct Delegating<'a> {
        exec: &'a Recorder,
        fails: bool,
    }

    #[derive(Default)]
    struct Recorder {
        calls: RefCell<Vec<Call>>,
        failing: Option<&'static str>,
    }

    impl Exec for Recorder {
        fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
            self.calls.borrow_mut().push(call.clone());
            match self.failing == Some(call.env["CNI_COMMAND"].as_str()) {
                true => Err(Error::new(11, "pool is busy")),
                false => Ok(br#"{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}"#.to_vec()),
            }
        }
    }

    impl Plugin for Delegating<'_> {
        fn add(&self, request: &Request) -> Result<AddResult, Error> {
            add_then(request, self.exec, "ipam", |result| match self.fails {
                true => Err(Error::new(101, "no link").with_details("why.")),
                false => Ok(result),
            })
        }
        fn del(&self, request: &Request) -> Result<(), Error> {
            forward(request, self.exec, "ipam")
        }
        fn check(&self, request: &Request) -> Result<(), Error> {
            forward(request, self.exec, "ipam")
        }
        fn status(&self, request: &Request) -> Result<(), Error> {
            forward(request, self.exec, "ipam")
        }
        fn gc(&self, request: &Request) -> Result<(), Error> {
            forward(request, self.exec, "ipam")
        }
        fn about(&self) -> String {
            "delegates".to_owned()
        }
    }

    const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"n","type":"t","own":1,"prevResult":{"cniVersion":"1.1.0"},"cni.dev/valid-attachments":[]}"#;

    /// Exit code, what was printed, and the calls as command and rest.
    fn call(command: &str, fails: bool, failing: Option<&'static str>) -> (u8, Value, Vec<Call>) {
        let exec = Recorder { failing, ..Recorder::default() };
        let env: BTreeMap<String, String> = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/none"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let mut stdout = Vec::new();
        let plugin = Delegating { exec: &exec, fails };
        let exit = run(&plugin, &env, &mut CONFIG.as_bytes(), &mut stdout, &mut Vec::new());
        (exit, serde_json::from_slice(&stdout).unwrap_or_default(), exec.calls.into_inner())
    }

    #[test]
    fn p14_every_call_is_handed_on_with_the_same_variables_and_the_whole_configuration() {
        for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            let (exit, printed, calls) = call(command, false, None);
            assert_eq!((exit, calls.len()), (0, 1), "{command}: {printed}");
            assert_eq!((calls[0].plugin.as_str(), calls[0].env["CNI_COMMAND"].as_str()), ("ipam", command));
            assert_eq!(
                (calls[0].env["CNI_CONTAINERID"].as_str(), calls[0].stdin.as_slice()),
                ("c", CONFIG.as_bytes())
            );
        }
        assert_eq!(call("ADD", false, None).1["ips"][0]["address"], "10.0.0.2/24");
    }

    #[test]
    fn p14_a_failing_delegate_fails_the_plugin_with_its_error() {
        let (exit, printed, _) = call("DEL", false, Some("DEL"));
        assert_eq!((exit, &printed["code"], &printed["msg"]), (1, &11.into(), &"pool is busy".into()));
    }

    #[test]
    fn p14_when_add_fails_before_or_after_the_delegate_deletes_again() {
        for (fails, failing, code) in [(true, None, 101), (false, Some("ADD"), 11)] {
            let (exit, printed, calls) = call("ADD", fails, failing);
            let commands: Vec<&str> = calls.iter().map(|call| call.env["CNI_COMMAND"].as_str()).collect();
            assert_eq!((exit, &printed["code"], commands), (1, &Value::from(code), vec!["ADD", "DEL"]));
        }
        let (_, printed, _) = call("ADD", true, Some("DEL"));
        assert_eq!(printed["details"], "why. DEL of ipam after it: pool is busy (code 11)");
    }
}
