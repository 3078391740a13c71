// SPDX-License-Identifier: Apache-2.0
//! Work in another network namespace, on a thread of its own or as an excursion, so that the caller stays where it is.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::Path;
use std::{process, thread};

use nix::sched::{CloneFlags, setns};

/// Runs the closure in the network namespace at `path` (`/run/netns/…`, `/proc/…/ns/net`) and returns its value.
/// Sockets that it opens stay in that namespace.
pub fn run<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path)?;
    thread::scope(|scope| {
        let entered = scope.spawn(move || enter(file.as_fd()).map(|()| work()));
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The calling thread's way through other namespaces, and home at its end.
///
/// Entering costs microseconds, and a thread some hundred. But what the thread does next must not happen in a namespace of somebody else: a
/// process whose thread cannot go home ends.
pub struct Excursion {
    home: File,
    away: Cell<bool>,
    /// It is this thread's.
    _thread: PhantomData<*const ()>,
}

impl Excursion {
    /// Sets out from where the thread is.
    pub fn begin() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { home, away: Cell::new(false), _thread: PhantomData })
    }

    /// Goes into the namespace.
    pub fn to(&self, namespace: impl AsFd) -> io::Result<()> {
        enter(namespace)?;
        self.away.set(true);
        Ok(())
    }
}

impl Drop for Excursion {
    fn drop(&mut self) {
        if !self.away.get() {
            return;
        }
        if let Err(error) = enter(&self.home) {
            tracing::error!(%error, "a thread cannot go back to its network namespace");
            process::abort();
        }
    }
}

/// Moves the calling thread, for good, into the namespace.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
