// SPDX-License-Identifier: Apache-2.0
//! The journal of addresses, as a crash or a broken disk leaves it.

use std::path::Path;

use isthmus_compiler::pod_link;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::folder;
use crate::Seed;
use crate::addresses::{Attachment, AttachmentKey, Journal, Recovery};

/// What the agent writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    Given { key: AttachmentKey, to: Attachment },
    Released { key: AttachmentKey },
}

/// The file.
pub(crate) fn run(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join("journal");
    std::fs::write(&path, bytes).expect("a place for files");
    let (mut journal, recovery) = open(&path);
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(recovery.records.len() + recovery.damaged, lines);
    assert_eq!(journal.records(), lines);
    let whole = bytes.len() - recovery.torn_bytes;
    assert!(whole == 0 || bytes[whole - 1] == b'\n');
    assert!(!bytes[whole..].contains(&b'\n'));

    let mut expected = recovery.records;
    let more = released("more");
    journal.append(&more).expect("the disk takes it");
    expected.push(more);
    let again = open(&path).1;
    assert_eq!(again.records, expected, "what was appended, or what stood there, is lost");
    assert_eq!((again.damaged, again.torn_bytes), (recovery.damaged, 0));

    journal.rewrite(&expected).expect("the disk takes it");
    let clean = open(&path).1;
    assert_eq!(clean, Recovery { records: expected, damaged: 0, torn_bytes: 0 });
}

fn open(path: &Path) -> (Journal, Recovery<Record>) {
    Journal::open(path)
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), ifname: "eth0".to_owned() }
}

pub(super) fn given(container: &str, addresses: &[&str]) -> Record {
    let to = Attachment {
        namespace: "shop".to_owned(),
        pod: "web".to_owned(),
        link: pod_link(container, "eth0"),
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        mac: None,
        lease: None,
    };
    Record::Given { key: key(container), to }
}

pub(super) fn released(container: &str) -> Record {
    Record::Released { key: key(container) }
}

/// Records as they stand in the file.
pub(super) fn lines(records: &[Record]) -> Vec<u8> {
    let line = |record: &Record| {
        let json = serde_json::to_string(record).expect("a record is JSON");
        let sum: String = Sha256::digest(&json).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{sum} {json}\n").into_bytes()
    };
    records.iter().flat_map(line).collect()
}

pub(crate) fn seeds() -> Vec<Seed> {
    let whole = lines(&[given("a", &["10.1.0.5", "fd00:1::5"]), given("b", &["10.1.0.6"]), released("a")]);
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    vec![
        ("whole", whole.clone()),
        ("torn", whole[..whole.len() - 9].to_vec()),
        ("damaged", damaged),
        ("empty", Vec::new()),
        ("newlines", b"\n\n\n".to_vec()),
        ("no-record", lines(&[]).into_iter().chain(*b"e3b0c442 \n44136fa3 {}\n").collect()),
    ]
}
