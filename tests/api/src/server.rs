// SPDX-License-Identifier: Apache-2.0

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_testkit::within;
use kube::{Client, Config};
use tempfile::TempDir;
use xtask::places::Places;
use xtask::tools;

use crate::repository;

/// The bearer token of group system:masters.
pub const ADMIN: &str = "admin-of-the-test";

/// Two processes in a folder of their own. Both end with this value.
pub struct ApiServer {
    etcd: Child,
    apiserver: Child,
    url: String,
    kubectl: PathBuf,
    folder: TempDir,
}

static SHARED: Mutex<Weak<ApiServer>> = Mutex::new(Weak::new());

impl ApiServer {
    /// The server of this test program: started by the first test that asks, ended by the last that lets go.
    ///
    /// # Panics
    /// If it does not start, with the reason.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start().expect("an API server with Isthmus installed"));
        *shared = Arc::downgrade(&started);
        started
    }

    /// Starts etcd and kube-apiserver and installs `config/default`.
    ///
    /// # Errors
    /// If a program cannot be built or started.
    pub fn start() -> Result<Self> {
        let places = Places::find()?;
        let kubernetes = tools::KUBERNETES.build(&places)?;
        let etcd = tools::ETCD.build(&places)?.join("etcd");
        let folder = tempfile::tempdir().context("a folder for etcd and kube-apiserver")?;
        let store = format!("http://127.0.0.1:{}", free_port()?);
        let port = free_port()?;
        let server = Self {
            etcd: start_etcd(&etcd, folder.path(), &store)?,
            apiserver: start_apiserver(&kubernetes.join("kube-apiserver"), folder.path(), &store, port)?,
            url: format!("https://127.0.0.1:{port}"),
            kubectl: kubernetes.join("kubectl"),
            folder,
        };
        within(Duration::from_secs(60), || server.is_ready());
        server.install()?;
        Ok(server)
    }

    /// A client that shows a bearer token.
    ///
    /// # Panics
    /// If the address is not a URL, which it is.
    pub fn client(&self, token: &str) -> Client {
        let mut config = Config::new(self.url.parse().expect("a URL"));
        // The server made its certificate a moment ago; nobody else listens on this port of the loopback.
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config).expect("a client")
    }

    /// Where the server listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs our kubectl as administrator and returns what it printed.
    ///
    /// # Errors
    /// With what it printed, if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.kubectl)
            .args(["--server", &self.url, "--insecure-skip-tls-verify", "--token", ADMIN])
            .args(arguments)
            .env("KUBECONFIG", self.folder.path().join("no-kubeconfig"))
            .env("KUBECACHEDIR", self.folder.path().join("cache"))
            .output()
            .context("run kubectl")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(printed)
    }

    fn is_ready(&self) -> Result<()> {
        self.kubectl(&["get", "--raw", "/readyz"]).with_context(|| {
            let log =
                std::fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
            log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
        })?;
        Ok(())
    }

    fn install(&self) -> Result<()> {
        let manifests = repository().join("config/default");
        self.kubectl(&["apply", "--server-side", "-k", &manifests.display().to_string()])?;
        self.kubectl(&["wait", "--for", "condition=established", "crd", "--all", "--timeout=30s"])?;
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [&mut self.apiserver, &mut self.etcd] {
            // Either may have ended already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_etcd(program: &Path, folder: &Path, store: &str) -> Result<Child> {
    let data = folder.join("etcd");
    let peers = format!("http://127.0.0.1:{}", free_port()?);
    spawn(
        Command::new(program)
            .arg("--data-dir")
            .arg(data)
            .args(["--unsafe-no-fsync", "--listen-client-urls", store, "--advertise-client-urls", store])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")]),
        folder,
        "etcd",
    )
}

fn start_apiserver(program: &Path, folder: &Path, store: &str, port: u16) -> Result<Child> {
    let private = folder.join("service-accounts.key");
    let public = folder.join("service-accounts.pub");
    let key = rcgen::KeyPair::generate().context("make the key of the service accounts")?;
    std::fs::write(&private, key.serialize_pem()).context("write the key of the service accounts")?;
    std::fs::write(&public, key.public_key_pem()).context("write the key of the service accounts")?;
    let tokens = folder.join("tokens.csv");
    std::fs::write(&tokens, format!("{ADMIN},admin,1,system:masters\n"))
        .context("write the administrator's token")?;
    spawn(
        Command::new(program)
            .args([
                "--etcd-servers",
                store,
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &port.to_string(),
            ])
            .arg("--cert-dir")
            .arg(folder.join("certificates"))
            .arg("--token-auth-file")
            .arg(tokens)
            .arg("--service-account-key-file")
            .arg(public)
            .arg("--service-account-signing-key-file")
            .arg(private)
            .args(["--service-account-issuer", "https://kubernetes.default.svc.cluster.local"])
            .args(["--authorization-mode", "RBAC", "--allow-privileged"])
            .args(["--service-cluster-ip-range", "10.101.0.0/16,fd00:10:101::/112"]),
        folder,
        "kube-apiserver",
    )
}

fn spawn(command: &mut Command, folder: &Path, name: &str) -> Result<Child> {
    let log = File::create(folder.join(format!("{name}.log"))).context("a log file")?;
    let errors = log.try_clone().context("a log file")?;
    command.stdout(log).stderr(errors).spawn().with_context(|| format!("start {name}"))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port on the loopback")?;
    Ok(listener.local_addr()?.port())
}
