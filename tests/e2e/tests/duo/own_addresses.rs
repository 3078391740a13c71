// SPDX-License-Identifier: Apache-2.0
//! Which addresses pods get: of pools for their namespace, of pools that they name, those that they ask for, and those that their
//! StatefulSet keeps.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use isthmus_e2e::{Duo, EAST, Pod, apply, delete, duo, fixture, json, kubectl, pod, within};
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-bank";
const POOLS: [&str; 4] = ["bank-plain", "bank-named", "bank-fixed-v4", "bank-fixed-v6"];
const HERE: &str = "east-worker";
const THERE: &str = "east-worker2";
const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
/// A pod that was refused is tried again by kubelet after some ten seconds.
const SOON: Duration = Duration::from_secs(90);

/// The pools and the namespace, until it is dropped.
struct Bank {
    _duo: Duo,
}

impl Bank {
    #[track_caller]
    fn open() -> Option<Self> {
        let bank = Self { _duo: duo()? };
        bank.close();
        apply(EAST, &fixture("own-addresses.yaml")).unwrap_or_else(|error| panic!("{error:#}"));
        Some(bank)
    }

    /// Pods first: a pool goes once nobody has its addresses.
    fn close(&self) {
        let gone = delete(EAST, &["namespace", NAMESPACE]).and_then(|_| {
            let pools: Vec<&str> = ["ippool"].into_iter().chain(POOLS).collect();
            delete(EAST, &pools)
        });
        if let Err(error) = gone {
            eprintln!("{EAST} is not as it was before: {error:#}");
        }
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.close();
    }
}

fn template(node: &str, annotations: &Value) -> Value {
    json!({
        "metadata": { "labels": { "app": "bank" }, "annotations": annotations },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "nodeSelector": { "kubernetes.io/hostname": node },
            "containers": [{
                "name": "pod", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "args": ["netexec", "--http-port=8080"],
            }],
        },
    })
}

#[track_caller]
fn make(name: &str, node: &str, annotations: &Value) {
    let mut pod = template(node, annotations);
    (pod["apiVersion"], pod["kind"]) = ("v1".into(), "Pod".into());
    (pod["metadata"]["name"], pod["metadata"]["namespace"]) = (name.into(), NAMESPACE.into());
    apply(EAST, &pod.to_string()).unwrap_or_else(|error| panic!("{error:#}"));
}

/// The pod, once it runs on the node.
#[track_caller]
fn running(name: &str, node: &str) -> Pod {
    within(SOON, || {
        let object = json(EAST, &["-n", NAMESPACE, "pod", name]).map_err(|error| format!("{error:#}"))?;
        let on = (&object["spec"]["nodeName"], &object["status"]["phase"]);
        if on != (&node.into(), &"Running".into()) || !object["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("{name} is {on:?}; events: {}", events(name)));
        }
        Pod::find(EAST, NAMESPACE, name).map_err(|error| format!("{error:#}"))
    })
}

/// What kubelet says of a pod.
fn events(name: &str) -> String {
    let field = format!("involvedObject.name={name}");
    let line =
        ["-n", NAMESPACE, "get", "events", "--field-selector", &field, "-o", "jsonpath={.items[*].message}"];
    kubectl(EAST, &line).unwrap_or_else(|error| format!("{error:#}"))
}

/// It answers a pod of another namespace, by each of its addresses.
#[track_caller]
fn answers(pod_of_bank: &Pod) {
    let asks = pod(EAST, "one");
    for address in pod_of_bank.addresses() {
        let said = within(SOON, || asks.get(address, "/hostname").map_err(|error| format!("{error:#}")));
        assert_eq!(said, pod_of_bank.name, "asked {address}");
    }
}

fn four(pod: &Pod) -> Ipv4Addr {
    pod.ipv4.parse().expect("an IPv4 address")
}

fn six(pod: &Pod) -> Ipv6Addr {
    pod.ipv6.parse().expect("an IPv6 address")
}

#[test]
fn pods_get_addresses_of_the_pools_for_their_namespace_and_of_those_that_they_name() {
    let Some(_bank) = Bank::open() else { return };
    make("plain", HERE, &json!({}));
    make("named", THERE, &json!({ "isthmus.dev/ip-pools": "bank-named" }));
    let (plain, named) = (running("plain", HERE), running("named", THERE));

    let free = Ipv4Addr::new(10, 12, 1, 0)..=Ipv4Addr::new(10, 12, 3, 255);
    let of_team = |pod: &Pod| four(pod).octets().starts_with(&[10, 11, 0]) || free.contains(&four(pod));
    assert!(of_team(&plain), "{plain:?}");
    assert!(free.contains(&four(&named)), "what is below is reserved: {named:?}");
    // There is no pool of that family for the namespace from which a pod gets addresses unasked, but one for all.
    for pod in [&plain, &named] {
        assert!(six(pod).segments().starts_with(&[0xfd00, 0x10, 1]), "{pod:?}");
        answers(pod);
    }
    let one = pod(EAST, "one");
    assert!(one.ipv4.starts_with("10.1."), "the pools are for the team only: {one:?}");
}

#[test]
fn a_pod_has_the_addresses_that_it_asks_for_and_the_next_one_waits_for_them() {
    let Some(_bank) = Bank::open() else { return };
    let wish = json!({
        "isthmus.dev/ip-addresses": "10.13.0.7, fd00:13::7",
        "isthmus.dev/mac-address": "02:00:00:00:00:07",
    });
    make("first", HERE, &wish);
    let first = running("first", HERE);
    assert_eq!(first.addresses(), ["10.13.0.7", "fd00:13::7"]);
    let link = first.run(&["ip", "-o", "link", "show", "eth0"]).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(link.contains("02:00:00:00:00:07"), "{link}");
    answers(&first);

    make("second", THERE, &wish);
    within(SOON, || match events("second") {
        said if said.contains(&format!("{NAMESPACE}/first")) && said.contains("10.13.0.7") => Ok(()),
        said => Err(format!("nothing tells who has the address: {said}")),
    });
    delete(EAST, &["-n", NAMESPACE, "pod", "first"]).unwrap_or_else(|error| panic!("{error:#}"));
    let second = running("second", THERE);
    assert_eq!(second.addresses(), ["10.13.0.7", "fd00:13::7"]);
    answers(&second);
}

#[test]
fn a_statefulsets_pod_keeps_its_addresses_where_it_moves_and_while_it_is_away() {
    let Some(_bank) = Bank::open() else { return };
    let set = |node: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": { "name": "vault", "namespace": NAMESPACE },
            "spec": {
                "replicas": 1, "serviceName": "vault", "selector": { "matchLabels": { "app": "bank" } },
                "template": template(node, &json!({ "isthmus.dev/keep-addresses": "true" })),
            },
        })
        .to_string()
    };
    apply(EAST, &set(HERE)).unwrap_or_else(|error| panic!("{error:#}"));
    let before = running("vault-0", HERE);
    assert!(four(&before).octets().starts_with(&[10, 13, 0]), "{before:?}");
    assert!(six(&before).segments().starts_with(&[0xfd00, 0x13]), "{before:?}");
    answers(&before);

    apply(EAST, &set(THERE)).unwrap_or_else(|error| panic!("{error:#}"));
    let after = running("vault-0", THERE);
    assert_eq!(after.addresses(), before.addresses());
    answers(&after);

    let scale = |replicas: &str| {
        let line = ["-n", NAMESPACE, "scale", "statefulset/vault", replicas];
        kubectl(EAST, &line).unwrap_or_else(|error| panic!("{error:#}"))
    };
    scale("--replicas=0");
    within(SOON, || match kubectl(EAST, &["-n", NAMESPACE, "get", "pods", "-o", "name"]) {
        Ok(left) if left.trim().is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    scale("--replicas=1");
    assert_eq!(running("vault-0", THERE).addresses(), before.addresses());

    delete(EAST, &["-n", NAMESPACE, "statefulset", "vault"]).unwrap_or_else(|error| panic!("{error:#}"));
    within(SOON, || {
        let blocks = json(EAST, &["ipblocks"]).map_err(|error| format!("{error:#}"))?;
        let held = |block: &&Value| block["spec"]["cidr"] == format!("{}/32", before.ipv4);
        match blocks["items"].as_array().into_iter().flatten().find(held) {
            None => Ok(()),
            Some(block) => Err(format!("its block is still there: {block}")),
        }
    });
}
