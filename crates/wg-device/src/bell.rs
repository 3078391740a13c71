// SPDX-License-Identifier: Apache-2.0
//! Wakes a thread that sits in poll(2).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// The end that rings.
#[derive(Debug)]
pub struct Bell(UnixStream);

/// The end that hears.
#[derive(Debug)]
pub struct Ear(UnixStream);

/// A bell and its ear.
///
/// # Errors
/// No descriptors left.
pub fn bell() -> io::Result<(Bell, Ear)> {
    let (bell, ear) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    ear.set_nonblocking(true)?;
    Ok((Bell(bell), Ear(ear)))
}

impl Bell {
    /// A bell that is not heard yet need not be rung again: a full pipe is fine.
    pub fn ring(&self) {
        let _ = (&self.0).write(&[1]);
    }
}

impl Ear {
    /// Forgets how often it rang.
    pub fn hush(&self) {
        let mut heard = [0; 64];
        while (&self.0).read(&mut heard).is_ok_and(|count| count == heard.len()) {}
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Time to sleep until then, in poll(2)'s milliseconds, rounded up.
pub fn sleep_until(then: Instant, now: Instant) -> PollTimeout {
    let wait = then.saturating_duration_since(now) + Duration::from_micros(999);
    PollTimeout::from(u16::try_from(wait.as_millis()).unwrap_or(u16::MAX))
}
