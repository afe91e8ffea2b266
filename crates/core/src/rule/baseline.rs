//! What a statistic usually shows in one group: for `above_baseline`, the simple kind of comparison
//! with the past. (The statistic `departure` knows each member's usual difference.)
//!
//! A slow average of the statistic while the rule is idle: what is pending, firing or disturbed by a
//! capture never enters. Costs one multiplication a second, whatever the history's length.

use std::time::Duration;

use super::statistic::Direction;
use skewtrap_trace::time::Time;

/// The average's time constant, in seconds.
const MEMORY_S: f64 = 600.0;
/// No verdict before this much was seen.
const WARM: Duration = Duration::from_secs(60);
/// A value enters at most this often.
const EVERY: Duration = Duration::from_secs(1);

/// The usual value of one statistic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Baseline {
    mean: f64,
    seen_s: f64,
    last: Option<Time>,
}

impl Baseline {
    /// Takes a value that is not under suspicion.
    pub fn learn(&mut self, now: Time, value: f64) {
        let Some(last) = self.last else {
            (self.last, self.mean) = (Some(now), value);
            return;
        };
        let gap = now.since(last);
        if gap < EVERY {
            return;
        }
        self.last = Some(now);
        // Time without evaluations counts no more than a few seconds.
        let gap_s = gap.as_secs_f64().min(5.0);
        self.seen_s += gap_s;
        let weight = (gap_s / MEMORY_S).max(gap_s / self.seen_s.max(gap_s)).min(1.0);
        self.mean += weight * (value - self.mean);
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(&mut self.last, by_ns);
    }

    /// Whether `value` is beyond `factor` times the usual; `None` while too little was seen.
    pub fn is_exceeded(&self, value: f64, factor: f64, direction: Direction) -> Option<bool> {
        (self.seen_s >= WARM.as_secs_f64()).then(|| match direction {
            Direction::Above => value > self.mean * factor,
            Direction::Below => value < self.mean / factor,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(s: u64) -> Time {
        Time::from_epoch_s(1000.0) + Duration::from_secs(s)
    }

    #[test]
    fn a_constant_difference_is_usual_and_more_than_that_is_not() {
        let mut baseline = Baseline::default();
        (0..59).for_each(|s| baseline.learn(t(s), 1.8));
        assert_eq!(baseline.is_exceeded(9.0, 1.3, Direction::Above), None, "too little was seen");
        (59..200).for_each(|s| baseline.learn(t(s), 1.8));
        assert_eq!(baseline.is_exceeded(2.0, 1.3, Direction::Above), Some(false));
        assert_eq!(baseline.is_exceeded(2.5, 1.3, Direction::Above), Some(true));
        assert_eq!(baseline.is_exceeded(1.0, 1.3, Direction::Below), Some(true));
    }

    #[test]
    fn many_evaluations_a_second_weigh_no_more_than_one() {
        let (mut often, mut seldom) = (Baseline::default(), Baseline::default());
        for s in 0..120 {
            seldom.learn(t(s), if s < 60 { 1.0 } else { 2.0 });
            (0..10).for_each(|_| often.learn(t(s), if s < 60 { 1.0 } else { 2.0 }));
        }
        assert!((often.mean - seldom.mean).abs() < 1e-9);
    }
}
