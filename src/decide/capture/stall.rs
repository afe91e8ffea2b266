//! What a window cost: how long the server did not serve, as far as the outside can tell.
//!
//! Two witnesses: `/health` beyond its median, and gaps in the ranks' samples beyond their usual
//! interval. Their union in time is booked; either alone misses cases (an export that blocks one
//! rank leaves `/health` well; a polled load endpoint answers from a snapshot).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decide::signal::rank::Rank;
use crate::decide::time::Time;

/// Measures one window, from its start to its recovery.
#[derive(Clone, Debug)]
pub struct StallMeter {
    median: Duration,
    usual: BTreeMap<Rank, Duration>,
    last: BTreeMap<Rank, Time>,
    stalled: Vec<(Time, Time)>,
}

impl StallMeter {
    /// A gap in samples counts beyond this many usual intervals.
    const PATIENCE: u32 = 3;

    /// Starts at `from`: `median` is the health habit, zero when it is not known; `usual` each rank's interval of samples
    /// while it had work.
    pub fn new(from: Time, median: Duration, usual: BTreeMap<Rank, Duration>) -> Self {
        let last = usual.keys().map(|rank| (*rank, from)).collect();
        Self { median, usual, last, stalled: Vec::new() }
    }

    /// `/health` was asked at `asked` and answered, or given up, at `answered`. Without a habit there
    /// is nothing to hold it against.
    pub fn health(&mut self, asked: Time, answered: Time) {
        if self.median.is_zero() {
            return;
        }
        // Twice the habit is noise, not a stall.
        self.beyond(asked, self.median.saturating_mul(2).max(Duration::from_millis(100)), answered);
    }

    /// A sample of a rank that had work arrived.
    pub fn sample(&mut self, rank: Rank, at: Time) {
        if let (Some(usual), Some(last)) = (self.usual.get(&rank).copied(), self.last.insert(rank, at)) {
            self.beyond(last, usual.saturating_mul(Self::PATIENCE), at);
        }
    }

    fn beyond(&mut self, from: Time, patience: Duration, until: Time) {
        if until.since(from) > patience {
            self.stalled.push((from + patience, until));
        }
    }

    /// The time covered by any of the stalls.
    pub fn stalled(&self) -> Duration {
        let mut sorted = self.stalled.clone();
        sorted.sort_unstable();
        let (mut total, mut covered) = (Duration::ZERO, None::<Time>);
        for (from, until) in sorted {
            let from = covered.map_or(from, |c| c.max(from));
            total += until.since(from);
            covered = Some(covered.map_or(until, |c| c.max(until)));
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: f64) -> Time {
        Time::from_epoch_s(1000.0 + s)
    }

    #[test]
    fn stalls_that_two_witnesses_saw_are_booked_once() {
        let usual = BTreeMap::from([(Rank::dp(0), Duration::from_secs(1))]);
        let mut meter = StallMeter::new(at(0.0), Duration::from_secs(1), usual);
        meter.health(at(0.0), at(1.0));
        meter.sample(Rank::dp(0), at(1.0));
        assert_eq!(meter.stalled(), Duration::ZERO, "a usual second");
        meter.health(at(1.0), at(9.0)); // 3 to 9
        meter.sample(Rank::dp(0), at(10.0)); // 4 to 10
        assert_eq!(meter.stalled(), Duration::from_secs(7));
    }

    #[test]
    fn a_rank_without_a_habit_gives_no_stall() {
        let mut meter = StallMeter::new(at(0.0), Duration::from_millis(2), BTreeMap::new());
        meter.sample(Rank::dp(3), at(50.0));
        meter.sample(Rank::dp(3), at(90.0));
        meter.health(at(0.0), at(0.09));
        assert_eq!(meter.stalled(), Duration::ZERO);
    }
}
