// SPDX-License-Identifier: Apache-2.0
//! `isthmus ipam check` asks the agents of real nodes, with no more rights than its chapter names.

use std::time::Duration;

use isthmus_e2e::{EAST, apply, delete, duo, exec, json, kubectl, on_node, within};
use serde_json::Value;

const NODE: &str = "east-worker";
const KUBECONFIG: &str = "/run/isthmus-lab/kubeconfig-auditor";
const SOON: Duration = Duration::from_secs(30);

/// What the chapter on addresses asks for.
const RIGHTS: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: auditor, namespace: e2e }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: e2e-auditor }
rules:
  - { apiGroups: [""], resources: [nodes], verbs: [list] }
  - { apiGroups: [""], resources: [pods], verbs: [get, list] }
  - { apiGroups: [isthmus.dev], resources: [ippools, ipblocks], verbs: [list] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: e2e-auditor }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-auditor }
subjects: [{ kind: ServiceAccount, name: auditor, namespace: e2e }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: e2e-auditor, namespace: isthmus-system }
rules:
  - { apiGroups: [""], resources: [pods/exec], verbs: [get, create] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: e2e-auditor, namespace: isthmus-system }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: e2e-auditor }
subjects: [{ kind: ServiceAccount, name: auditor, namespace: e2e }]
"#;

/// The program's exit code and what it printed.
fn ipam_check(options: &str) -> (i32, String) {
    let line = format!(
        "isthmus --kubeconfig {KUBECONFIG} --context {EAST} ipam check {options} 2>&1; echo \"exit $?\""
    );
    let said = exec(&["bash", "-c", &line]).unwrap_or_else(|error| panic!("{error:#}"));
    let (printed, code) = said.trim_end().rsplit_once("exit ").expect("an exit code");
    (code.parse().expect("a number"), printed.to_owned())
}

/// What it finds about the pod that was made by hand, with its exit code and the whole report.
fn found(options: &str) -> (i32, Vec<Value>, Value) {
    let (code, printed) = ipam_check(&format!("-o json {options}"));
    let report: Value =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("exit {code}, {error}: {printed}"));
    (code, report["findings"].as_array().cloned().unwrap_or_default(), report)
}

/// Calls the node's plugin as a runtime does, for a container that no kubelet knows.
const ADD: &str = r#"
set -e
ip netns add e2e-ghost
export CNI_COMMAND=ADD CNI_CONTAINERID=e2e-ghost CNI_NETNS=/run/netns/e2e-ghost CNI_IFNAME=eth0
export CNI_ARGS="K8S_POD_NAMESPACE=e2e;K8S_POD_NAME=ghost" CNI_PATH=/opt/cni/bin
echo '{"cniVersion":"1.1.0","name":"isthmus","type":"isthmus-cni"}' | /opt/cni/bin/isthmus-cni"#;

/// Access to the cluster of somebody who may do this and nothing else, until it is dropped.
struct Auditor;

impl Auditor {
    fn new() -> anyhow::Result<Self> {
        let auditor = Self;
        apply(EAST, RIGHTS)?;
        let token = kubectl(EAST, &["-n", "e2e", "create", "token", "auditor"])?;
        let line = "set -e; cp \"$KUBECONFIG\" $1; k=\"kubectl --kubeconfig $1 config\"; \
                    $k set-credentials auditor --token=\"$2\"; $k set-context $3 --user=auditor";
        exec(&["bash", "-c", line, "auditor", KUBECONFIG, token.trim(), EAST])?;
        Ok(auditor)
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        let of = |kind: &str, namespace: &str, name: &str| {
            if let Err(error) = delete(EAST, &["-n", namespace, kind, name]) {
                eprintln!("{error:#}");
            }
        };
        of("clusterrolebinding", "e2e", "e2e-auditor");
        of("clusterrole", "e2e", "e2e-auditor");
        of("rolebinding", "isthmus-system", "e2e-auditor");
        of("role", "isthmus-system", "e2e-auditor");
        of("serviceaccount", "e2e", "auditor");
        // Gone already is fine.
        let _ = std::fs::remove_file(KUBECONFIG);
        let _ = on_node(NODE, "ip netns delete e2e-ghost 2> /dev/null", &[]);
    }
}

#[test]
fn ipam_check_finds_nothing_in_a_healthy_cluster_tells_a_lost_del_and_gives_its_addresses_back() {
    let Some(_duo) = duo() else { return };
    let _auditor = Auditor::new().unwrap_or_else(|error| panic!("{error:#}"));

    let (code, findings, report) = found("");
    assert_eq!((code, &findings, &report["nodes"]), (0, &vec![], &Value::from(3)), "{report}");
    let held = pods_addresses();
    assert_eq!(report["held"], held, "addresses of pods in the API, and what nodes hold");
    let (code, text) = ipam_check("");
    assert_eq!((code, text.trim()), (0, format!("3 nodes, {held} addresses held").as_str()));

    let given = ghost();
    // Its link is there, so that somebody may use it: told, and not freed.
    let (code, findings, report) = found("--fix");
    let [leaked] = &findings[..] else { panic!("{report}") };
    let said = (code, &leaked["kind"], &leaked["node"], &leaked["pod"]);
    assert_eq!(said, (1, &"Leaked".into(), &NODE.into(), &"e2e/ghost".into()), "{report}");
    assert_eq!(
        leaked["addresses"],
        given["ips"].as_array().into_iter().flatten().map(bare).collect::<Value>()
    );
    assert!(leaked.get("freeable").is_none() && report.get("fixes").is_none(), "{report}");

    lose(&given);
    let mut said = vec![ipam_check("--fix")];
    if !said[0].1.contains("given back") {
        // The agent looks for such by itself, twice a minute, and came first. It does not so soon again.
        lose(&ghost());
        said.push(ipam_check("--fix"));
    }
    let (code, text) = said.last().expect("one at least");
    assert!(*code == 0 && text.contains("Leaked") && text.contains("on east-worker: given back"), "{said:?}");

    let (code, findings, report) = found("");
    assert_eq!((code, &findings, &report["held"]), (0, &vec![], &Value::from(held)), "{report}");
}

/// A container that no kubelet knows is added; the plugin's result.
#[track_caller]
fn ghost() -> Value {
    let printed = on_node(NODE, ADD, &[]).unwrap_or_else(|error| panic!("{error:#}"));
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Its sandbox goes, and nobody calls DEL.
#[track_caller]
fn lose(ghost: &Value) {
    on_node(NODE, "ip netns delete e2e-ghost", &[]).unwrap_or_else(|error| panic!("{error:#}"));
    let link = ghost["interfaces"][0]["name"].as_str().expect("its link");
    within(SOON, || {
        on_node(NODE, "test ! -e \"/sys/class/net/$1\"", &[link]).map_err(|error| format!("{error:#}"))
    });
}

/// The address of a result without its prefix length.
fn bare(ip: &Value) -> Value {
    ip["address"].as_str().and_then(|net| net.split('/').next()).into()
}

/// Addresses of pods that have a network of their own.
fn pods_addresses() -> usize {
    let pods = json(EAST, &["pods", "-A"]).unwrap_or_default();
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let own =
        pods.iter().filter(|pod| pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running");
    own.map(|pod| pod["status"]["podIPs"].as_array().map_or(0, Vec::len)).sum()
}
