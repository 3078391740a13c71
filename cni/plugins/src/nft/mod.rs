// SPDX-License-Identifier: Apache-2.0
//! Rules of nftables, through the program `nft`: each has its attachment's mark as its comment.

pub(crate) mod masquerade;
pub(crate) mod spoof;

use std::io::Write;
use std::process::{Command, Stdio};

use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::Request;
use serde_json::Value;

use crate::failure::{self, REFUSED, changed};
use crate::owner::{self, Stale};

const PROGRAM: &str = "nft";

/// A chain of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// `inet`, `bridge`, …
    pub(crate) family: &'static str,
    pub(crate) table: &'static str,
    pub(crate) name: &'static str,
    /// Hook and priority of a base chain, such as `type nat hook postrouting priority srcnat;`; empty for another one.
    pub(crate) hook: &'static str,
}

/// A rule as nft lists it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    handle: u64,
    comment: String,
    expressions: Value,
}

impl Rule {
    fn read(json: &Value) -> Option<Self> {
        Some(Self {
            handle: json.get("handle")?.as_u64()?,
            comment: json.get("comment").and_then(Value::as_str).unwrap_or_default().to_owned(),
            expressions: json.get("expr").cloned().unwrap_or_default(),
        })
    }

    /// Whether it looks at ports of the transport, such as `udp`.
    pub(crate) fn is_of(&self, transport: &str) -> bool {
        let all = self.expressions.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().any(|one| one["match"]["left"]["payload"]["protocol"] == transport)
    }
}

impl Chain {
    fn place(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    /// Lines that make table and chain where they are not there.
    pub(crate) fn ensure(&self) -> String {
        let hook = if self.hook.is_empty() { String::new() } else { format!(" {{ {} }}", self.hook) };
        format!("add table {} {}\nadd chain {}{hook}\n", self.family, self.table, self.place())
    }

    /// A line that appends a rule with the mark.
    fn rule(&self, rule: &str, mark: &str) -> String {
        format!("add rule {} {rule} comment \"{mark}\"\n", self.place())
    }

    /// Lines that append rules with the mark.
    pub(crate) fn rules_of(&self, rules: &[String], mark: &str) -> String {
        rules.iter().map(|rule| self.rule(rule, mark)).collect()
    }

    /// A line that puts a rule before all others, with the mark.
    pub(crate) fn insert(&self, rule: &str, mark: &str) -> String {
        format!("insert rule {} {rule} comment \"{mark}\"\n", self.place())
    }

    /// Whether the chain is there.
    pub(crate) fn exists(&self) -> Result<bool, Error> {
        let list = ["list", "chain", self.family, self.table, self.name];
        let output = Command::new(PROGRAM)
            .args(list)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| missing(&error))?;
        Ok(output.status.success())
    }

    /// The rules. A chain that is not there has none.
    fn rules(&self) -> Result<Vec<Rule>, Error> {
        let list = ["--json", "list", "chain", self.family, self.table, self.name];
        let output = Command::new(PROGRAM)
            .args(list)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| missing(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return if said.contains("No such file or directory") {
                Ok(Vec::new())
            } else {
                Err(said_no(&said))
            };
        }
        let json: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::new(code::DECODING, format!("what nft lists is no JSON: {error}")))?;
        let listed = json["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(listed.iter().filter_map(|entry| Rule::read(entry.get("rule")?)).collect())
    }

    /// Deletes the rules whose comment is to go, and says which.
    fn delete_where(&self, goes: impl Fn(&str) -> bool) -> Result<Vec<Rule>, Error> {
        let mut rules = self.rules()?;
        rules.retain(|rule| goes(&rule.comment));
        let delete = |rule: &Rule| format!("delete rule {} handle {}\n", self.place(), rule.handle);
        let lines: String = rules.iter().map(delete).collect();
        if !lines.is_empty() {
            apply(&lines)?;
        }
        Ok(rules)
    }

    /// Deletes the rules of the request's attachment, and says which there were.
    pub(crate) fn delete_own(&self, request: &Request) -> Result<Vec<Rule>, Error> {
        let mark = owner::key(request);
        self.delete_where(|comment| comment == mark)
    }

    /// Deletes the rules of the network that belong to no attachment to be kept.
    pub(crate) fn collect(&self, request: &Request) -> Result<(), Error> {
        let stale = Stale::of(request);
        self.delete_where(|comment| stale.contains(comment)).map(drop)
    }

    /// Code 102 unless the attachment has this many rules.
    pub(crate) fn check_own(&self, request: &Request, count: usize) -> Result<(), Error> {
        let mark = owner::key(request);
        let there = self.rules()?.iter().filter(|rule| rule.comment == mark).count();
        if there == count {
            return Ok(());
        }
        Err(changed(format!(
            "the nftables chain {} has {there} of the container's {count} rules",
            self.place()
        )))
    }
}

fn missing(error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(code::UNAVAILABLE, "the program nft is missing: install nftables")
        }
        _ => failure::io(PROGRAM, error),
    }
}

fn said_no(said: &str) -> Error {
    Error::new(REFUSED, "nft refused the rules").with_details(said.trim())
}

/// Rules that attachments have only where a field of the configuration says so.
pub(crate) struct Asked {
    pub(crate) chain: Chain,
    pub(crate) field: &'static str,
}

impl Asked {
    fn wanted(&self, request: &Request) -> bool {
        request.config.raw().get(self.field) == Some(&true.into())
    }

    /// Replaces the attachment's.
    pub(crate) fn replace(&self, request: &Request, rules: &[String]) -> Result<(), Error> {
        self.delete(request)?;
        apply(&(self.chain.ensure() + &self.chain.rules_of(rules, &owner::key(request))))
    }

    /// Deletes them.
    pub(crate) fn delete(&self, request: &Request) -> Result<(), Error> {
        if self.wanted(request) { self.chain.delete_own(request).map(drop) } else { Ok(()) }
    }

    /// Deletes those of no attachment to be kept.
    pub(crate) fn collect(&self, request: &Request) -> Result<(), Error> {
        if self.wanted(request) { self.chain.collect(request) } else { Ok(()) }
    }
}

/// A deletion of rules that is as good as done without the program: there cannot be any that it made.
pub(crate) fn unless_missing(deleted: Result<(), Error>) -> Result<(), Error> {
    deleted.or_else(|error| if error.code == code::UNAVAILABLE { Ok(()) } else { Err(error) })
}

/// Code 50 if the program cannot run.
pub(crate) fn available() -> Result<(), Error> {
    let output = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    output.map(drop).map_err(|error| missing(&error))
}

/// Carries out lines of the nft language in one transaction.
pub(crate) fn apply(lines: &str) -> Result<(), Error> {
    let mut child = Command::new(PROGRAM)
        .args(["--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| missing(&error))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failure::io(PROGRAM, &error))?;
    if !output.status.success() {
        return Err(said_no(&String::from_utf8_lossy(&output.stderr)));
    }
    written.map_err(|error| failure::io(PROGRAM, &error))
}

/// A link's name as a word of nft. Code 7 for one that could end the word: the kernel allows quotation marks.
pub(crate) fn link_word(name: &str) -> Result<String, Error> {
    match name.contains(['"', '\\']) || name.chars().any(char::is_control) {
        true => Err(failure::invalid(format!("the interface name {name:?} cannot stand in a rule of nft"))),
        false => Ok(format!("\"{name}\"")),
    }
}

/// `ip` or `ip6`.
pub(crate) fn family_of(address: std::net::IpAddr) -> &'static str {
    if address.is_ipv6() { "ip6" } else { "ip" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_which_transport_it_is_of() {
        let rule = serde_json::json!({ "family": "inet", "handle": 7, "comment": "m", "expr": [
            { "match": { "op": "==", "left": { "meta": { "key": "nfproto" } }, "right": "ipv4" } },
            { "match": { "op": "==", "left": { "payload": { "protocol": "udp", "field": "dport" } }, "right": 8053 } },
        ] });
        let rule = Rule::read(&rule).unwrap();
        assert_eq!(
            (rule.handle, rule.comment.as_str(), rule.is_of("udp"), rule.is_of("tcp")),
            (7, "m", true, false)
        );
        assert_eq!(Rule::read(&serde_json::json!({ "comment": "m" })), None);
    }

    #[test]
    fn a_links_name_that_could_end_a_rule_is_refused() {
        assert_eq!(link_word("veth1.2-x"), Ok("\"veth1.2-x\"".to_owned()));
        for bad in ["a\"b", "a\\", "a\nb"] {
            assert_eq!(link_word(bad).map_err(|error| error.code), Err(7), "{bad:?}");
        }
    }
}
