// SPDX-License-Identifier: Apache-2.0
//! `make test-vm`: tests that want what many kernels leave out, WireGuard and kinds of links, in a virtual machine that boots Debian's
//! kernel. No acceleration is needed: it is about function, not speed.

mod initramfs;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::places::Places;
use crate::run::{command, output, step};

/// What `apt-cache` follows to the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
const QEMU: &str = "qemu-system-x86_64";
/// Test programs: package, name of the target, and where it goes in the machine.
const TESTS: &[(&str, &str, &str)] = &[
    ("isthmus-dataplane", "kernel_wireguard", "t/deps/wireguard"),
    ("isthmus-plugins", "it", "t/deps/links"),
    ("isthmus-wg-device", "it", "t/deps/program"),
];
/// Programs that they start: what cargo builds, its name below the target directory, and where it goes.
const STARTED: &[(&[&str], &str, &str)] = &[
    (&["--package", "isthmus-dataplane", "--example", "serve"], "examples/serve", "t/examples/serve"),
    (
        &["--package", "isthmus-plugins", "--bin", "isthmus-plugins"],
        "isthmus-plugins",
        "t/deps/isthmus-plugins",
    ),
    (&["--package", "isthmus-wg-device", "--bin", "isthmus-wg"], "isthmus-wg", "t/deps/isthmus-wg"),
];
/// The Go project's plugins that ours are compared with there, and the folder that they go to.
const GO_PLUGINS: (&[&str], &str) =
    (&["bridge", "dummy", "host-local", "ipvlan", "vlan", "vrf"], "t/deps/go");
/// The machine says this with the exit code of the tests.
const VERDICT: &str = "vm: ended ";
/// All took 14 minutes on a machine of two cores that had other work; some wait until keys of WireGuard are replaced, which is after two minutes.
const PATIENCE: Duration = Duration::from_secs(2400);

/// Boots the machine, shows what it says, and fails if a test does. `only` is a part of the names of the tests that run; empty for all.
pub fn test(places: &Places, only: &str) -> Result<()> {
    if !only.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()) {
        bail!("{only:?} is no part of the name of a test: letters, digits and _");
    }
    if !Path::new("/usr/bin").join(QEMU).exists() {
        bail!("{QEMU} is missing: apt-get install --no-install-recommends qemu-system-x86");
    }
    let mut programs = step("building the tests", || build_programs(places))?;
    let go = crate::tools::CNI.build(places)?;
    let (names, to) = GO_PLUGINS;
    programs.extend(names.iter().map(|name| (go.join(name), format!("{to}/{name}"))));
    let kernel = kernel(places)?;
    let folder = tempfile::tempdir().context("no place for the machine's file system")?;
    let image = folder.path().join("initramfs");
    initramfs::write(&image, &kernel, &programs)?;
    let mut machine = boot(&kernel.join("vmlinuz"), &image, only)?;
    let verdict = watch(&mut machine);
    // It has switched itself off, or it hangs: either way it is of no more use.
    let _ = machine.kill();
    machine.wait().context("wait for the machine")?;
    match verdict?.as_str() {
        "0" => Ok(()),
        code => bail!("tests failed in the virtual machine (exit code {code}); what they said is above"),
    }
}

/// Test programs and what they start, each with its place in the machine.
fn build_programs(places: &Places) -> Result<Vec<(PathBuf, String)>> {
    let mut programs = Vec::new();
    let mut debug = None;
    for (package, target, to) in TESTS {
        let test = build_test(places, package, target)?;
        debug = test.parent().and_then(Path::parent).map(Path::to_path_buf);
        programs.push((test, (*to).to_owned()));
    }
    let debug = debug.context("a test lies in target/debug/deps")?;
    for (what, name, to) in STARTED {
        let mut build = command(env!("CARGO"), std::iter::once("build").chain(what.iter().copied()));
        output(build.current_dir(&places.repo))?;
        programs.push((debug.join(name), (*to).to_owned()));
    }
    Ok(programs)
}

fn build_test(places: &Places, package: &str, target: &str) -> Result<PathBuf> {
    let mut build = command(env!("CARGO"), ["test", "--no-run", "--package", package, "--test", target]);
    let text = output(build.args(["--message-format", "json"]).current_dir(&places.repo))?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = messages.filter(|message| message["target"]["name"] == target);
    let path = found.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    path.with_context(|| format!("cargo built no {target}"))
}

/// The folder with `vmlinuz` and the modules of Debian's newest kernel for virtual machines, fetched once.
fn kernel(places: &Places) -> Result<PathBuf> {
    let depends = output(&mut command("apt-cache", ["depends", KERNEL]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("apt does not know {KERNEL}: run apt-get update"))?;
    let key = Key::of("vm-kernel", 1).with("package", package).finish();
    Cache::at(&places.cache)
        .entry("vm-kernel", &key, |folder| step(&format!("fetching {package}"), || unpack(package, folder)))
}

fn unpack(package: &str, folder: &Path) -> Result<()> {
    output(command("apt-get", ["download", package]).current_dir(folder))?;
    let deb = only_file(folder)?;
    output(command("dpkg", ["-x"]).arg(&deb).arg(folder.join("root")))?;
    std::fs::remove_file(&deb)?;
    let image = only_file_named(&folder.join("root/boot"), "vmlinuz-")?;
    std::fs::rename(image, folder.join("vmlinuz"))?;
    std::fs::rename(folder.join("root/lib/modules"), folder.join("modules"))?;
    std::fs::remove_dir_all(folder.join("root")).context("cannot clear what is not needed")
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    only_file_named(folder, "")
}

fn only_file_named(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut entries = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let named = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    entries.find(named).with_context(|| format!("nothing named {prefix}* in {}", folder.display()))
}

fn boot(kernel: &Path, image: &Path, only: &str) -> Result<Child> {
    let fixed = ["-M", "q35", "-m", "512", "-smp", "2", "-nic", "none", "-nographic", "-no-reboot"];
    let mut qemu = Command::new(QEMU);
    qemu.args(fixed).arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    // What the kernel does not know it hands to init, as a variable.
    qemu.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet only={only}"));
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {QEMU}"))
}

/// Shows the serial console until the verdict, and returns that.
fn watch(machine: &mut Child) -> Result<String> {
    let console = machine.stdout.take().context("the machine's console")?;
    let (say, said) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(console).split(b'\n').map_while(Result::ok);
        lines
            .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
            .try_for_each(|line| say.send(line))
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                if let Some(verdict) = line.strip_prefix(VERDICT) {
                    return Ok(verdict.to_owned());
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("no verdict within {} s", PATIENCE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine went down without a verdict"),
        }
    }
}
