// SPDX-License-Identifier: Apache-2.0
//! The images of the lab, each made from programs that are here: Kubernetes' own, the test image, and ours.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::image::{Files, Image, SystemRoot, write_archive};
use crate::on_node::{self, OnNode};
use crate::places::Places;
use crate::run::{command, logged, output, step};
use crate::tools::{self, KUBERNETES_VERSION};

/// The image that Kubernetes' own suite runs its pods from; ours for tests too.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
/// The image of everything that Isthmus runs.
pub const ISTHMUS: &str = "isthmus.dev/isthmus:dev";

/// The binaries in the Isthmus image and the packages that they are built from.
const ISTHMUS_BINARIES: &[(&str, &str)] = &[
    ("isthmus-operator", "isthmus-operator"),
    ("isthmus-agent", "isthmus-node-agent"),
    ("isthmus-dataplane", "isthmus-node-agent"),
    ("isthmus-cni", "isthmus-cni"),
    ("isthmus", "isthmus-cli"),
    ("isthmus-plugins", "isthmus-plugins"),
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs that commands in test pods call.
const TEST_PROGRAMS: &[&str] = &[
    "/usr/bin/bash",
    "/usr/bin/cat",
    "/usr/bin/chmod",
    "/usr/bin/cp",
    "/usr/bin/curl",
    "/usr/bin/cut",
    "/usr/bin/date",
    "/usr/bin/dd",
    "/usr/bin/dig",
    "/usr/bin/echo",
    "/usr/bin/env",
    "/usr/bin/getent",
    "/usr/bin/grep",
    "/usr/bin/head",
    "/usr/bin/hostname",
    "/usr/bin/id",
    "/usr/bin/ip",
    "/usr/bin/ipcs",
    "/usr/bin/iperf",
    "/usr/bin/iperf3",
    "/usr/bin/ls",
    "/usr/bin/mkdir",
    "/usr/bin/mv",
    "/usr/bin/nc.openbsd",
    "/usr/bin/nslookup",
    "/usr/bin/ping",
    "/usr/bin/rm",
    "/usr/bin/sed",
    "/usr/bin/seq",
    "/usr/bin/sleep",
    "/usr/bin/socat",
    "/usr/bin/sort",
    "/usr/bin/ss",
    "/usr/bin/stat",
    "/usr/bin/tail",
    "/usr/bin/tee",
    "/usr/bin/test",
    "/usr/bin/timeout",
    "/usr/bin/touch",
    "/usr/bin/tr",
    "/usr/bin/uname",
    "/usr/bin/uniq",
    "/usr/bin/wc",
    "/usr/bin/wget",
    "/usr/bin/xargs",
    "/usr/sbin/ethtool",
    "/usr/bin/tcpdump",
];

/// The folders with the built Go programs that images are made from.
pub struct Programs {
    /// Kubernetes, kubectl and agnhost.
    pub kubernetes: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
}

/// Writes every image that a node must hold before it has a network into `folder`; returns the archives.
pub fn write_node_images(
    places: &Places,
    programs: &Programs,
    root: &Path,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let pause = pause_program(places, folder)?;
    let mut all = vec![
        single("etcd:3.7.0-0", "/usr/local/bin/etcd", &programs.etcd.join("etcd"), false),
        single("coredns/coredns:v1.14.6", "/coredns", &programs.coredns.join("coredns"), true),
        single("pause:3.10.2", "/pause", &pause, true),
        single("pause:3.10", "/pause", &pause, true),
        kube_proxy(programs, &SystemRoot::at(root))?,
        (named(AGNHOST), agnhost_files(places, programs, root)?),
    ];
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        let reference = format!("{name}:{KUBERNETES_VERSION}");
        all.push(single(
            &reference,
            &format!("/usr/local/bin/{name}"),
            &programs.kubernetes.join(name),
            false,
        ));
    }
    let mut archives = Vec::new();
    for (index, (image, files)) in all.iter().enumerate() {
        let archive = folder.join(format!("{index}.tar"));
        write_archive(image, files, &archive)?;
        archives.push(archive);
    }
    std::fs::remove_file(pause)?;
    Ok(archives)
}

/// The archive of the test image, for nodes that do not bring it.
pub fn agnhost_archive(places: &Places, programs: &Programs, root: &Path) -> Result<PathBuf> {
    let key = Key::of("agnhost image", 1)
        .with("programs", programs.kubernetes.display().to_string())
        .with("root", root.display().to_string())
        .finish();
    let entry = Cache::at(&places.cache).entry("agnhost", &key, |folder| {
        let files = agnhost_files(places, programs, root)?;
        write_archive(&named(AGNHOST), &files, &folder.join("image.tar")).map(drop)
    })?;
    Ok(entry.join("image.tar"))
}

/// Writes the Isthmus image from the binaries of this checkout to `out` and returns its ID.
pub fn write_isthmus(places: &Places, profile: &str, out: &Path) -> Result<String> {
    let folder = places.repo.join("target").join(if profile == "dev" { "debug" } else { profile });
    // The other plugins take a minute and a half to build so, which a lab is not worth.
    let for_nodes = |name: &str| name == "isthmus-cni" || (name == "isthmus-plugins" && profile == "release");
    let missing: Vec<&str> = ISTHMUS_BINARIES
        .iter()
        .filter(|(name, _)| !for_nodes(name) && !folder.join(name).exists())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "{} lacks binaries of {}: run `make build PROFILE={profile}`",
            folder.display(),
            missing.join(", ")
        );
    }
    let stripped = tempfile::tempdir_in(out.parent().context("an image lies in a folder")?)?;
    let mut files = Files::default();
    for (name, _) in ISTHMUS_BINARIES {
        let built = if for_nodes(name) {
            on_node::build(places, name)?
        } else {
            OnNode { program: folder.join(name), is_static: false }
        };
        let small = stripped.path().join(name);
        output(command("strip", ["-o"]).arg(&small).arg(built.program))?;
        let (path, inside) =
            (small.to_str().context("the cache's path is not UTF-8")?, format!("/usr/bin/{name}"));
        if built.is_static {
            files.copy(&inside, &small, 0o755);
        } else {
            SystemRoot::host().add_as(&mut files, path, &inside)?;
        }
    }
    files.text(
        "/etc/passwd",
        "root:x:0:0:root:/:/usr/sbin/nologin\nnonroot:x:65532:65532::/:/usr/sbin/nologin\n",
    );
    files.text("/etc/group", "root:x:0:\nnonroot:x:65532:\n");
    files.text("/etc/nsswitch.conf", "hosts: files dns\n");
    files.folder("/tmp", 0o1777);
    step("writing the Isthmus image", || write_archive(&named(ISTHMUS), &files, out))
}

fn named(reference: &str) -> Image {
    let mut image =
        Image { reference: reference.to_owned(), environment: vec![PATH.to_owned()], ..Image::default() };
    if reference == AGNHOST {
        image.entrypoint = vec!["/agnhost".into()];
        image.arguments = vec!["pause".into()];
    }
    image
}

/// An image of Kubernetes' registry that holds one static program.
fn single(name: &str, path: &str, program: &Path, starts: bool) -> (Image, Files) {
    let mut image = named(&format!("registry.k8s.io/{name}"));
    if starts {
        image.entrypoint = vec![path.to_owned()];
    }
    let mut files = Files::default();
    files.copy(path, program, 0o755);
    files.folder("/tmp", 0o1777);
    (image, files)
}

/// protocols(5) of what Services speak.
const PROTOCOLS: &str = "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n";

/// kube-proxy with nft and with iptables and all its match and target libraries: either mode works.
fn kube_proxy(programs: &Programs, system: &SystemRoot) -> Result<(Image, Files)> {
    let mut files = Files::default();
    files.copy("/usr/local/bin/kube-proxy", programs.kubernetes.join("kube-proxy"), 0o755);
    for program in ["/usr/sbin/nft", "/usr/sbin/conntrack", "/usr/sbin/xtables-nft-multi", "/usr/bin/kmod"] {
        system.add(&mut files, program)?;
    }
    for family in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            files.symlink(format!("/usr/sbin/{family}{suffix}"), "xtables-nft-multi");
        }
    }
    system.add_library_folder(&mut files, "/usr/lib/x86_64-linux-gnu/xtables")?;
    // Without names of protocols nft lists numbers, and kube-proxy takes its own map elements for foreign ones at its next
    // start.
    files.text("/etc/protocols", PROTOCOLS);
    files.symlink("/usr/sbin/modprobe", "/usr/bin/kmod");
    files.folder("/run", 0o755);
    files.folder("/tmp", 0o1777);
    Ok((named(&format!("registry.k8s.io/kube-proxy:{KUBERNETES_VERSION}")), files))
}

fn agnhost_files(places: &Places, programs: &Programs, root: &Path) -> Result<Files> {
    let system = SystemRoot::at(root);
    let mut files = Files::default();
    for program in TEST_PROGRAMS {
        system.add(&mut files, program)?;
    }
    // The suite pipes scripts into sh that want bash's `echo -e` and /dev/tcp no less than POSIX.
    for (link, target) in [("sh", "bash"), ("nc", "nc.openbsd"), ("netcat", "nc.openbsd"), ("[", "test")] {
        files.symlink(format!("/usr/bin/{link}"), target);
    }
    files.symlink("/bin", "usr/bin");
    files.symlink("/sbin", "usr/sbin");
    files.symlink("/usr/local/bin/iperf", "/usr/bin/iperf");
    files.copy("/agnhost", programs.kubernetes.join("agnhost"), 0o755);
    files.symlink("/agnhost-2", "agnhost");
    files.copy("/coredns", programs.coredns.join("coredns"), 0o755);
    let source =
        tools::module_folder(places, "kubernetes", "k8s.io/kubernetes")?.join("test/images/agnhost/porter");
    for name in ["localhost.crt", "localhost.key"] {
        files.copy(format!("/{name}"), source.join(name), 0o644);
    }
    files.text(
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    );
    files.text(
        "/etc/group",
        "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n",
    );
    files.text("/etc/nsswitch.conf", "hosts: files dns\n");
    files.folder("/uploads", 0o777);
    files.folder("/root", 0o700);
    files.folder("/tmp", 0o1777);
    files.folder("/run", 0o755);
    Ok(files)
}

/// Compiles Kubernetes' pause, the one C program of the lab, statically.
fn pause_program(places: &Places, folder: &Path) -> Result<PathBuf> {
    let source =
        tools::module_folder(places, "kubernetes", "k8s.io/kubernetes")?.join("build/pause/linux/pause.c");
    let out = folder.join("pause");
    let mut cc = command("gcc", ["-Os", "-static", "-s", "-DVERSION=3.10.2", "-o"]);
    logged(cc.arg(&out).arg(source), &places.log("pause"))?;
    Ok(out)
}
