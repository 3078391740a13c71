// SPDX-License-Identifier: Apache-2.0
//! The two clusters, brought up once for all tests of a program.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use isthmus_testkit::within;

use crate::lab::{apply, exec, fixture, kubectl, root};

/// The inviting cluster.
pub const EAST: &str = "east";
/// The invited cluster.
pub const WEST: &str = "west";
/// Both.
pub const CLUSTERS: [&str; 2] = [EAST, WEST];
/// Every node of the lab.
pub const NODES: [&str; 6] = [
    "east-control-plane",
    "east-worker",
    "east-worker2",
    "west-control-plane",
    "west-worker",
    "west-worker2",
];

/// Pod CIDRs that each cluster has.
const CIDRS: [(&str, &str); 2] = [(EAST, "10.1.0.0/16,fd00:10:1::/56"), (WEST, "10.2.0.0/16,fd00:10:2::/56")];
const PEERING_TIMEOUT: Duration = Duration::from_secs(90);

/// The lab, for the time of one test: tests that disturb it never run beside each other.
pub struct Duo {
    _alone: MutexGuard<'static, ()>,
}

/// The peer of a cluster, which is also the name of the peering.
pub fn other(cluster: &str) -> &'static str {
    if cluster == EAST { WEST } else { EAST }
}

/// The lab as [`duo`] gives it, and each cluster the other's ready peer.
#[track_caller]
pub fn peered() -> Option<Duo> {
    let duo = duo()?;
    duo.peered();
    Some(duo)
}

/// The lab `duo` with Isthmus in it and the pods of the fixtures running. `None`, and a word on stderr, where it cannot be:
/// without root.
pub fn duo() -> Option<Duo> {
    lab("duo")
}

/// The same clusters, each with Isthmus behind a CNI plugin of its own, and each the other's ready peer.
#[track_caller]
pub fn chained() -> Option<Duo> {
    let duo = lab("chained")?;
    duo.peered();
    Some(duo)
}

/// All tests of a program use one topology.
fn lab(topology: &str) -> Option<Duo> {
    static UP: OnceLock<Result<(), String>> = OnceLock::new();
    static ALONE: Mutex<()> = Mutex::new(());
    if !is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    // A test that failed poisons nothing: the next one looks at the state by itself.
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = UP.get_or_init(|| bring_up(topology)) {
        panic!("the lab cannot be brought up, so no test can run: {error}");
    }
    Some(Duo { _alone: alone })
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

fn bring_up(topology: &str) -> Result<(), String> {
    if std::env::var_os("ISTHMUS_E2E_KEEP").is_none() {
        let mut demo = Command::new(env!("CARGO"));
        let line = ["run", "-q", "-p", "xtask", "--", "demo", "--only-set-up", "--topology", topology];
        demo.args(line).current_dir(root());
        let status = demo.status().map_err(|error| format!("cargo does not start: {error}"))?;
        if !status.success() {
            return Err(format!("`cargo xtask demo --only-set-up --topology {topology}` failed; see above"));
        }
    }
    for cluster in CLUSTERS {
        let pods = fixture("pods.yaml").replace("CLUSTER", cluster);
        apply(cluster, &pods).map_err(|error| format!("{error:#}"))?;
    }
    for cluster in CLUSTERS {
        let ready = ["-n", "e2e", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
        kubectl(cluster, &ready).map_err(|error| format!("{error:#}"))?;
    }
    Ok(())
}

impl Duo {
    /// Waits until each cluster says of the other that it is ready; invites anew where a peering is missing.
    #[track_caller]
    pub fn peered(&self) {
        let there = |cluster: &str| {
            kubectl(cluster, &["get", "clusterpeering", other(cluster), "-o", "name"]).is_ok()
        };
        if !CLUSTERS.into_iter().all(there) {
            self.part();
            let manifest = self.invite("15m");
            apply(WEST, &manifest).unwrap_or_else(|error| panic!("{error:#}"));
        }
        for cluster in CLUSTERS {
            self.condition(cluster, "Ready", "True", PEERING_TIMEOUT);
        }
    }

    /// East's invitation to west as a manifest.
    #[track_caller]
    pub fn invite(&self, ttl: &str) -> String {
        let line = [
            "isthmus",
            "--context",
            EAST,
            "peer",
            "invite",
            WEST,
            "--renew",
            "--ttl",
            ttl,
            "--allow-namespace",
            "shop",
            "--allow-cidr",
            CIDRS[1].1,
        ];
        exec(&line).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Deletes the peering on both sides.
    pub fn part(&self) {
        for cluster in CLUSTERS {
            // Nothing to delete is fine here.
            let _ = exec(&["isthmus", "--context", cluster, "peer", "delete", other(cluster)]);
        }
    }

    /// Waits until a condition of a cluster's peering has a status; returns its reason and message.
    #[track_caller]
    pub fn condition(&self, cluster: &str, kind: &str, status: &str, deadline: Duration) -> (String, String) {
        within(deadline, || {
            let object = crate::json(cluster, &["clusterpeering", other(cluster)])
                .map_err(|error| format!("{error:#}"))?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().find(|condition| condition["type"] == kind);
            let text =
                |key: &str| found.map(|c| c[key].as_str().unwrap_or_default().to_owned()).unwrap_or_default();
            match text("status") == status {
                true => Ok((text("reason"), text("message"))),
                false => Err(format!(
                    "peering {} in {cluster}: wanted {kind}={status}, conditions are {conditions:?}",
                    other(cluster)
                )),
            }
        })
    }

    /// Pod CIDRs of a cluster, as the topology has them.
    pub fn cidrs(&self, cluster: &str) -> Vec<&'static str> {
        CIDRS.iter().filter(|(name, _)| *name == cluster).flat_map(|(_, cidrs)| cidrs.split(',')).collect()
    }
}
