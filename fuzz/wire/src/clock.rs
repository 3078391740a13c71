// SPDX-License-Identifier: Apache-2.0
//! One clock for the engines, which take time as an argument, and for `boringtun`, which reads it.

use std::time::{Duration, Instant};

use mock_instant::MockClock;

/// The clock of this thread.
pub struct Clock {
    began: Instant,
    passed: Duration,
}

impl Clock {
    /// Begins anew. What was made under the clock before is not to be used any more.
    pub fn start() -> Self {
        MockClock::set_time(Duration::ZERO);
        Self { began: Instant::now(), passed: Duration::ZERO }
    }

    /// What an engine is told.
    pub fn now(&self) -> Instant {
        self.began + self.passed
    }

    /// Since it began.
    pub fn passed(&self) -> Duration {
        self.passed
    }

    /// Time passes.
    pub fn advance(&mut self, by: Duration) {
        MockClock::advance(by);
        self.passed += by;
    }
}
