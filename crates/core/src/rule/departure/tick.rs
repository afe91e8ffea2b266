//! One member's samples within one tick: however often it reports, a tick has one value.

use std::time::Duration;

use super::Work;
use skewtrap_trace::time::Time;

/// What came within the tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bin {
    at: Time,
    /// How many samples ...
    pub samples: u32,
    /// ... and the sum of their times, in seconds since the first.
    times_s: f64,
    first: Time,
    load: f64,
    tokens: (f64, u32),
    speed: (f64, u32),
    last: Work,
}

impl Bin {
    /// Whether anything is new.
    pub fn take(&mut self, work: &Work) -> bool {
        let is_new =
            work.load != self.last.load || work.tokens != self.last.tokens || work.speed != self.last.speed;
        if work.at > self.at || (is_new && self.samples == 0) {
            self.at = work.at;
            if self.samples == 0 {
                self.first = work.at;
            }
            self.samples += 1;
            self.times_s += work.at.signed_s_since(self.first);
            self.load += work.load;
            add(&mut self.tokens, work.tokens);
            add(&mut self.speed, work.speed);
        }
        self.last = *work;
        is_new
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all([&mut self.at, &mut self.first, &mut self.last.at], by_ns);
    }

    /// Begins the next tick.
    pub fn empty(&mut self) {
        *self = Self { at: self.at, last: self.last, ..Self::default() };
    }

    /// The mean time of its samples.
    pub fn time(&self) -> Option<Time> {
        let mean_s = self.times_s / f64::from(self.samples);
        (self.samples > 0).then(|| self.first + Duration::from_secs_f64(mean_s))
    }

    pub fn load(&self) -> f64 {
        if self.samples > 0 { self.load / f64::from(self.samples) } else { self.last.load }
    }

    pub fn tokens(&self) -> Option<f64> {
        mean_of(self.tokens).or(self.last.tokens)
    }

    pub fn speed(&self) -> Option<f64> {
        mean_of(self.speed).or(self.last.speed)
    }
}

fn add(sum: &mut (f64, u32), value: Option<f64>) {
    if let Some(v) = value {
        *sum = (sum.0 + v, sum.1 + 1);
    }
}

fn mean_of((sum, count): (f64, u32)) -> Option<f64> {
    (count > 0).then(|| sum / f64::from(count))
}
