// SPDX-License-Identifier: Apache-2.0
//! Network namespaces for the check: each belongs to a thread, and is gone with it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getpid, gettid};

/// Runs `work` in a network namespace of its own. What it starts is in there too.
///
/// # Errors
/// Not root.
pub(super) fn in_new<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || -> Result<T> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace cannot be made: run this as root")?;
        Ok(work())
    });
    thread.join().map_err(|_| anyhow!("the check ended early; this is a fault of isthmus"))?
}

/// A container's namespace.
pub(super) struct Space {
    path: PathBuf,
    /// Dropped, it lets the thread end.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    pub(super) fn new() -> Result<Self> {
        let (end, ended): (Sender<()>, Receiver<()>) = channel();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid());
            // Whoever waits for it may have gone.
            let _ = tell.send(made);
            let _ = ended.recv();
        });
        let id =
            told.recv().context("the namespace's thread")?.context("a network namespace cannot be made")?;
        let path = format!("/proc/{}/task/{id}/ns/net", getpid());
        Ok(Self { path: path.into(), end: Some(end), thread: Some(thread) })
    }

    /// For `CNI_NETNS`.
    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Names of the interfaces in there, but for `lo`.
    pub(super) fn interfaces(&self) -> Result<Vec<String>> {
        self.inside(|| {
            let links = nix::net::if_::if_nameindex()?;
            let names = links.iter().map(|link| link.name().to_string_lossy().into_owned());
            Ok(names.filter(|name| name != "lo").collect())
        })
    }

    /// Runs ip(8) in there.
    pub(super) fn ip(&self, args: &'static [&'static str]) -> Result<()> {
        self.inside(move || {
            let output = Command::new("ip").args(args).output().context("ip(8) of iproute2 is missing")?;
            if !output.status.success() {
                bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
            }
            Ok(())
        })
    }

    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let file = File::open(&self.path).context("the namespace is gone")?;
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the check ended early; this is a fault of isthmus"))?
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.end.take());
        // It does nothing but wait.
        self.thread.take().map(JoinHandle::join);
    }
}
