//! The agent's clock: wall time that cannot run backwards on its own.
//!
//! Instants come from the monotonic clock, anchored once to the wall. When the wall clock is set
//! by more than a second the anchor follows and the jump is returned, to be logged once. It is
//! tokio's clock, so that a test can run hours of it on paused time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::decide::time::Time;

/// A wall jump smaller than this is drift, not somebody setting the clock.
const JUMP: Duration = Duration::from_secs(1);

/// Where `now` comes from.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Time,
    anchor: Instant,
    speed: f64,
}

impl Clock {
    /// Anchored at the wall clock's present time.
    pub fn start() -> Self {
        Self::anchored(wall_time())
    }

    /// Anchored at a given time: a recording's, in tests.
    pub fn anchored(wall: Time) -> Self {
        Self::played(wall, 1.0)
    }

    /// One that runs `speed` times as fast as the world: a recording that is played.
    pub fn played(wall: Time, speed: f64) -> Self {
        Self { wall, anchor: Instant::now(), speed }
    }

    /// The present time.
    pub fn now(&self) -> Time {
        self.wall + self.anchor.elapsed().mul_f64(self.speed)
    }

    /// How long the world takes for `d` of this clock.
    pub fn real(&self, d: Duration) -> Duration {
        d.div_f64(self.speed)
    }

    /// Follows the wall clock where it was set; the jump in seconds, if there was one.
    pub fn follow(&mut self, wall: Time) -> Option<f64> {
        let jump = wall.signed_s_since(self.now());
        (self.speed == 1.0 && jump.abs() > JUMP.as_secs_f64()).then(|| {
            *self = Self::anchored(wall);
            jump
        })
    }
}

/// The wall clock's present time.
pub fn wall_time() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_counts_monotonic_time_from_its_anchor_and_follows_only_jumps() {
        let mut clock = Clock::anchored(Time::from_epoch_s(1_000.0));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Time::from_epoch_s(1_005.0));
        assert_eq!(clock.follow(Time::from_epoch_s(1_005.9)), None);
        assert_eq!(clock.follow(Time::from_epoch_s(905.0)), Some(-100.0));
        assert_eq!(clock.now(), Time::from_epoch_s(905.0));
    }
}
