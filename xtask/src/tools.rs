// SPDX-License-Identifier: Apache-2.0
//! The Go programs of the lab, each pinned by a go.mod and go.sum under `tests/kind/tools`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::places::Places;
use crate::run::{command, logged, output, step};

/// The Kubernetes that the lab runs.
pub const KUBERNETES_VERSION: &str = "v1.37.2";

/// One go.mod and what is built from it.
pub struct ToolGroup {
    /// The folder under `tests/kind/tools`, also the name of the cache entry.
    pub name: &'static str,
    packages: &'static [(&'static str, &'static str)],
    ldflags: &'static str,
    tags: &'static str,
    cgo: bool,
}

/// kind itself.
pub const KIND: ToolGroup =
    ToolGroup { name: "kind", packages: &[("kind", "sigs.k8s.io/kind")], ldflags: "", tags: "", cgo: false };

/// All of Kubernetes that a node needs, kubectl, and the test image's agnhost.
pub const KUBERNETES: ToolGroup = ToolGroup {
    name: "kubernetes",
    packages: &[
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    ],
    // Must agree with KUBERNETES_VERSION; without it every client sees v0.0.0.
    ldflags: "-X k8s.io/component-base/version.gitVersion=v1.37.2 \
              -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37",
    tags: "",
    cgo: false,
};

/// The store of the API servers.
pub const ETCD: ToolGroup = ToolGroup {
    name: "etcd",
    packages: &[("etcd", "go.etcd.io/etcd/server/v3")],
    ldflags: "",
    tags: "",
    cgo: false,
};

/// The container runtime of the nodes.
pub const CONTAINERD: ToolGroup = ToolGroup {
    name: "containerd",
    packages: &[
        ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
        ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    ],
    ldflags: "-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    tags: "",
    cgo: false,
};

/// What containerd starts containers with.
pub const RUNC: ToolGroup = ToolGroup {
    name: "runc",
    packages: &[("runc", "github.com/opencontainers/runc")],
    ldflags: "-X main.version=1.5.2",
    tags: "seccomp",
    cgo: true,
};

/// The clusters' name server.
pub const COREDNS: ToolGroup = ToolGroup {
    name: "coredns",
    packages: &[("coredns", "github.com/coredns/coredns")],
    ldflags: "",
    tags: "",
    cgo: false,
};

/// The Go project's CNI tool and plugins, which ours are held against.
pub const CNI: ToolGroup = ToolGroup {
    name: "cni",
    packages: &[
        ("cnitool", "github.com/containernetworking/cni/cnitool"),
        ("bandwidth", "github.com/containernetworking/plugins/plugins/meta/bandwidth"),
        ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
        ("dhcp", "github.com/containernetworking/plugins/plugins/ipam/dhcp"),
        ("dummy", "github.com/containernetworking/plugins/plugins/main/dummy"),
        ("firewall", "github.com/containernetworking/plugins/plugins/meta/firewall"),
        ("host-device", "github.com/containernetworking/plugins/plugins/main/host-device"),
        ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
        ("ipvlan", "github.com/containernetworking/plugins/plugins/main/ipvlan"),
        ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
        ("macvlan", "github.com/containernetworking/plugins/plugins/main/macvlan"),
        ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
        ("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
        ("sbr", "github.com/containernetworking/plugins/plugins/meta/sbr"),
        ("static", "github.com/containernetworking/plugins/plugins/ipam/static"),
        ("tap", "github.com/containernetworking/plugins/plugins/main/tap"),
        ("tuning", "github.com/containernetworking/plugins/plugins/meta/tuning"),
        ("vlan", "github.com/containernetworking/plugins/plugins/main/vlan"),
        ("vrf", "github.com/containernetworking/plugins/plugins/meta/vrf"),
    ],
    ldflags: "",
    tags: "",
    cgo: false,
};

/// WireGuard in userspace, which ours is held against.
pub const WIREGUARD_GO: ToolGroup = ToolGroup {
    name: "wireguard-go",
    packages: &[("wireguard-go", "golang.zx2c4.com/wireguard")],
    ldflags: "",
    tags: "",
    cgo: false,
};

/// Tailscale's, which is the fastest of those in Go.
pub const WIREGUARD_GO_TAILSCALE: ToolGroup = ToolGroup {
    name: "wireguard-go-tailscale",
    packages: &[("wireguard-go", "github.com/tailscale/wireguard-go")],
    ldflags: "",
    tags: "",
    cgo: false,
};

/// A published program in Rust.
pub struct CargoProgram {
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    program: &'static str,
}

/// The first WireGuard in Rust, whose protocol engine ours is built around.
pub const BORINGTUN_CLI: CargoProgram =
    CargoProgram { package: "boringtun-cli", version: "0.7.1", program: "boringtun-cli" };

/// Mullvad's.
pub const GOTATUN_CLI: CargoProgram =
    CargoProgram { package: "gotatun-cli", version: "0.10.2", program: "gotatun" };

impl CargoProgram {
    /// The program, built once.
    pub fn build(&self, places: &Places) -> Result<PathBuf> {
        let Self { package, version, program } = self;
        let key = Key::of(package, 1).with("version", *version).finish();
        let folder = Cache::at(&places.cache).entry(package, &key, |folder| {
            step(&format!("building {package} {version}"), || {
                let root = folder.display().to_string();
                let line = ["install", "--locked", "--root", &root, package, "--version", version];
                let mut cargo = command("cargo", line);
                cargo.env("CARGO_TARGET_DIR", folder.join("target"));
                logged(&mut cargo, &places.log(&format!("build-{package}")))?;
                Ok(std::fs::remove_dir_all(folder.join("target"))?)
            })
        })?;
        Ok(folder.join("bin").join(program))
    }
}

impl ToolGroup {
    /// The version of a module that the go.mod names.
    pub fn version(&self, places: &Places, module: &str) -> Result<String> {
        let text = std::fs::read_to_string(places.tool_module(self.name).join("go.mod"))?;
        let named =
            |line: &str| Some(line.trim().strip_prefix(module)?.split_whitespace().next()?.to_owned());
        let version = text.lines().filter(|line| !line.starts_with("tool")).find_map(named);
        version.with_context(|| format!("the go.mod of {} names no version of {module}", self.name))
    }

    /// The cache key: the pinned modules, the flags and the compiler.
    pub fn key(&self, places: &Places) -> Result<Key> {
        let module = places.tool_module(self.name);
        let packages: Vec<&str> = self.packages.iter().map(|(_, package)| *package).collect();
        Ok(Key::of("go tools", 1)
            .with_file(&module.join("go.mod"))?
            .with_file(&module.join("go.sum"))?
            .with("packages", packages.join(" "))
            .with("flags", format!("{} {} {}", self.ldflags, self.tags, self.cgo))
            .with("go", go_version(&module)?)
            .finish())
    }

    /// The folder with the built programs.
    pub fn build(&self, places: &Places) -> Result<PathBuf> {
        let key = self.key(places)?;
        Cache::at(&places.cache).entry(self.name, &key, |folder| {
            step(&format!("building {} from its Go module", self.name), || self.build_into(places, folder))
        })
    }

    fn build_into(&self, places: &Places, folder: &Path) -> Result<()> {
        let mut arguments =
            vec!["build".to_owned(), "-trimpath".into(), format!("-ldflags=-s -w {}", self.ldflags)];
        if !self.tags.is_empty() {
            arguments.push(format!("-tags={}", self.tags));
        }
        arguments.push("-o".into());
        arguments.push(match self.packages {
            [(only, _)] => folder.join(only).display().to_string(),
            _ => format!("{}/", folder.display()),
        });
        arguments.extend(self.packages.iter().map(|(_, package)| (*package).to_owned()));
        let mut go = command("go", arguments);
        go.current_dir(places.tool_module(self.name)).env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
        logged(&mut go, &places.log(&format!("build-{}", self.name)))
    }
}

/// Where a module of one of our go.mod files lies in Go's module cache (downloaded if need be).
pub fn module_folder(places: &Places, group: &str, module: &str) -> Result<PathBuf> {
    let at = places.tool_module(group);
    output(command("go", ["mod", "download", module]).current_dir(&at))?;
    let folder = output(command("go", ["list", "-m", "-f", "{{.Dir}}", module]).current_dir(&at))?;
    Ok(PathBuf::from(folder.trim()))
}

fn go_version(module: &Path) -> Result<String> {
    output(command("go", ["version"]).current_dir(module))
        .context("Go is needed to build the lab's programs; `cargo xtask deps` says how to get it")
}
