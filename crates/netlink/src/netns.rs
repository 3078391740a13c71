// SPDX-License-Identifier: Apache-2.0
//! Work in another network namespace, on a thread of its own so that the caller stays where it is.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

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

/// Moves the calling thread, for good, into the namespace.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
