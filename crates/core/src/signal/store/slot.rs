//! One rank as one source sees it, and the series of its signals.

use std::sync::Arc;
use std::time::Duration;

use super::lines::Lines;
use crate::signal::fields::Set;
use crate::signal::rate::Rate;
use crate::signal::ring::Ring;
use crate::signal::sample::{Signal, Source, TargetId};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// No rank counts as silent sooner: stamps are whole seconds, and polls can miss one turn.
pub const SILENT_AT_LEAST: Duration = Duration::from_secs(3);
/// No rank is waited for longer, however slowly it used to print.
pub const SILENT_AT_MOST: Duration = Duration::from_secs(60);
/// Silent is a rank whose last word is older than this many of its usual gaps.
const USUAL_GAPS: f64 = 2.5;
/// The memory of the longest usual gap halves in this time.
const GAP_HALF_LIFE_S: f64 = 60.0;
/// A clock that jumps back by more than this starts the rank's history anew.
const JUMP: Duration = Duration::from_secs(5);

/// Which rank, seen by which source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    /// The server.
    pub target: TargetId,
    /// Where the numbers came from.
    pub source: Source,
    /// Labels beside the rank.
    pub extra: Option<Arc<Labels>>,
    /// The rank.
    pub rank: Rank,
}

/// What is known of it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its identity.
    pub key: SlotKey,
    /// Target, role, rank and extra labels: what rules group by.
    pub labels: Labels,
    /// Its series, by signal; [`NONE`] where it has none.
    pub series: Vec<u32>,
    /// The built-in signals that have a place in `series`.
    pub known: Set,
    /// When it last said anything.
    pub cadence: Cadence,
    /// Some of its last lines, where its source is a log.
    pub lines: Lines,
    /// It writes a profile and cannot speak: its silence means nothing.
    pub is_exporting: bool,
    /// It is only known to exist (from the server's size), and since when.
    pub expected_since: Option<Time>,
}

/// In [`Slot::series`]: no such series.
pub const NONE: u32 = u32::MAX;

/// How often a rank speaks. A rank that starves prints nothing at all, so its silence must be told
/// from the pause between two reports: that takes knowing its usual gap.
#[derive(Clone, Copy, Debug)]
pub struct Cadence {
    seen: Option<Time>,
    usual_gap_s: f64,
    /// What follows from the usual gap; asked for far more often than the gap changes.
    patience: Duration,
}

impl Default for Cadence {
    fn default() -> Self {
        Self { seen: None, usual_gap_s: 0.0, patience: SILENT_AT_LEAST }
    }
}

impl Cadence {
    /// It spoke. `was_idle` says that the gap before had no work in it (a prefill batch that found
    /// nothing running), which tells nothing of the usual gap.
    pub fn spoke(&mut self, at: Time, was_idle: bool) {
        let Some(seen) = self.seen else {
            self.seen = Some(at);
            return;
        };
        if seen.since(at) > JUMP {
            *self = Self { seen: Some(at), ..Self::default() };
            return;
        }
        if at <= seen {
            return;
        }
        let gap = at.signed_s_since(seen);
        // Below the least silence no gap matters; skipping the arithmetic keeps a busy log cheap.
        if gap > 0.4 || self.usual_gap_s > 0.0 {
            let faded = self.usual_gap_s * (-gap * std::f64::consts::LN_2 / GAP_HALF_LIFE_S).exp();
            self.usual_gap_s = if was_idle { faded } else { faded.max(gap) };
            let patience = Duration::from_secs_f64(self.usual_gap_s * USUAL_GAPS);
            self.patience = patience.clamp(SILENT_AT_LEAST, SILENT_AT_MOST);
        }
        self.seen = Some(at);
    }

    /// When it last spoke.
    pub fn seen(&self) -> Option<Time> {
        self.seen
    }

    /// After how long it counts as silent.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether it counts as speaking at `now`.
    pub fn is_speaking(&self, now: Time) -> bool {
        self.seen.is_some_and(|seen| now.since(seen) <= self.patience)
    }
}

/// One signal of one slot.
#[derive(Clone, Debug)]
pub struct Series {
    /// Whose.
    pub slot: u32,
    /// Of what.
    pub signal: Signal,
    /// How a reported number becomes a sample.
    pub measure: Measure,
    /// The recent past, the latest sample included.
    pub ring: Ring,
    /// The groups that it is a member of, as (view, group).
    pub groups: Vec<(u32, u32)>,
    /// The store's count of looks when it last told its groups of a new number: until the next look
    /// they need not be told again.
    pub told: u64,
}

/// How a number becomes a sample.
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    /// As it is.
    Gauge,
    /// As a rate since the number before.
    Counter(Rate),
    /// The throughput that SGLang prints first after a pause averages over the pause and is left out;
    /// when it was printed last.
    LoggedThroughput(Option<Time>),
}

impl Measure {
    /// The sample's value, if there is one. A `pause` is longer than a rank is usually silent.
    pub fn value(&mut self, at: Time, number: f64, pause: Duration) -> Option<f64> {
        match self {
            Self::Gauge => Some(number),
            Self::Counter(rate) => rate.step(at, number),
            Self::LoggedThroughput(before) => {
                let before = before.replace(at)?;
                (at.since(before) <= pause).then_some(number)
            }
        }
    }
}

impl Series {
    /// A series without a value.
    pub fn new(slot: u32, signal: Signal, measure: Measure) -> Self {
        Self { slot, signal, measure, ring: Ring::default(), groups: Vec::new(), told: 0 }
    }

    /// The latest value and the time for which it was true.
    pub fn latest(&self) -> Option<(Time, f64)> {
        self.ring.latest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: f64) -> Time {
        Time::from_epoch_s(s)
    }

    #[test]
    fn a_rank_that_prints_every_eight_seconds_is_not_silent_after_ten() {
        let mut slow = Cadence::default();
        for i in 0..5 {
            slow.spoke(at(f64::from(i) * 8.0), false);
        }
        assert!(slow.is_speaking(at(42.0)));
        assert!(!slow.is_speaking(at(53.0)));
        let mut quick = Cadence::default();
        for i in 0..500 {
            quick.spoke(at(f64::from(i) * 0.1), false);
        }
        assert!(quick.is_speaking(at(52.0)));
        assert!(
            !quick.is_speaking(at(53.5)),
            "three seconds are enough for one that prints ten lines a second"
        );
    }

    #[test]
    fn idle_time_teaches_nothing_and_old_gaps_fade() {
        let mut rank = Cadence::default();
        rank.spoke(at(0.0), false);
        rank.spoke(at(100.0), true);
        assert_eq!(rank.patience(), SILENT_AT_LEAST);
        rank.spoke(at(110.0), false);
        assert_eq!(rank.patience(), Duration::from_secs(25));
        for i in 0..600 {
            rank.spoke(at(110.0 + f64::from(i)), false);
        }
        assert_eq!(rank.patience(), SILENT_AT_LEAST);
    }

    #[test]
    fn a_clock_that_jumps_back_far_starts_anew() {
        let mut rank = Cadence::default();
        rank.spoke(at(1000.0), false);
        rank.spoke(at(999.0), false);
        assert_eq!(rank.seen(), Some(at(1000.0)));
        rank.spoke(at(10.0), false);
        assert_eq!(rank.seen(), Some(at(10.0)));
    }
}
