// SPDX-License-Identifier: Apache-2.0
use super::*;

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), ifname: "eth0".to_owned() }
}

/// An address of each family.
fn both() -> Share {
    let pools = [(false, "four"), (true, "six")].map(|(v6, pool)| (v6, [pool.parse().unwrap()].into()));
    Share { pools: pools.into(), ..Share::default() }
}

/// A ledger with one block of each family; `links` as the kernel has them.
fn ledger(path: &Path, links: &BTreeMap<LinkName, String>) -> Ledger {
    let mut ledger = Ledger::open(path, links);
    let blocks = [("10.1.0.0/29", "four"), ("fd00:1::/125", "six")];
    ledger.set_blocks(
        blocks.map(|(cidr, pool)| (cidr.parse().unwrap(), pool.parse().unwrap())).into(),
        Vec::new(),
    );
    ledger
}

fn links_of(ledger: &Ledger) -> BTreeMap<LinkName, String> {
    ledger.attachments().iter().map(|(key, to)| (to.link.clone(), alias(key, to))).collect()
}

#[test]
fn adding_twice_gives_the_same_addresses_and_releasing_twice_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = ledger(&directory.path().join("log"), &BTreeMap::new());
    let now = Instant::now();
    let first = ledger.give(&key("a"), ("shop", "web"), &both(), now).unwrap();
    assert_eq!(first.addresses.len(), 2);
    assert_eq!(ledger.give(&key("a"), ("shop", "web"), &both(), now).unwrap(), first);
    ledger.release(&key("a"), now).unwrap();
    ledger.release(&key("a"), now).unwrap();
    assert_eq!(ledger.usage().values().sum::<usize>(), 0);
}

#[test]
fn a_restart_finds_every_pod_that_has_a_link_and_releases_those_that_have_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut before = ledger(&path, &BTreeMap::new());
    let now = Instant::now();
    let kept = before.give(&key("a"), ("shop", "a"), &both(), now).unwrap();
    let mut links = links_of(&before);
    before.give(&key("b"), ("shop", "b"), &both(), now).unwrap();
    drop(before);
    let after = ledger(&path, &links);
    assert_eq!(after.get(&key("a")), Some(&kept));
    assert_eq!(after.get(&key("b")), None, "its ADD never got as far as the link");
    assert_eq!(after.usage().values().sum::<usize>(), 2);
    assert_eq!(after.pod_facts().len(), 1, "traffic of the pod is let through at once");
    links.clear();
    assert_eq!(ledger(&path, &links).attachments().len(), 0);
}

#[test]
fn what_was_given_for_a_link_that_was_only_begun_stays_until_somebody_releases_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut before = ledger(&path, &BTreeMap::new());
    let given = before.give(&key("a"), ("shop", "a"), &both(), Instant::now()).unwrap();
    drop(before);
    let unnamed = BTreeMap::from([(given.link.clone(), String::new())]);
    let mut after = ledger(&path, &unnamed);
    assert_eq!(after.get(&key("a")), Some(&given));
    after.release(&key("a"), Instant::now()).unwrap();
    assert_eq!(after.usage().values().sum::<usize>(), 0);
    assert_eq!(
        ledger(&path, &unnamed).attachments().len(),
        0,
        "the link alone says of nobody that it is his"
    );
}

#[test]
fn a_lost_journal_is_rebuilt_from_the_links_of_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut before = ledger(&path, &BTreeMap::new());
    let given = before.give(&key("a"), ("shop", "web"), &both(), Instant::now()).unwrap();
    let links = links_of(&before);
    drop(before);
    std::fs::remove_file(&path).unwrap();
    let mut after = ledger(&path, &links);
    assert_eq!(after.get(&key("a")), Some(&given));
    let other = after.give(&key("b"), ("", ""), &both(), Instant::now()).unwrap();
    assert!(other.addresses.iter().all(|address| !given.addresses.contains(address)));
}

#[test]
fn a_name_that_does_not_fit_the_kernels_alias_costs_no_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut before = ledger(&path, &BTreeMap::new());
    let long = "p".repeat(253);
    let given = before.give(&key(&"c".repeat(64)), ("shop", &long), &both(), Instant::now()).unwrap();
    let links = links_of(&before);
    assert!(links.values().all(|alias| alias.len() <= POD_ALIAS_MAX), "{links:?}");
    drop(before);
    std::fs::remove_file(&path).unwrap();
    let after = ledger(&path, &links);
    assert_eq!(after.get(&key(&"c".repeat(64))).map(|to| &to.addresses), Some(&given.addresses));
}

#[test]
fn nothing_is_kept_of_an_add_that_got_only_one_of_two_families() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = ledger(&directory.path().join("log"), &BTreeMap::new());
    ledger.set_blocks([("10.1.0.0/29".parse().unwrap(), "four".parse().unwrap())].into(), Vec::new());
    let error = ledger.give(&key("a"), ("", ""), &both(), Instant::now()).unwrap_err();
    assert!(matches!(error, LedgerError::Shortage(Shortage::NoBlock { family: "IPv6", .. })), "{error}");
    assert_eq!(ledger.usage().values().sum::<usize>(), 0);
    assert!(ledger.readiness(&both().pools).unwrap_err().contains("no free IPv6 address"));
}

#[test]
fn a_crash_at_any_byte_of_the_journal_never_gives_an_address_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut before = ledger(&path, &BTreeMap::new());
    let now = Instant::now();
    for name in ["a", "b", "c"] {
        before.give(&key(name), ("", ""), &both(), now).unwrap();
    }
    before.release(&key("b"), now).unwrap();
    let links = links_of(&before);
    drop(before);
    let bytes = std::fs::read(&path).unwrap();
    for end in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let mut after = ledger(&path, &links);
        let held: Vec<IpAddr> = after.attachments().values().flat_map(|to| to.addresses.clone()).collect();
        assert_eq!(held.len(), 4, "a and c are alive, b is not; crash at byte {end}");
        let fresh = after.give(&key("d"), ("", ""), &both(), now).unwrap();
        assert!(fresh.addresses.iter().all(|address| !held.contains(address)), "crash at byte {end}");
    }
}

#[test]
fn what_a_container_held_that_vanished_without_a_word_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = ledger(&directory.path().join("log"), &BTreeMap::new());
    let now = Instant::now();
    for name in ["a", "b", "c"] {
        ledger.give(&key(name), ("", ""), &both(), now).unwrap();
    }
    ledger.link_made(&key("a"));
    ledger.link_made(&key("b"));
    let before = ledger.linked();
    let links = [ledger.get(&key("a")).unwrap().link.clone()].into();
    ledger.link_made(&key("b"));
    assert_eq!(ledger.release_unlinked(&before, &links, now), [], "b's link was made anew meanwhile");
    let before = ledger.linked();
    assert_eq!(ledger.release_unlinked(&before, &links, now), [key("b")], "c's ADD is still under way");
    assert_eq!(ledger.usage().values().sum::<usize>(), 4);
}

#[test]
fn an_unwritable_journal_keeps_new_pods_out_and_lets_old_ones_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut ledger = ledger(&path, &BTreeMap::new());
    let now = Instant::now();
    ledger.give(&key("a"), ("", ""), &both(), now).unwrap();
    drop(directory);
    ledger.probe_journal();
    assert!(ledger.readiness(&both().pools).unwrap_err().contains("neither full nor read-only"));
    let _ = ledger.release(&key("a"), now);
    assert_eq!(ledger.usage().values().sum::<usize>(), 0, "in memory it is free");
}

#[test]
fn an_unreadable_journal_keeps_new_pods_out_until_the_agent_starts_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::os::unix::fs::symlink("log", &path).unwrap();
    let mut ledger = ledger(&path, &BTreeMap::new());
    assert!(ledger.readiness(&both().pools).unwrap_err().contains("restart the agent"));
    let given = ledger.give(&key("a"), ("", ""), &both(), Instant::now());
    assert!(matches!(given, Err(LedgerError::Journal(_))), "{given:?}");
    assert_eq!(ledger.usage().values().sum::<usize>(), 0);
    assert!(path.is_symlink(), "what could not be read is still there");
}

#[test]
fn who_reads_beside_the_agent_sees_whole_records_only_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    assert_eq!(recorded(&path).unwrap(), BTreeMap::new(), "no journal holds nothing");
    let mut ledger = ledger(&path, &BTreeMap::new());
    let given = ledger.give(&key("a"), ("shop", "web"), &both(), Instant::now()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend(b"0000 half a rec");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(recorded(&path).unwrap(), BTreeMap::from([(key("a"), given)]));
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the agent that is writing the record ends it");
}

fn web(uid: &str) -> PodId {
    PodId { namespace: "shop".to_owned(), name: "web".to_owned(), uid: uid.to_owned() }
}

/// An address of the pod's own, with a MAC, and an IPv6 one like all.
fn own(address: &str, uid: &str) -> Share {
    let mut share = both();
    share.pools.remove(&false);
    let mac = Some([2, 0, 0, 0, 0, 7]);
    Share { own: vec![(address.parse().unwrap(), web(uid))], mac, ..share }
}

fn singles(of: &[(&str, Option<&str>)]) -> BTreeMap<IpAddr, Option<PodId>> {
    of.iter().map(|(address, uid)| (address.parse().unwrap(), uid.map(web))).collect()
}

#[test]
fn an_address_of_a_pods_own_is_given_to_that_pod_only_and_only_while_it_asks() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = ledger(&directory.path().join("log"), &BTreeMap::new());
    let now = Instant::now();
    for single in [vec![], vec![("10.1.9.7", None)], vec![("10.1.9.7", Some("other"))]] {
        ledger.set_own(singles(&single));
        let error = ledger.give(&key("a"), ("shop", "web"), &own("10.1.9.7", "u"), now).unwrap_err();
        assert!(matches!(error, LedgerError::Shortage(Shortage::NotOwn { .. })), "{single:?}: {error}");
        assert_eq!(ledger.usage().values().sum::<usize>(), 0, "nothing is left of it");
    }
    ledger.set_own(singles(&[("10.1.9.7", Some("u"))]));
    let given = ledger.give(&key("a"), ("shop", "web"), &own("10.1.9.7", "u"), now).unwrap();
    let texts: Vec<String> = given.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.1.9.7", "fd00:1::1"]);
    ledger.set_own(singles(&[("10.1.9.7", None)]));
    assert_eq!(ledger.usage()[&"10.1.9.7/32".parse().unwrap()], 1, "in use, whoever asks for it");
    ledger.release(&key("a"), now).unwrap();
    assert_eq!(ledger.usage()[&"10.1.9.7/32".parse().unwrap()], 0);
}

#[test]
fn what_a_container_of_before_still_has_is_not_given_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = ledger(&directory.path().join("log"), &BTreeMap::new());
    let now = Instant::now();
    ledger.set_own(singles(&[("10.1.9.7", Some("u")), ("10.1.9.8", Some("u"))]));
    ledger.give(&key("a"), ("shop", "web"), &own("10.1.9.7", "u"), now).unwrap();
    for (address, what) in [("10.1.9.7", "10.1.9.7"), ("10.1.9.8", "02:00:00:00:00:07")] {
        let error = ledger.give(&key("b"), ("shop", "web"), &own(address, "u"), now).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("in use by container a"), "{error}");
    }
    ledger.release(&key("a"), now).unwrap();
    ledger.give(&key("b"), ("shop", "web"), &own("10.1.9.7", "u"), now).unwrap();
}

#[test]
fn an_address_of_a_pods_own_and_its_mac_are_known_after_a_restart_with_and_without_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut before = ledger(&path, &BTreeMap::new());
    before.set_own(singles(&[("10.1.9.7", Some("u"))]));
    let given = before.give(&key("a"), ("shop", "web"), &own("10.1.9.7", "u"), Instant::now()).unwrap();
    let links = links_of(&before);
    drop(before);
    assert_eq!(ledger(&path, &links).get(&key("a")), Some(&given));
    std::fs::remove_file(&path).unwrap();
    let mut after = ledger(&path, &links);
    assert_eq!(after.get(&key("a")), Some(&given));
    after.set_own(singles(&[("10.1.9.7", Some("u"))]));
    assert_eq!(after.usage()[&"10.1.9.7/32".parse().unwrap()], 1);
}
