// SPDX-License-Identifier: Apache-2.0
//! Waiting for something to become true, for a bounded time, and saying what was seen instead.

use std::fmt::Display;
use std::time::{Duration, Instant};

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Looks until the closure returns `Ok`, and returns its value.
///
/// # Panics
/// With what was seen last, when the deadline has passed.
#[track_caller]
pub fn within<T, E: Display>(deadline: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() >= deadline => panic!("not within {deadline:?}; last seen: {seen}"),
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// As [`within`], for a closure that must wait itself.
///
/// # Panics
/// With what was seen last, when the deadline has passed.
pub async fn within_async<T, E: Display>(
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() >= deadline => panic!("not within {deadline:?}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "last seen: still 3")]
    fn a_missed_deadline_says_what_was_seen_last() {
        within(Duration::from_millis(30), || Err::<(), _>("still 3"));
    }

    #[test]
    fn what_comes_true_is_returned() {
        let mut count = 0;
        let value = within(Duration::from_secs(5), || {
            count += 1;
            if count == 3 { Ok(count) } else { Err("too early") }
        });
        assert_eq!(value, 3);
    }
}
