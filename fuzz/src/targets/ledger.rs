// SPDX-License-Identifier: Apache-2.0
//! Who has which address, out of a journal and of the links that the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use isthmus_compiler::{Share, pod_link};
use isthmus_model::ids::{LinkName, PoolName};

use super::folder;
use super::journal::{given, lines, released};
use crate::Seed;
use crate::addresses::{AttachmentKey, Ledger};
use crate::input::{Input, Script};

/// The journal, and behind it the links: a line each, with the link's name and its alias. `=` stands for the name that
/// follows from the alias.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let folder = folder();
    let path = folder.path().join("journal");
    std::fs::write(&path, input.piece()).expect("a place for files");
    let links = links(&String::from_utf8_lossy(input.rest()));

    let mut ledger = Ledger::open(&path, &links);
    for (key, attachment) in ledger.attachments() {
        assert!(links.contains_key(&attachment.link), "{key:?} has no link");
    }
    assert!(ledger.pod_facts().keys().all(|link| links.contains_key(link)), "let through without a link");
    stays(&ledger, &path, &links);
    gives_no_address_twice(&mut ledger);
}

fn links(text: &str) -> BTreeMap<LinkName, String> {
    let link = |line: &str| {
        let (name, alias) = line.split_once(' ')?;
        let mut words = alias.split(' ');
        let name = match name {
            "=" => pod_link(words.next()?, words.next()?),
            name => name.parse().ok()?,
        };
        Some((name, alias.to_owned()))
    };
    text.lines().filter_map(link).collect()
}

/// Another start knows the same, also without what the kernel says.
fn stays(ledger: &Ledger, path: &Path, links: &BTreeMap<LinkName, String>) {
    assert_eq!(Ledger::open(path, links).attachments(), ledger.attachments());
    let silent = links.keys().map(|name| (name.clone(), String::new())).collect();
    assert_eq!(Ledger::open(path, &silent).attachments(), ledger.attachments());
}

fn gives_no_address_twice(ledger: &mut Ledger) {
    let taken: Vec<_> = ledger.attachments().values().flat_map(|to| to.addresses.clone()).collect();
    let block = |text: &str| (text.parse().expect("a network"), "pods".parse().expect("a name"));
    ledger.set_blocks([block("10.1.0.0/28"), block("fd00:1::/124")].into(), Vec::new());
    let pools: BTreeSet<PoolName> = ["pods".parse().expect("a name")].into();
    let both = Share { pools: [(false, pools.clone()), (true, pools)].into(), ..Share::default() };
    for number in 0..20 {
        let key = AttachmentKey { container: format!("new{number}"), ifname: "eth9".to_owned() };
        let known = ledger.attachments().contains_key(&key);
        let Ok(given) = ledger.give(&key, ("shop", "new"), &both, Instant::now()) else {
            return;
        };
        assert!(known || !given.addresses.iter().any(|address| taken.contains(address)), "{given:?}");
    }
    panic!("a block of 16 addresses has given 20");
}

pub(crate) fn seeds() -> Vec<Seed> {
    let journal = lines(&[given("a", &["10.1.0.5", "fd00:1::5"]), given("b", &["10.1.0.6"]), released("a")]);
    let script = |journal: &[u8], links: &str| Script::default().piece(journal).bytes(links.as_bytes()).end();
    let full: String = (0..16).map(|number| format!("= c{number} eth0 10.1.0.{number}\n")).collect();
    vec![
        ("both", script(&journal, "= b eth0 10.1.0.6\n= c eth0 10.1.0.7,fd00:1::7\n")),
        ("lost-journal", script(b"", "= a eth0 10.1.0.5\n= b eth0 10.1.0.6")),
        ("no-links", script(&journal, "")),
        ("foreign-link", script(&journal, "ist000000000001 a eth0 10.1.0.5\nist000000000002 x\n= \n")),
        ("full-block", script(b"", &full)),
    ]
}
