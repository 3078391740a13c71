// SPDX-License-Identifier: Apache-2.0
//! `make demo`: two clusters from nothing to one network, each command shown as a person would type it.
//! What is shown is what runs: every step is one line for the shell.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::places::Places;
use crate::topology::Topology;

/// The clusters.
const CLUSTERS: [&str; 2] = ["east", "west"];
/// Pod CIDRs of west that east grants (tests/kind/topologies/duo.yaml).
const WEST_CIDRS: &str = "10.2.0.0/16,fd00:10:2::/56";
/// How long the peering may take to be ready, and the service to answer.
const PATIENCE: Duration = Duration::from_secs(180);

/// Sets everything up with programs of a cargo profile, and shows it; with `only_set_up` it ends before the showing. The lab stays up.
///
/// The topology is `duo`, or another one with the same clusters, such as `routed`.
pub fn run(places: &Places, profile: &str, topology: &str, only_set_up: bool) -> Result<()> {
    let lab = Topology::read(&places.topology(topology))?;
    let stage = Stage { repo: &places.repo, profile, topology };
    stage.clusters(places)?;
    for cluster in CLUSTERS {
        let chained = lab.clusters.iter().any(|one| one.name == cluster && one.primary.is_some());
        stage.install(cluster, chained)?;
    }
    stage.ready()?;
    stage.peer()?;
    stage.shop()?;
    if !only_set_up {
        stage.show()?;
    }
    Ok(())
}

/// Where the commands are typed.
struct Stage<'a> {
    repo: &'a Path,
    /// Cargo profile whose programs run.
    profile: &'a str,
    /// What the lab looks like.
    topology: &'a str,
}

impl Stage<'_> {
    /// Tells what comes next.
    fn say(&self, text: &str) {
        println!("\n# {text}");
    }

    /// Shows a line and runs it.
    fn type_in(&self, line: &str) -> Result<()> {
        println!("$ {line}");
        let status = self.shell(line).status().context("cannot start bash")?;
        if !status.success() {
            bail!(
                "`{line}` failed ({status}); the lab is left as it is: `make lab-status` shows it, `make lab-down` ends it"
            );
        }
        Ok(())
    }

    /// Runs a line without showing it and returns what it printed, if it succeeded.
    fn quietly(&self, line: &str) -> Option<String> {
        let output = self.shell(line).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a line again and again until it succeeds; shows it once.
    fn until_done(&self, line: &str) -> Result<()> {
        println!("$ {line}");
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(answer) = self.quietly(line) {
                println!("{answer}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        bail!(
            "`{line}` did not succeed within {} s; look at `make lab-status` and `./lab exec -- isthmus status --context east`",
            PATIENCE.as_secs()
        )
    }

    fn shell(&self, line: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", line]).current_dir(self.repo).stdin(Stdio::null());
        shell
    }

    /// Where cargo puts the profile's programs.
    fn binaries(&self) -> PathBuf {
        self.repo.join("target").join(if self.profile == "dev" { "debug" } else { self.profile })
    }

    fn clusters(&self, places: &Places) -> Result<()> {
        self.say("Build Isthmus, bring two kind clusters up, load the image into their nodes.");
        let topology = match self.topology {
            "duo" => String::new(),
            other => format!(" TOPOLOGY={other}"),
        };
        self.type_in(&format!("make --no-print-directory lab-up{topology}"))?;
        self.type_in(&format!("make --no-print-directory lab-load PROFILE={}", self.profile))?;
        // The command of the build, as if it were installed: `lab exec` looks here first.
        let command = places.lab_bin().join("isthmus");
        let _ = std::fs::remove_file(&command);
        symlink(self.binaries().join("isthmus"), &command).context("cannot put isthmus into the lab's PATH")
    }

    fn install(&self, cluster: &str, chained: bool) -> Result<()> {
        let variant = if chained { "-chained" } else { "" };
        self.say(&match chained {
            false => format!("Install Isthmus in {cluster}, and give it addresses for its pods."),
            true => format!(
                "Install Isthmus in {cluster}, behind the CNI plugin there, and say what that one gives out."
            ),
        });
        let kubectl = kubectl(cluster);
        let before =
            self.quietly(&format!("{kubectl} -n isthmus-system get daemonset isthmus-agent -o name"));
        self.type_in(&format!(
            "{kubectl} apply --server-side --force-conflicts -k config/overlays/kind-{cluster}{variant} | tail -n 3"
        ))?;
        self.type_in(&format!(
            "{kubectl} wait --for=condition=Established crd/ippools.isthmus.dev --timeout=30s"
        ))?;
        self.type_in(&format!("{kubectl} apply -f config/samples/pools-{cluster}{variant}.yaml"))?;
        if before.is_some() {
            self.say("It was there before: start it anew, so that the image that was just loaded runs.");
            self.type_in(&format!("{kubectl} -n isthmus-system rollout restart deployment/isthmus-operator daemonset/isthmus-agent daemonset/isthmus-dataplane"))?;
        }
        Ok(())
    }

    fn ready(&self) -> Result<()> {
        self.say("Nodes become ready once Isthmus gives their pods a network.");
        for cluster in CLUSTERS {
            let kubectl = kubectl(cluster);
            self.type_in(&format!("{kubectl} -n isthmus-system rollout status deployment/isthmus-operator --timeout=180s | tail -n 1"))?;
            for set in ["isthmus-agent", "isthmus-dataplane"] {
                self.type_in(&format!(
                    "{kubectl} -n isthmus-system rollout status daemonset/{set} --timeout=180s | tail -n 1"
                ))?;
            }
            self.type_in(&format!("{kubectl} wait --for=condition=Ready nodes --all --timeout=180s"))?;
        }
        Ok(())
    }

    fn peer(&self) -> Result<()> {
        let (east, west) = (kubectl("east"), kubectl("west"));
        let here = |kubectl: &str, name: &str| {
            self.quietly(&format!("{kubectl} get clusterpeering {name} -o name")).is_some()
        };
        if here(&east, "west") && here(&west, "east") {
            self.say("East and west are peers already.");
        } else {
            self.say("East invites west: one manifest with a single-use token, applied in west.");
            for (cluster, peer) in [("east", "west"), ("west", "east")] {
                // Halves of an earlier run would be in the way.
                self.quietly(&format!("./lab exec -- isthmus --context {cluster} peer delete {peer}"));
            }
            self.type_in(&format!(
                "./lab exec -- isthmus --context east peer invite west --allow-cidr {WEST_CIDRS} --allow-namespace shop | {west} apply -f -"
            ))?;
        }
        self.until_done(&format!("{east} wait --for=condition=Ready clusterpeering/west --timeout=5s"))?;
        self.until_done(&format!("{west} wait --for=condition=Ready clusterpeering/east --timeout=5s"))
    }

    fn shop(&self) -> Result<()> {
        self.say("A shop in west, exported; a customer in east.");
        let (east, west) = (kubectl("east"), kubectl("west"));
        self.type_in(&format!("{west} apply -f tests/e2e/fixtures/shop.yaml"))?;
        self.type_in(&format!("{east} apply -f tests/e2e/fixtures/client.yaml"))?;
        self.type_in(&format!("{west} -n shop rollout status deployment/web --timeout=120s | tail -n 1"))?;
        self.type_in(&format!("{east} -n shop wait --for=condition=Ready pod/client --timeout=120s"))?;
        self.until_done(&format!("{east} -n shop get serviceimport web -o wide | grep ClusterSetIP"))
    }

    fn show(&self) -> Result<()> {
        let (east, west) = (kubectl("east"), kubectl("west"));
        let curl = format!(
            "{east} -n shop exec client -- curl -s -m 5 http://web.shop.svc.clusterset.local/hostname"
        );
        self.say("A pod of east asks by name, a pod of west answers.");
        self.type_in(&format!("{west} -n shop get pods -o wide"))?;
        self.until_done(&curl)?;
        self.say("West sees the customer's own address: nothing translated it.");
        self.type_in(&format!("{east} -n shop get pod client -o jsonpath='{{.status.podIPs[*].ip}}'; echo"))?;
        self.type_in(&format!("{}; echo", curl.replace("/hostname", "/clientip")))?;
        self.say("On the wire: WireGuard data packets (message type 4) between the gateways, and no HTTP.");
        let dump = "./lab exec -- timeout 20 tcpdump -l -n -i any -c 4 'udp portrange 51820-51828 and udp[8:4] = 0x04000000'";
        self.type_in(&format!(
            "({dump} 2>/dev/null & for i in 1 2 3 4 5; do {curl} > /dev/null; done; wait)"
        ))?;
        self.say("And how it all is.");
        self.type_in("./lab exec -- isthmus --context east status")?;
        println!("\n{NEXT}");
        Ok(())
    }
}

fn kubectl(cluster: &str) -> String {
    format!("./lab exec -- kubectl --context {cluster}")
}

const NEXT: &str = "\
The lab stays up. Try:
  ./lab exec -- isthmus status --context west
  ./lab exec -- kubectl --context west -n shop scale deployment/web --replicas=5
  ./lab exec -- kubectl --context east -n shop exec -it client -- dig +short web-direct.shop.svc.clusterset.local
  ./lab exec -- kubectl --context west -n shop delete serviceexport web
  ./lab exec -- isthmus peer delete west --context east
  make lab-down                     ends it, and leaves nothing behind";
