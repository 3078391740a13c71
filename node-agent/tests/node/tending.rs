// SPDX-License-Identifier: Apache-2.0
//! What an agent looks after by itself, and how it tells of it.

use std::fs;
use std::time::Duration;

use isthmus_api::v1alpha1::{IPPool, IPPoolSpec};
use isthmus_node_agent::notices::Notice;
use isthmus_testkit::{Lab, within};

use crate::agent::{TestNode, cluster, two_nodes};

const SOON: Duration = Duration::from_secs(5);

/// Waits until a reported condition has this reason; returns its message.
#[track_caller]
fn reported(node: &TestNode, kind: &str, reason: &str) -> String {
    within(SOON, || match node.condition(kind) {
        Some((_, seen, message)) if seen == reason => Ok(message),
        other => Err(format!("{other:?}")),
    })
}

/// The next notice.
#[track_caller]
fn notice(node: &mut TestNode) -> Notice {
    within(SOON, || node.notices.try_recv())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_configuration_is_restored_and_told_with_where_the_edit_is() {
    let Some(lab) = Lab::new("tending-edit") else { return };
    let [mut one, _two] = two_nodes(&lab);
    one.know(cluster);
    let file = one.path("05-isthmus.conflist");
    let ours = within(SOON, || fs::read_to_string(&file));
    fs::write(&file, "{\"mine\": true}").unwrap();
    let kept = one.path(".05-isthmus.conflist.edited");
    assert_eq!(
        notice(&mut one),
        Notice::ConfigurationRestored { file: file.clone(), kept: kept.clone() },
        "and nothing before it"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), ours);
    assert_eq!(fs::read_to_string(&kept).unwrap(), "{\"mine\": true}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_written_is_told_once() {
    let Some(lab) = Lab::new("tending-unwritable") else { return };
    let [mut one, _two] = two_nodes(&lab);
    let (file, kept) = (one.path("05-isthmus.conflist"), one.path(".05-isthmus.conflist.edited"));
    fs::create_dir(&file).unwrap();
    one.know(cluster);
    let told = notice(&mut one);
    assert!(
        matches!(&told, Notice::ConfigurationNotWritten { file: named, .. } if *named == file),
        "{told:?}"
    );
    within(SOON, || match one.metrics.get("configuration_failures_total") {
        tried if tried >= 2.0 => Ok(()),
        tried => Err(format!("tried {tried} times")),
    });
    // It was told once: what comes next is of another kind.
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "{").unwrap();
    assert_eq!(notice(&mut one), Notice::ConfigurationRestored { file, kept });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_knows_is_on_disk_before_its_first_pod_and_a_disk_that_takes_it_not_is_reported() {
    let Some(lab) = Lab::new("tending-memory") else { return };
    let [one, two] = two_nodes(&lab);
    // A directory in the way of the new file.
    fs::create_dir(two.path(".intent.next")).unwrap();
    one.know(cluster);
    two.know(cluster);
    one.add("a", &lab.namespace("a"));
    assert!(one.path("intent").exists());
    assert!(one.condition("Ready").is_none_or(|(_, _, message)| !message.contains("intent")));
    let message = reported(&two, "Ready", "KernelRefused");
    assert!(message.contains(two.path("intent").to_str().unwrap()), "{message}");
    fs::remove_dir(two.path(".intent.next")).unwrap();
    reported(&two, "Ready", "AsWanted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_left_out_is_named_in_the_nodes_report() {
    let Some(lab) = Lab::new("tending-left-out") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(cluster);
    reported(&one, "ObjectsAccepted", "AllAccepted");
    let spec = IPPoolSpec { cidr: "nonsense".into(), ..Default::default() };
    one.store.change(|objects| drop(objects.pools.insert("bad".into(), IPPool::new("bad", spec))));
    let message = reported(&one, "ObjectsAccepted", "LeftOut");
    assert!(message.contains("IPPool/bad"), "{message}");
}
