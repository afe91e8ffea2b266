//! The recent samples of one series, bounded in time and bytes.

use std::collections::VecDeque;
use std::time::Duration;

use skewtrap_trace::time::Time;

/// Samples closer together than this are one: the later value stands for both.
const RESOLUTION: Duration = Duration::from_millis(100);
/// A clock that jumps back by more than this makes the older samples incomparable.
const JUMP: Duration = Duration::from_secs(5);
/// The least by which one time is later than another.
const NANOSECOND: Duration = Duration::from_nanos(1);
/// By so many samples at least the room for them grows.
const LEAST_GROWTH: usize = 4;
/// Bytes of one kept sample.
pub const ENTRY_BYTES: usize = size_of::<(Time, f64)>();

/// Samples in the order of their times.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    kept: VecDeque<(Time, f64)>,
    /// No kept sample is older: while this is young enough, the oldest of them, which no cache holds, is not read.
    since: Time,
    /// The latest sample, and when the burst began that it stands for.
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    began: Time,
    at: Time,
    value: f64,
}

impl Ring {
    /// Keeps a sample that [`Self::absorb`] has not taken, and forgets those older than `horizon`, or
    /// the oldest when there are `most` already.
    pub fn begin(&mut self, at: Time, value: f64, horizon: Duration, most: usize) {
        let began = Open { began: at, at, value };
        if let Some(closed) = self.open.replace(began) {
            self.close((closed.at, closed.value), at, horizon, most);
        }
    }

    /// Replaces the latest sample if it is of this time.
    #[inline(always)]
    pub fn replace(&mut self, at: Time, value: f64) -> bool {
        match &mut self.open {
            Some(open) if open.at == at => {
                open.value = value;
                true
            }
            _ => false,
        }
    }

    /// Lets a sample stand for the burst that the latest one belongs to; `false` when it begins
    /// another and must be pushed.
    #[inline]
    pub fn absorb(&mut self, at: Time, value: f64) -> bool {
        let Some(open) = &mut self.open else { return false };
        if at >= open.at {
            let is_burst = !at.is_past(open.began, RESOLUTION);
            if is_burst {
                (open.at, open.value) = (at, value);
            }
            return is_burst;
        }
        if open.at.since(at) > JUMP {
            self.kept.clear();
            *open = Open { began: at, at, value };
        }
        open.value = value;
        true
    }

    fn close(&mut self, closed: (Time, f64), now: Time, horizon: Duration, most: usize) {
        if self.kept.is_empty() {
            self.since = closed.0;
        }
        while now.is_past(self.since + NANOSECOND, horizon) {
            let Some(oldest) = self.kept.front() else { break };
            self.since = oldest.0;
            if now.is_past(self.since + NANOSECOND, horizon) {
                self.kept.pop_front();
            }
        }
        if self.kept.len() + 1 >= most.max(2) {
            self.kept.pop_front();
        }
        if self.is_full() {
            // By a quarter: what doubles is half empty in the mean, and there are thousands of rings.
            self.kept.reserve_exact((self.kept.len() / 4).max(LEAST_GROWTH));
        }
        self.kept.push_back(closed);
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(self.kept.iter_mut().map(|kept| &mut kept.0).chain([&mut self.since]), by_ns);
        if let Some(open) = &mut self.open {
            Time::shift_all([&mut open.began, &mut open.at], by_ns);
        }
    }

    /// What it kept at or after `since`, oldest first.
    pub fn iter_since(&self, since: Time) -> impl Iterator<Item = (Time, f64)> + '_ {
        let start = self.kept.partition_point(|k| k.0 < since);
        self.kept.range(start..).copied().chain(self.latest().filter(|l| l.0 >= since))
    }

    /// When it last kept a value like this, at or after `since`.
    pub fn last_since(&self, since: Time, is_like_this: impl Fn(f64) -> bool) -> Option<Time> {
        let newest_first = self.latest().into_iter().chain(self.kept.iter().rev().copied());
        newest_first.take_while(|k| k.0 >= since).find(|k| is_like_this(k.1)).map(|k| k.0)
    }

    /// The average over time from `since` to `now`, each value holding until the next; `None` when
    /// nothing was kept up to `now`.
    pub fn mean(&self, since: Time, now: Time) -> Option<f64> {
        let (mut area, mut span, mut until) = (0.0, 0.0, now);
        let newest_first = self.latest().into_iter().chain(self.kept.iter().rev().copied());
        for (at, value) in newest_first.skip_while(|k| k.0 > now) {
            let from = at.max(since);
            let width = until.signed_s_since(from);
            area += value * width;
            span += width;
            until = from;
            if at <= since {
                break;
            }
        }
        if span > 0.0 { Some(area / span) } else { self.latest().map(|l| l.1) }
    }

    /// Bytes that it holds on to.
    pub fn bytes(&self) -> usize {
        self.kept.capacity() * ENTRY_BYTES
    }

    /// Whether one more sample may make it take more memory.
    pub fn is_full(&self) -> bool {
        self.kept.len() == self.kept.capacity()
    }

    /// How many samples it keeps.
    pub fn len(&self) -> usize {
        self.kept.len() + usize::from(self.open.is_some())
    }

    /// The newest time, and the value that was added last.
    #[inline]
    pub fn latest(&self) -> Option<(Time, f64)> {
        self.open.map(|o| (o.at, o.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ring {
        fn push(&mut self, at: Time, value: f64, horizon: Duration, most: usize) {
            if !self.absorb(at, value) {
                self.begin(at, value, horizon, most);
            }
        }
    }

    fn at(s: f64) -> Time {
        Time::from_epoch_s(s)
    }

    fn ring(samples: &[(f64, f64)]) -> Ring {
        let mut ring = Ring::default();
        for &(s, v) in samples {
            ring.push(at(s), v, Duration::from_secs(60), 100);
        }
        ring
    }

    #[test]
    fn it_forgets_what_is_too_old_and_never_holds_more_than_it_may() {
        let mut r = ring(&[(0.0, 1.0), (50.0, 2.0), (70.0, 3.0)]);
        assert_eq!(r.iter_since(at(0.0)).map(|s| s.1).collect::<Vec<_>>(), [2.0, 3.0]);
        for i in 0..50 {
            r.push(at(80.0 + f64::from(i)), 1.0, Duration::from_secs(60), 10);
            assert!(r.len() <= 10);
        }
    }

    #[test]
    fn it_takes_a_quarter_more_memory_than_it_needs_at_most() {
        let mut ring = Ring::default();
        for n in 1..2_000_u32 {
            ring.push(at(f64::from(n)), 1.0, Duration::from_secs(10_000), 10_000);
            let needed = ring.len() * ENTRY_BYTES;
            assert!(ring.bytes() * 4 <= needed * 5 + 4 * LEAST_GROWTH * ENTRY_BYTES, "{n}: {}", ring.bytes());
        }
    }

    #[test]
    fn a_burst_keeps_its_latest_value() {
        let r = ring(&[(1.0, 1.0), (1.01, 2.0), (1.02, 3.0), (1.05, 4.0), (2.0, 5.0)]);
        assert_eq!(r.iter_since(at(0.0)).map(|s| s.1).collect::<Vec<_>>(), [4.0, 5.0]);
    }

    #[test]
    fn the_mean_weighs_each_value_by_how_long_it_stood() {
        let r = ring(&[(0.0, 10.0), (8.0, 20.0)]);
        assert_eq!(r.mean(at(0.0), at(10.0)), Some(12.0));
        assert_eq!(r.mean(at(6.0), at(10.0)), Some(15.0));
        assert_eq!(r.mean(at(20.0), at(30.0)), Some(20.0));
        assert_eq!(Ring::default().mean(at(0.0), at(1.0)), None);
    }

    #[test]
    fn a_clock_that_jumps_back_far_begins_anew_and_a_little_is_evened_out() {
        let r = ring(&[(100.0, 1.0), (99.0, 2.0)]);
        assert_eq!(r.iter_since(at(0.0)).last(), Some((at(100.0), 2.0)));
        let r = ring(&[(100.0, 1.0), (20.0, 2.0)]);
        assert_eq!(r.iter_since(at(0.0)).collect::<Vec<_>>(), [(at(20.0), 2.0)]);
    }
}
