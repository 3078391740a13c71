// SPDX-License-Identifier: Apache-2.0
//! Pods' links.

use std::time::{Duration, Instant};

use isthmus_kernel::{InSync, POD_ALIAS_MAX, PodLinkError};
use isthmus_testkit::{Lab, Namespace, within};

use super::node::{Node, pod_link};

const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_of_one_node_reach_each_other_over_both_families() {
    let Some(lab) = Lab::new("pods") else { return };
    let mut node = Node::new(&lab, "node");
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    node.add_pod(&two, 2).await;
    for target in ["10.9.0.2", "fd09::2"] {
        one.ping(target).unwrap();
    }
    for target in ["10.9.0.1", "fd09::1"] {
        two.ping(target).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_packet_of_a_pod_passes_at_once() {
    let Some(lab) = Lab::new("first-packet") else { return };
    let mut node = Node::new(&lab, "node");
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    node.add_pod(&two, 2).await;
    // No retry: neighbours are permanent and addresses are not tentative.
    two.ping("fd09::1").unwrap();
    one.ping("10.9.0.2").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_table_does_not_know_passes_nothing() {
    let Some(lab) = Lab::new("unknown-pod") else { return };
    let mut node = Node::new(&lab, "node");
    let (known, unknown) = (lab.namespace("known"), lab.namespace("unknown"));
    node.add_pod(&known, 1).await;
    node.links.add(&pod_link(&unknown, 2)).unwrap();
    node.namespace.sh("ip route add 10.9.0.2 dev ist000000000002");
    assert!(unknown.ping("10.9.0.1").is_err());
    node.namespace.sh("nft list table inet isthmus | grep -q 'packets [1-9]'");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_cannot_borrow_another_pods_address() {
    let Some(lab) = Lab::new("spoof") else { return };
    let mut node = Node::new(&lab, "node");
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    node.add_pod(&two, 2).await;
    one.sh("ip addr add 10.9.0.77/32 dev eth0");
    node.namespace.sh("ip route add 10.9.0.77 dev ist000000000001");
    assert!(one.try_sh("ping -n -c 1 -W 1 -I 10.9.0.77 10.9.0.2").is_err());
    one.ping("10.9.0.2").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_removed_by_its_host_end_and_removing_it_again_is_fine() {
    let Some(lab) = Lab::new("del") else { return };
    let mut node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    let (link, made) = node.add_pod(&pod, 1).await;
    assert_eq!(node.links.list().unwrap()[&link.host_link].alias, "default/pod-1");
    assert_ne!(made.host_index, 0);
    assert!(node.links.del(&link.host_link).unwrap());
    assert!(!node.links.del(&link.host_link).unwrap());
    assert!(pod.try_sh("ip link show eth0").is_err());
    assert!(node.links.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn adding_again_after_an_interrupted_add_replaces_what_was_left() {
    let Some(lab) = Lab::new("again") else { return };
    let mut node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    let (link, first) = node.add_pod(&pod, 1).await;
    let second = node.links.add(&link).unwrap();
    assert_ne!(first.host_index, second.host_index);
    assert!(second.replaced && !first.replaced);
    node.links.check(&link).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_only_begun_is_listed_and_the_longest_alias_is_kept_whole() {
    let Some(lab) = Lab::new("begun") else { return };
    let node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    let mut link = pod_link(&pod, 1);
    link.alias = "a".repeat(POD_ALIAS_MAX);
    node.links.add(&link).unwrap();
    node.namespace.sh("ip link add ist000000000002 type veth peer name begun");
    let seen = node.links.list().unwrap();
    assert_eq!(seen[&link.host_link].alias, link.alias);
    assert_eq!(seen[&pod_link(&pod, 2).host_link].alias, "");
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_of_that_name_that_is_not_ours_is_named_in_the_error() {
    let Some(lab) = Lab::new("taken") else { return };
    let node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    pod.sh("ip link add eth0 type bridge");
    let error = node.links.add(&pod_link(&pod, 1)).unwrap_err();
    assert!(matches!(error, PodLinkError::Exists { .. }), "{error}");
    assert!(node.links.list().unwrap().is_empty());
    pod.sh("ip link show eth0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_gone_is_named_in_the_error() {
    let Some(lab) = Lab::new("gone") else { return };
    let node = Node::new(&lab, "node");
    let mut link = pod_link(&node.namespace, 1);
    link.netns_path = "/run/netns/was-here".into();
    let error = node.links.add(&link).unwrap_err().to_string();
    assert!(error.contains("/run/netns/was-here"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_was_taken_from_a_pod() {
    let Some(lab) = Lab::new("check") else { return };
    let mut node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    let (link, _) = node.add_pod(&pod, 1).await;
    node.links.check(&link).unwrap();
    pod.sh("ip addr del 10.9.0.1/32 dev eth0");
    let error = node.links.check(&link).unwrap_err().to_string();
    assert!(error.contains("10.9.0.1"), "{error}");
    node.namespace.sh("ip link set ist000000000001 down");
    let error = node.links.check(&link).unwrap_err().to_string();
    assert!(error.contains("ist000000000001"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_end_that_was_taken_down_is_restored_with_all_that_went_with_it() {
    let Some(lab) = Lab::new("restore") else { return };
    let (mut node, one, two) = (Node::new(&lab, "node"), lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    let (link, _) = node.add_pod(&two, 2).await;
    node.namespace.sh("ip link set ist000000000002 down; ip link set ist000000000002 alias other");
    node.links.restore(&link).unwrap();
    node.converge().await;
    node.links.check(&link).unwrap();
    one.ping("10.9.0.2").unwrap();
    one.ping("fd09::2").unwrap();
    node.links.del(&link.host_link).unwrap();
    let error = node.links.restore(&link).unwrap_err().to_string();
    assert!(error.contains("ist000000000002"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_end_is_a_router_that_takes_nothing_from_its_pod_whatever_new_links_are() {
    let Some(lab) = Lab::new("settings") else { return };
    let node = Node::new(&lab, "node");
    let others = "net.ipv4.conf.default.forwarding=0 net.ipv4.conf.default.proxy_arp=1 net.ipv4.conf.default.rp_filter=1 \
                  net.ipv4.conf.default.send_redirects=1 net.ipv6.conf.default.accept_ra=2 net.ipv6.conf.default.forwarding=0 \
                  net.ipv6.conf.default.disable_ipv6=1";
    let (both, four) = (lab.namespace("both"), lab.namespace("four"));
    for namespace in [&node.namespace, &both] {
        namespace.sh(&format!("sysctl -qw {others}"));
    }
    let value = |namespace: &Namespace, setting: &str| namespace.sh(&format!("cat /proc/sys/net/{setting}"));
    let is = |namespace: &Namespace, link: &str, wanted: &[(&str, &str)]| {
        for (setting, wanted) in wanted {
            let setting = setting.replace("LINK", link);
            assert_eq!(value(namespace, &setting).trim(), *wanted, "{setting}");
        }
    };
    let v4 = [
        ("ipv4/conf/LINK/forwarding", "1"),
        ("ipv4/conf/LINK/proxy_arp", "0"),
        ("ipv4/conf/LINK/rp_filter", "0"),
        ("ipv4/conf/LINK/send_redirects", "0"),
        ("ipv6/conf/LINK/accept_ra", "0"),
    ];
    let v6 = [
        ("ipv6/conf/LINK/forwarding", "1"),
        ("ipv6/conf/LINK/disable_ipv6", "0"),
        ("ipv6/conf/LINK/accept_dad", "0"),
    ];
    let (link, mut other) = (pod_link(&both, 1), pod_link(&four, 2));
    other.addresses.truncate(1);
    for link in [&link, &other] {
        node.links.add(link).unwrap();
        is(&node.namespace, link.host_link.as_str(), &v4);
    }
    is(&node.namespace, link.host_link.as_str(), &v6);
    is(&both, "eth0", &[("ipv6/conf/LINK/accept_ra", "0"), ("ipv6/conf/LINK/disable_ipv6", "0")]);

    node.namespace
        .sh("sysctl -qw net.ipv4.conf.ist000000000001.rp_filter=1 net.ipv6.conf.ist000000000001.accept_ra=2");
    node.links.restore(&link).unwrap();
    is(&node.namespace, link.host_link.as_str(), &v4);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_adds_a_pod_is_where_it_was_afterwards_also_if_nothing_came_of_it() {
    let Some(lab) = Lab::new("at-home") else { return };
    let (node, pod) = (Node::new(&lab, "node"), lab.namespace("pod"));
    let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let home = here();
    node.links.add(&pod_link(&pod, 1)).unwrap();
    assert_eq!(here(), home);
    node.links.add(&pod_link(&pod, 2)).unwrap_err();
    assert_eq!(here(), home);
}

/// With more the kernel would wait for a grace period at each end.
#[tokio::test(flavor = "multi_thread")]
async fn both_ends_have_one_queue_each_way() {
    let Some(lab) = Lab::new("queues") else { return };
    let (node, pod) = (Node::new(&lab, "node"), lab.namespace("pod"));
    let link = pod_link(&pod, 1);
    node.links.add(&link).unwrap();
    for (space, name) in [(&node.namespace, link.host_link.as_str()), (&pod, "eth0")] {
        let shown = space.sh(&format!("ip -d link show {name}"));
        assert!(shown.contains("numtxqueues 1 numrxqueues 1"), "{shown}");
    }
}

/// The bound is loose: the figure is printed, and measured by the benchmark.
#[tokio::test(flavor = "multi_thread")]
async fn an_add_takes_milliseconds_not_tens() {
    let Some(lab) = Lab::new("fast") else { return };
    let mut node = Node::new(&lab, "node");
    node.converge().await;
    let pods: Vec<_> = (1..=20).map(|number| lab.namespace(&format!("pod-{number}"))).collect();
    let mut times = Vec::new();
    for (pod, number) in pods.iter().zip(1..) {
        let start = Instant::now();
        node.add_pod(pod, number).await;
        times.push(start.elapsed());
    }
    times.sort();
    println!("ADD, link and rules: median {:?}, slowest {:?}", times[10], times[19]);
    let start = Instant::now();
    assert_eq!(node.converge().await.changed, 0);
    println!("a pass over 20 pods that finds nothing to do: {:?}", start.elapsed());
    let start = Instant::now();
    node.links.del(&pod_link(&pods[0], 1).host_link).unwrap();
    println!("DEL: {:?}", start.elapsed());
    assert!(times[10] < Duration::from_millis(30), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_start_at_the_same_moment_all_get_their_links() {
    let Some(lab) = Lab::new("at-once") else { return };
    let node = Node::new(&lab, "node");
    let pods: Vec<_> = (1..=16).map(|number| lab.namespace(&format!("pod-{number}"))).collect();
    std::thread::scope(|scope| {
        for (pod, number) in pods.iter().zip(1..) {
            let (links, link) = (&node.links, pod_link(pod, number));
            scope.spawn(move || links.add(&link).unwrap());
        }
    });
    for (pod, number) in pods.iter().zip(1..) {
        node.links.check(&pod_link(pod, number)).unwrap();
    }
    assert_eq!(node.links.list().unwrap().len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_namespace_ends_leaves_no_link() {
    let Some(lab) = Lab::new("ends") else { return };
    let mut node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    node.add_pod(&pod, 1).await;
    drop(pod);
    within(SOON, || match node.links.list().unwrap() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    let outcomes = node.kernel.converge(node.want.clone(), InSync::all_listed()).await;
    let failed: Vec<&String> = outcomes.failed.values().collect();
    assert!(failed.iter().all(|error| error.contains("does not exist")), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_go_at_the_same_time_go_together_and_take_no_other_along() {
    let Some(lab) = Lab::new("leaving") else { return };
    let node = Node::new(&lab, "node");
    let pods: Vec<_> = (0..12).map(|_| lab.namespace("pod")).collect();
    let wanted: Vec<_> = pods.iter().zip(1..).map(|(pod, number)| pod_link(pod, number)).collect();
    for link in &wanted {
        node.links.add(link).unwrap();
    }
    let (going, staying) = wanted.split_at(10);
    let never: isthmus_model::ids::LinkName = "ist0000000000ff".parse().unwrap();
    let deleted: Vec<bool> = std::thread::scope(|scope| {
        let names = going.iter().map(|link| &link.host_link).chain([&never]);
        let calls: Vec<_> = names.map(|name| scope.spawn(|| node.links.del(name).unwrap())).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(deleted, [vec![true; 10], vec![false]].concat());
    let left: Vec<_> = node.links.list().unwrap().into_keys().collect();
    assert_eq!(left, staying.iter().map(|link| link.host_link.clone()).collect::<Vec<_>>());
    assert!(!node.links.del(&going[0].host_link).unwrap());
    assert!(pods[0].sh("ip -o link").lines().all(|line| !line.contains("eth0")));
    let refused = node.links.del(&"lo".parse().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("remove the link"), "{refused}");
}

/// The request that deletes comes back some grace periods after the link went, and nobody waits for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_gone_when_its_removal_returns_and_its_name_is_free() {
    let Some(lab) = Lab::new("gone") else { return };
    let node = Node::new(&lab, "node");
    let pod = lab.namespace("pod");
    let wanted = pod_link(&pod, 1);
    let (mut ours, mut kernels) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        node.links.add(&wanted).unwrap();
        let started = Instant::now();
        assert!(node.links.del(&wanted.host_link).unwrap());
        ours.push(started.elapsed());
        assert!(node.links.list().unwrap().is_empty());
        assert!(!pod.sh("ip -o link").contains("eth0"));
        node.links.add(&wanted).unwrap();
        let started = Instant::now();
        node.namespace.sh(&format!("ip link del {}", wanted.host_link));
        kernels.push(started.elapsed());
    }
    ours.sort();
    kernels.sort();
    assert!(ours[7] < kernels[7], "medians: {:?}, and until the kernel's answer {:?}", ours[7], kernels[7]);
}
