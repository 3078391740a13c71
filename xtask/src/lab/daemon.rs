// SPDX-License-Identifier: Apache-2.0
//! The lab's own Docker daemon: in a network namespace of its own, so that its bridges, translation rules and
//! forwarding never touch the machine's, and in a mount namespace of its own, so that its mounts end with it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

use super::{cgroup, oci_runtime};
use crate::places::Places;
use crate::run::{command, output, succeeds};

/// The lab's network namespace, as `ip netns` names it.
pub const NAMESPACE: &str = "isthmus-lab";
const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Where the daemon listens.
pub fn socket(places: &Places) -> PathBuf {
    places.state.join("docker.sock")
}

/// Whether the daemon answers.
pub fn answers(places: &Places) -> bool {
    socket(places).exists() && succeeds(&mut docker(places, ["version"]))
}

/// A call of the Docker client to the lab's daemon.
pub fn docker<'a>(places: &Places, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut docker = command("/usr/bin/docker", ["-H"]);
    docker.arg(format!("unix://{}", socket(places).display())).args(arguments);
    docker
}

/// Makes the namespace and starts the daemon; returns when it answers.
pub fn start(places: &Places) -> Result<()> {
    output(&mut command("ip", ["netns", "add", NAMESPACE]))?;
    output(&mut command("ip", ["-n", NAMESPACE, "link", "set", "lo", "up"]))?;
    fs::create_dir_all(places.lab_bin())?;
    let runtime = places.lab_bin().join(oci_runtime::NAME);
    let ourselves = std::env::current_exe().context("cannot find this program")?;
    fs::copy(&ourselves, &runtime).context("cannot install the runtime")?;
    let config = places.state.join("daemon.json");
    fs::write(&config, serde_json::to_vec_pretty(&daemon_config(places, &runtime))?)?;

    let log = File::create(places.state.join("dockerd.log"))?;
    command(&ourselves, ["lab-daemon"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the daemon's process")?;
    let deadline = Instant::now() + START_DEADLINE;
    while !answers(places) {
        if Instant::now() > deadline {
            bail!("dockerd does not answer; see {}", places.state.join("dockerd.log").display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Becomes the daemon. What `lab-daemon` runs: a process of its own, because namespaces belong to processes.
pub fn become_daemon(config: &Path) -> Result<std::convert::Infallible> {
    cgroup::enter()?;
    enter_network()?;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    remount_sys().context("cannot mount /sys for the lab's network namespace")?;
    let error = Command::new("dockerd").arg("--config-file").arg(config).exec();
    Err(error).context("cannot start dockerd (apt-get install docker.io)")
}

/// Moves this process into the lab's network namespace.
pub fn enter_network() -> Result<()> {
    let path = Path::new("/run/netns").join(NAMESPACE);
    let namespace = File::open(path).context("the lab is not up: run `make lab-up`")?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .context("cannot enter the lab's network namespace (root is needed)")
}

/// Asks the daemon to end, then ends whatever of the lab is left and removes the namespace.
pub fn stop(places: &Places) -> Result<()> {
    if let Some(pid) = daemon_process(places) {
        // Gone already: that is what we want.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        while cgroup::processes().contains(&pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    cgroup::end_all()?;
    if Path::new("/run/netns").join(NAMESPACE).exists() {
        output(&mut command("ip", ["netns", "delete", NAMESPACE]))?;
    }
    Ok(())
}

/// The recorded daemon, if that process is still one of the lab's.
fn daemon_process(places: &Places) -> Option<nix::unistd::Pid> {
    let text = fs::read_to_string(places.state.join("docker.pid")).ok()?;
    let pid = nix::unistd::Pid::from_raw(text.trim().parse().ok()?);
    cgroup::processes().contains(&pid).then_some(pid)
}

fn daemon_config(places: &Places, runtime: &Path) -> serde_json::Value {
    json!({
        "data-root": places.docker_data(),
        "exec-root": places.state.join("exec"),
        "pidfile": places.state.join("docker.pid"),
        "hosts": [format!("unix://{}", socket(places).display())],
        "storage-driver": "overlay2",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": format!("/{}", cgroup::GROUP),
        "oom-score-adjust": 0,
        "bridge": "none",
        "default-runtime": "isthmus",
        "runtimes": { "isthmus": { "path": runtime } },
    })
}

/// A sysfs shows the network namespace of who mounted it; dockerd wants its own and the machine's control
/// groups below it.
fn remount_sys() -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let aside = tempfile::tempdir()?;
    let groups = "/sys/fs/cgroup";
    mount(Some(groups), aside.path(), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE)?;
    mount(Some(aside.path()), groups, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    nix::mount::umount2(aside.path(), nix::mount::MntFlags::MNT_DETACH)?;
    Ok(())
}
