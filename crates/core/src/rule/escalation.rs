//! Whether a firing gets worse: the statistic that fired the rule, on the side that it blames, against
//! the mark at which its incident was last captured, or an attempt was made.
//!
//! An escalation is reported once. From then on the mark is the value that was reported, so that the
//! next report takes the margin again: a refused capture is not requested again with every sample.
//! Where the refusal says when it may have passed ([`EscalationWatch::retry_from`]), the mark goes
//! back to that of the last attempt, and nothing is reported before that time. So a capture is
//! requested again when the firing is worse by the margin than at the request before, or when the
//! refusal could have changed, and in no other case.

use std::time::Duration;

use skewtrap_trace::time::Time;

/// A value is never taken to be worse than this many times its bound: with a bound of zero, or a group
/// whose emptiest member holds nothing, it would be infinitely bad.
pub const MAX_TIMES_BOUND: f64 = 1_000.0;

/// How bad a value beyond its bound is, on whichever side of it imbalance lies: how many times the
/// bound, at least 1 and at most [`MAX_TIMES_BOUND`].
pub fn times_bound(value: f64, bound: f64) -> f64 {
    let (value, bound) = (value.abs(), bound.abs());
    let ratio = if value >= bound { value / bound } else { bound / value };
    if ratio.is_finite() { ratio.clamp(1.0, MAX_TIMES_BOUND) } else { MAX_TIMES_BOUND }
}

/// Watches one firing since it was captured.
#[derive(Clone, Debug, PartialEq)]
pub struct EscalationWatch {
    /// How bad it was at the last attempt, in multiples of the bound.
    attempt: f64,
    /// How bad it was when it was last reported, or at the last attempt.
    mark: f64,
    /// It is worse from this many times the mark on.
    by: f64,
    /// A smoothed statistic shows all that there was at the attempt only after this time.
    settles: Duration,
    settling: Option<Time>,
    not_before: Option<Time>,
    since: Option<Time>,
}

impl EscalationWatch {
    /// After an attempt at `mark` times the bound; worse is `by` times that.
    pub fn new(mark: f64, by: f64, settles: Duration) -> Self {
        let (settling, not_before, since) = (None, None, None);
        Self { attempt: mark, mark, by: by.max(1.0), settles, settling, not_before, since }
    }

    /// Takes one evaluation of undisturbed samples: whether the firing has now been worse by the margin
    /// for as long as `hold`. `times` is how bad it is, `None` when the condition does not hold on whom it blames;
    /// `newest` is when the newest of the samples was measured.
    pub fn observe(&mut self, times: Option<f64>, newest: Time, hold: Duration, now: Time) -> bool {
        if now.since(*self.settling.get_or_insert(now)) < self.settles {
            self.attempt = self.attempt.max(times.unwrap_or(0.0));
            self.mark = self.mark.max(self.attempt);
            return false;
        }
        let is_early = self.not_before.is_some_and(|at| now < at);
        let Some(times) = times.filter(|t| !is_early && *t >= self.threshold()) else {
            self.since = None;
            return false;
        };
        let since = *self.since.get_or_insert(now);
        // One old sample that is judged again and again does not prove that it lasts.
        if now.since(since) < hold || (newest <= since && !hold.is_zero()) {
            return false;
        }
        (self.mark, self.since) = (times, None);
        true
    }

    /// Samples are absent or distrusted: that it was worse before does not prove that it still is.
    pub fn interrupt(&mut self) {
        self.since = None;
    }

    /// The capture was refused for a reason that may have passed at `not_before`: then the firing may be
    /// reported again, though it is no worse than it was.
    pub fn retry_from(&mut self, not_before: Time) {
        (self.mark, self.not_before, self.since) = (self.attempt, Some(not_before), None);
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(
            [&mut self.settling, &mut self.not_before, &mut self.since].into_iter().flatten(),
            by_ns,
        );
    }

    /// From how bad on it is reported, in multiples of the bound.
    pub fn threshold(&self) -> f64 {
        self.mark * self.by
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: f64) -> Time {
        Time::from_epoch_s(1000.0 + s)
    }

    /// One evaluation a second; the seconds at which it was reported.
    fn reported(watch: &mut EscalationWatch, from: u32, hold_s: u64, times: &[f64]) -> Vec<u32> {
        let seconds = (from..).zip(times);
        let observe = |(s, times): (u32, &f64)| {
            let now = at(f64::from(s));
            let holds = (*times > 0.0).then_some(*times);
            watch.observe(holds, now, Duration::from_secs(hold_s), now).then_some(s)
        };
        seconds.filter_map(observe).collect()
    }

    fn watch() -> EscalationWatch {
        EscalationWatch::new(1.2, 1.5, Duration::ZERO)
    }

    #[test]
    fn worse_by_the_margin_for_as_long_as_the_rule_asks_is_reported_once() {
        assert_eq!(reported(&mut watch(), 0, 2, &[1.7, 1.8, 1.8, 1.8, 1.8, 2.6, 1.8]), [3]);
        assert_eq!(reported(&mut watch(), 0, 0, &[1.79, 1.8, 1.9]), [1]);
        assert!(reported(&mut watch(), 0, 2, &[1.79; 50]).is_empty(), "no worse by the margin");
    }

    #[test]
    fn a_break_in_what_is_worse_starts_its_time_again() {
        assert!(reported(&mut watch(), 0, 2, &[1.8, 1.8, 1.0, 1.8, 1.8, 0.0, 1.8]).is_empty());
        let mut watch = watch();
        assert!(reported(&mut watch, 0, 2, &[1.8, 1.8]).is_empty());
        watch.interrupt();
        assert_eq!(reported(&mut watch, 2, 2, &[1.8, 1.8, 1.8]), [4]);
    }

    #[test]
    fn it_is_told_again_only_when_worse_by_the_margin_than_what_was_told() {
        let mut watch = watch();
        assert_eq!(reported(&mut watch, 0, 0, &[2.0, 2.9, 2.99, 3.0, 4.0, 4.5]), [0, 3, 5]);
    }

    #[test]
    fn a_refusal_that_passes_is_asked_again_then_though_it_is_no_worse() {
        let mut watch = watch();
        assert_eq!(reported(&mut watch, 0, 0, &[2.0]), [0]);
        watch.retry_from(at(4.0));
        assert_eq!(reported(&mut watch, 1, 0, &[2.0, 9.0, 2.0, 2.0, 2.0]), [4]);
        watch.retry_from(at(7.0));
        assert!(reported(&mut watch, 7, 0, &[1.7, 1.7]).is_empty(), "by then it was no longer worse");
    }

    #[test]
    fn what_a_smoothed_statistic_still_hid_at_the_attempt_is_not_worse() {
        let mut watch = EscalationWatch::new(1.2, 1.5, Duration::from_secs(3));
        assert!(reported(&mut watch, 0, 0, &[1.5, 2.0, 4.0, 4.0, 5.9]).is_empty());
        assert_eq!(reported(&mut watch, 5, 0, &[6.0]), [5]);
    }

    #[test]
    fn one_sample_that_is_looked_at_for_long_is_not_worse_for_long() {
        let mut watch = watch();
        let mut observe =
            |s: u32| watch.observe(Some(9.0), at(0.0), Duration::from_secs(1), at(f64::from(s)));
        assert!(!(0..50).any(&mut observe));
    }

    #[test]
    fn how_bad_a_value_is_counts_in_its_bound_on_either_side() {
        assert_eq!([times_bound(3.0, 1.5), times_bound(0.1, 0.2)], [2.0, 2.0]);
        assert_eq!([times_bound(0.0, 0.2), times_bound(5.0, 0.0)], [MAX_TIMES_BOUND, MAX_TIMES_BOUND]);
        assert_eq!([times_bound(0.0, 0.0), times_bound(1.5, 1.5)], [MAX_TIMES_BOUND, 1.0]);
    }
}
