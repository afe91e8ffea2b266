//! The agent's clock: wall time that cannot run backwards on its own.
//!
//! Instants come from the monotonic clock, anchored once to the wall. When the wall clock is set
//! by more than a second every copy follows, and the jump is returned, to be logged once; only a
//! [`Clock::steady`] one does not, because deadlines must not move. It is tokio's clock, so that a
//! test can run hours of it on paused time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

pub use crate::world::wall_time;
use skewtrap_trace::time::Time;

/// A wall jump smaller than this is drift, not somebody setting the clock.
const JUMP: Duration = Duration::from_secs(1);

/// Where `now` comes from.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Time,
    anchor: Instant,
    speed: f64,
    /// By how many nanoseconds the wall clock was set since, the same for all copies; `None` for one
    /// that does not follow.
    set_by: Option<&'static AtomicI64>,
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
        // One a process (and test), for its whole life.
        let set_by = Some(&*Box::leak(Box::new(AtomicI64::new(0))));
        Self { wall, anchor: Instant::now(), speed, set_by }
    }

    /// A copy that agrees with this one now and does not follow when the wall clock is set.
    pub fn steady(&self) -> Self {
        Self { wall: self.now(), anchor: Instant::now(), speed: self.speed, set_by: None }
    }

    /// The present time.
    pub fn now(&self) -> Time {
        let steady = self.wall + self.anchor.elapsed().mul_f64(self.speed);
        let set_by = self.set_by.map_or(0, |by| by.load(Ordering::Relaxed));
        Time::from_nanos(steady.nanos().saturating_add(set_by))
    }

    /// How long the world takes for `d` of this clock.
    pub fn real(&self, d: Duration) -> Duration {
        d.div_f64(self.speed)
    }

    /// Follows the wall clock where it was set, and all copies with it; the jump in seconds, if there
    /// was one.
    pub fn follow(&self, wall: Time) -> Option<f64> {
        let (now, set_by) = (self.now(), self.set_by?);
        let jump = wall.signed_s_since(now);
        (self.speed == 1.0 && jump.abs() > JUMP.as_secs_f64()).then(|| {
            set_by.fetch_add(wall.nanos().saturating_sub(now.nanos()), Ordering::Relaxed);
            jump
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_counts_monotonic_time_from_its_anchor_and_follows_only_jumps() {
        let clock = Clock::anchored(Time::from_epoch_s(1_000.0));
        let (copy, steady) = (clock, clock.steady());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Time::from_epoch_s(1_005.0));
        assert_eq!(clock.follow(Time::from_epoch_s(1_005.9)), None);
        assert_eq!(clock.follow(Time::from_epoch_s(905.0)), Some(-100.0));
        assert_eq!(clock.now(), Time::from_epoch_s(905.0));
        assert_eq!(copy.now(), Time::from_epoch_s(905.0), "sources and windows hold copies");
        assert_eq!(steady.now(), Time::from_epoch_s(1_005.0), "a deadline does not move");
    }
}
