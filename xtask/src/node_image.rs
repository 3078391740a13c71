// SPDX-License-Identifier: Apache-2.0
//! kind's node image, made from Debian's packages, kind's own files and the Go programs, as kind's
//! `images/base/Dockerfile` and `pkg/build/nodeimage` make it, but with nothing pulled.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cache::{Cache, Key};
use crate::image::{Image, write_archive_of_tar};
use crate::images::{Programs, write_node_images};
use crate::places::Places;
use crate::run::{command, logged, output, step, succeeds};
use crate::{rootfs, tools};

/// Raised when this file or `images.rs` changes what is in the image.
const REVISION: u32 = 2;
/// How long the containerd that fills the image store may take to answer.
const CONTAINERD_DEADLINE: Duration = Duration::from_secs(20);

/// The node image: its archive and the name that kind is given.
#[derive(Debug, Clone)]
pub struct NodeImage {
    /// The docker-archive.
    pub archive: PathBuf,
    /// Name and tag; the tag is the cache key, so equal names are equal images.
    pub reference: String,
}

/// Everything that the node image and the lab's other images are made from.
pub struct Parts {
    /// The installed Debian system.
    pub root: PathBuf,
    /// Programs that go into images.
    pub programs: Programs,
    containerd: PathBuf,
    runc: PathBuf,
}

impl Parts {
    /// Builds or finds all parts.
    pub fn build(places: &Places) -> Result<Self> {
        Ok(Self {
            root: rootfs::build(places)?,
            programs: Programs {
                kubernetes: tools::KUBERNETES.build(places)?,
                etcd: tools::ETCD.build(places)?,
                coredns: tools::COREDNS.build(places)?,
            },
            containerd: tools::CONTAINERD.build(places)?,
            runc: tools::RUNC.build(places)?,
        })
    }

    fn key(&self) -> Key {
        let Programs { kubernetes, etcd, coredns } = &self.programs;
        let folders = [&self.root, kubernetes, etcd, coredns, &self.containerd, &self.runc];
        // The parts' paths end in their own keys: together they say all that is in the image.
        let names = folders.map(|folder| {
            let parts: Vec<_> = folder.iter().rev().take(3).map(|part| part.to_string_lossy()).collect();
            parts.join("/")
        });
        Key::of("node image", REVISION).with("parts", names.join(" ")).finish()
    }
}

/// Builds or finds the node image.
pub fn build(places: &Places, parts: &Parts) -> Result<NodeImage> {
    let key = parts.key();
    let reference = format!("isthmus.dev/kind-node:{}-{}", tools::KUBERNETES_VERSION, key.short());
    let entry = Cache::at(&places.cache).entry("node-image", &key, |folder| {
        step("making the node image", || {
            let root = folder.join("root");
            assemble(places, parts, &root)?;
            preload(places, parts, &root)?;
            pack(places, &root, &reference, &folder.join("image.tar"))?;
            fs::remove_dir_all(&root).context("cannot clear the unpacked node image")
        })
    })?;
    Ok(NodeImage { archive: entry.join("image.tar"), reference })
}

fn assemble(places: &Places, parts: &Parts, root: &Path) -> Result<()> {
    output(command("cp", ["-a"]).arg(&parts.root).arg(root))?;
    let kind = tools::module_folder(places, "kind", "sigs.k8s.io/kind")?.join("images/base/files");
    copy_kind_files(&kind, root)?;
    prune_services(root)?;
    for (folder, names, target) in [
        (&parts.programs.kubernetes, &["kubelet", "kubeadm", "kubectl"][..], "usr/bin"),
        (&parts.containerd, &["containerd", "ctr", "containerd-shim-runc-v2"][..], "usr/local/bin"),
        (&parts.runc, &["runc"][..], "usr/local/sbin"),
    ] {
        fs::create_dir_all(root.join(target))?;
        for name in names {
            install(&folder.join(name), &root.join(target).join(name), 0o755)?;
        }
    }
    fs::create_dir_all(root.join("opt/cni/bin"))?;
    for plugin in ["loopback", "host-local", "ptp", "portmap", "bridge"] {
        install(&root.join("usr/lib/cni").join(plugin), &root.join("opt/cni/bin").join(plugin), 0o755)?;
    }
    fs::create_dir_all(root.join("etc/kubernetes/manifests"))?;
    fs::create_dir_all(root.join("kind/manifests"))?;
    fs::write(root.join("kind/version"), tools::KUBERNETES_VERSION)?;
    fs::write(root.join("kind/manifests/default-storage.yaml"), STORAGE_CLASS)?;
    fs::write(root.join("etc/containerd/cri-base.json"), base_spec(&parts.containerd.join("ctr"))?)?;
    Ok(())
}

/// No provisioner can be pulled; kind only insists that there is a manifest to apply.
const STORAGE_CLASS: &str = "\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: \"true\"
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
";

fn copy_kind_files(kind: &Path, root: &Path) -> Result<()> {
    output(command("cp", ["-r", "--no-preserve=mode,ownership"]).arg(kind.join(".")).arg(root))?;
    for folder in ["usr/local/bin", "kind/bin"] {
        for entry in fs::read_dir(root.join(folder))? {
            fs::set_permissions(entry?.path(), Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// As kind's Dockerfile: of systemd only what a node in a container can run.
fn prune_services(root: &Path) -> Result<()> {
    for (folder, pattern) in [
        ("lib/systemd/system/sysinit.target.wants", "systemd-tmpfiles-setup.service"),
        ("lib/systemd/system/multi-user.target.wants", ""),
        ("lib/systemd/system/local-fs.target.wants", ""),
        ("lib/systemd/system/sockets.target.wants", "udev"),
        ("lib/systemd/system/sockets.target.wants", "initctl"),
        ("lib/systemd/system/basic.target.wants", ""),
    ] {
        remove_entries(&root.join(folder), pattern)?;
    }
    for entry in fs::read_dir(root.join("etc/systemd/system"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "wants") {
            remove_entries(&path, "")?;
        }
    }
    let journal = root.join("etc/systemd/journald.conf");
    fs::write(&journal, fs::read_to_string(&journal)? + "ReadKMsg=no\n")?;
    let mut enable = command("chroot", [root]);
    enable.args(["systemctl", "enable", "kubelet.service", "containerd.service", "undo-mount-hacks.service"]);
    output(&mut enable)?;
    output(command("chroot", [root]).args(["systemctl", "mask", "systemd-binfmt.service"]))?;
    Ok(())
}

fn remove_entries(folder: &Path, containing: &str) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(containing) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// What containerd starts from for every container: kind's hook, no limits on resources.
fn base_spec(ctr: &Path) -> Result<Vec<u8>> {
    let mut spec: Value = serde_json::from_str(&output(&mut command(ctr, ["oci", "spec"]))?)?;
    spec["hooks"]["createContainer"] = json!([{ "path": "/kind/bin/mount-product-files.sh" }]);
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("rlimits");
    }
    Ok(serde_json::to_vec(&spec)?)
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, Permissions::from_mode(mode))?;
    Ok(())
}

/// Fills the image store of the node with a containerd of its own that runs on this machine.
fn preload(places: &Places, parts: &Parts, root: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("no temporary folder")?;
    let socket = work.path().join("containerd.sock");
    let config = format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [{disabled}]\n[grpc]\naddress = {socket:?}\n",
        root = root.join("var/lib/containerd"),
        state = work.path().join("state"),
        disabled =
            r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime""#,
    );
    let config_path = work.path().join("config.toml");
    fs::write(&config_path, config)?;
    let images = work.path().join("images");
    fs::create_dir_all(&images)?;
    let archives = write_node_images(places, &parts.programs, &parts.root, &images)?;

    let log = File::create(places.log("preload-containerd"))?;
    let mut server =
        Server::start(command(parts.containerd.join("containerd"), ["--config"]).arg(&config_path), log)?;
    let ctr = |arguments: &[&str]| {
        let mut ctr = command(parts.containerd.join("ctr"), ["--address"]);
        ctr.arg(&socket).args(["--namespace", "k8s.io"]).args(arguments);
        ctr
    };
    let deadline = Instant::now() + CONTAINERD_DEADLINE;
    while !succeeds(&mut ctr(&["version"])) {
        if Instant::now() > deadline {
            bail!("containerd does not answer; see {}", places.log("preload-containerd").display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for archive in &archives {
        let path = archive.to_str().context("the temporary folder's path is not UTF-8")?;
        let arguments = ["images", "import", "--local", "--discard-unpacked-layers", path];
        logged(&mut ctr(&arguments), &places.log("preload"))?;
    }
    server.stop()?;
    Ok(())
}

/// A process that ends with its value.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, log: File) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self(child.context("cannot start containerd")?))
    }

    fn stop(&mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already stopped in the good case; then both say so and nothing is lost.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pack(places: &Places, root: &Path, reference: &str, out: &Path) -> Result<()> {
    let layer = out.with_extension("layer");
    let mut tar = command("tar", ["--sort=name", "--mtime=@0", "--numeric-owner", "--one-file-system", "-C"]);
    tar.arg(root).arg("-cf").arg(&layer).arg(".");
    logged(&mut tar, &places.log("pack"))?;
    let image = Image {
        reference: reference.to_owned(),
        entrypoint: vec!["/usr/local/bin/entrypoint".into(), "/sbin/init".into()],
        environment: vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            "container=docker".into(),
        ],
        stop_signal: Some("SIGRTMIN+3".into()),
        ..Image::default()
    };
    write_archive_of_tar(&image, File::open(&layer)?, out)?;
    fs::remove_file(layer)?;
    Ok(())
}
