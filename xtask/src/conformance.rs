// SPDX-License-Identifier: Apache-2.0
//! `make conformance`: Kubernetes' own network tests on one cluster of the lab, with Isthmus as its CNI and kube-proxy
//! beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::places::Places;
use crate::run::{command, logged, output, step};
use crate::{demo, lab};

/// Which of Kubernetes' specs run: how pods and nodes reach each other, and Services.
const FOCUS: &str = r"\[sig-network\] (Networking|Services)";
/// Specs that need what this lab does not have: cloud providers, hours, or a second family alone.
const SKIP: &str = r"Feature:|Slow|Disruptive|Serial|Flaky|\[Alpha\]|IPv6";
/// Specs that cannot run where the kernel lacks something: how they are found, and what is missing.
const WITHOUT_KERNEL: [(&str, &str); 1] =
    [("SCTP", "SCTP sockets (CONFIG_IP_SCTP): a pod there cannot open one, whatever the network does")];

/// What the caller may choose.
pub struct Choice {
    /// The cluster, a context of the lab's kubeconfig.
    pub cluster: String,
    /// Specs side by side.
    pub processes: u8,
    /// Another choice of specs, a regular expression of Ginkgo.
    pub focus: Option<String>,
    /// The cargo profile whose programs are installed if the lab is not up yet.
    pub profile: String,
}

/// Builds the suite, brings the lab up if it is not, runs the suite, and names what could not run.
pub fn run(places: &Places, choice: &Choice) -> Result<()> {
    let programs = build(places)?;
    if lab::Record::find(places).is_none() {
        demo::run(places, &choice.profile, "duo", true)?;
    }
    let skipped = missing_in_kernel();
    for (name, reason) in &skipped {
        println!("left out: specs named {name}: this kernel has no {reason}");
    }
    let mut skip = SKIP.to_owned();
    skipped.iter().for_each(|(name, _)| skip.push_str(&format!("|{name}")));
    let record = lab::Record::read(places)?;
    record.site.enter()?;
    let mut ginkgo = record.site.command(places, programs.join("ginkgo"));
    ginkgo
        .args(["run", "-p", "--no-color", "--timeout=60m"])
        .arg(format!("--procs={}", choice.processes))
        .arg(format!("--focus={}", choice.focus.as_deref().unwrap_or(FOCUS)))
        .arg(format!("--skip={skip}"))
        .arg(programs.join("network.test"))
        .args(["--", "-provider=skeleton", "-num-nodes=2"])
        .arg(format!("-kubeconfig={}", places.kubeconfig().display()))
        .arg(format!("-context={}", choice.cluster));
    let status = ginkgo.status().context("cannot start ginkgo")?;
    if !status.success() {
        bail!("not all of Kubernetes' specs passed on {} ({status}); see above", choice.cluster);
    }
    Ok(())
}

/// Compiles the suite and its runner once for each content of their go.mod.
fn build(places: &Places) -> Result<PathBuf> {
    let module = places.repo.join("tests/conformance");
    let key = Key::of("conformance", 1)
        .with_file(&module.join("go.mod"))?
        .with_file(&module.join("go.sum"))?
        .with_file(&module.join("suite_test.go"))?
        .with("go", output(command("go", ["version"]).current_dir(&module))?)
        .finish();
    Cache::at(&places.cache).entry("conformance", &key, |folder| {
        step("building Kubernetes' network tests", || build_into(places, &module, folder))
    })
}

fn build_into(places: &Places, module: &Path, folder: &Path) -> Result<()> {
    let flags = "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 \
                 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";
    let mut suite = command("go", ["test", "-c", "-trimpath", flags, "-o"]);
    suite.arg(folder.join("network.test")).arg(".");
    let mut runner = command("go", ["build", "-trimpath", "-ldflags=-s -w", "-o"]);
    runner.arg(folder.join("ginkgo")).arg("github.com/onsi/ginkgo/v2/ginkgo");
    for (go, log) in [(&mut suite, "build-conformance"), (&mut runner, "build-ginkgo")] {
        go.current_dir(module).env("CGO_ENABLED", "0");
        logged(go, &places.log(log))?;
    }
    Ok(())
}

/// The specs that the running kernel makes impossible.
fn missing_in_kernel() -> Vec<(&'static str, &'static str)> {
    let sctp = std::fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    let has_sctp = sctp.lines().any(|line| line.starts_with("SCTP"));
    WITHOUT_KERNEL.into_iter().filter(|(name, _)| *name != "SCTP" || !has_sctp).collect()
}
