// SPDX-License-Identifier: Apache-2.0
use std::time::Duration;

/// A rate with a burst (the virtual scheduling form of GCRA, ITU-T I.371): one moment is all its state.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    interval: Duration,
    burst: u32,
    /// When the bucket is full again.
    full_at: Duration,
}

impl Rate {
    /// `per_second` things in the long run, `burst` at once.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        Self {
            interval: Duration::from_nanos(1_000_000_000 / per_second as u64),
            burst,
            full_at: Duration::ZERO,
        }
    }

    /// How many things may pass at `now`.
    pub fn room(&self, now: Duration) -> u32 {
        let used = self.full_at.saturating_sub(now).as_nanos().div_ceil(self.interval.as_nanos());
        self.burst.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    /// Counts things that pass. Returns whether there was room for them; if not, nothing is counted.
    #[must_use]
    pub fn take(&mut self, count: u32, now: Duration) -> bool {
        let fits = count <= self.room(now);
        if fits {
            self.full_at = self.full_at.max(now) + self.interval * count;
        }
        fits
    }

    /// When there is room for one thing: `now` or later.
    pub fn ready_at(&self, now: Duration) -> Duration {
        now.max(self.full_at.saturating_sub(self.interval * self.burst.saturating_sub(1)))
    }

    /// Whether nothing was counted lately, so that forgetting this changes nothing.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let mut rate = Rate::new(50, 500);
        assert!(rate.take(500, ms(0)));
        assert!(!rate.take(1, ms(0)));
        assert_eq!(rate.ready_at(ms(0)), ms(20));
        assert!(rate.take(1, ms(20)));
        assert!(!rate.take(1, ms(20)));
        assert_eq!(rate.room(ms(1_020)), 50);
        assert!(rate.is_full(ms(20_000)));
        assert_eq!(rate.room(ms(20_000)), 500);
    }
}
