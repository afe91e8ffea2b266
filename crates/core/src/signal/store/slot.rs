//! One rank as one source sees it, and the series of its signals.

use std::sync::Arc;
use std::time::Duration;

use super::batches::Batches;
use super::lines::Lines;
use super::ring::Ring;
use crate::signal::sample::{Signal, SignalSet, Source, TargetId};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// No rank counts as silent sooner: stamps are whole seconds, and polls can miss one turn.
pub const SILENT_AT_LEAST: Duration = Duration::from_secs(3);
/// Every rank counts as silent after this time, however seldom it used to print.
pub const SILENT_AT_MOST: Duration = Duration::from_secs(60);
/// A rank is silent when its last report is older than this many of its usual gaps.
const USUAL_GAPS: f64 = 2.5;
/// The memory of the longest usual gap halves in this time.
const GAP_HALF_LIFE_S: f64 = 60.0;
/// A clock that jumps back by more than this starts the rank's history anew.
const JUMP: Duration = Duration::from_secs(5);

/// The identity of a slot: a rank as one source sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    pub target: TargetId,
    /// Where the numbers came from.
    pub source: Source,
    /// Labels beside the rank.
    pub extra: Option<Arc<Labels>>,
    pub rank: Rank,
}

/// A rank as one source sees it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its identity.
    pub key: SlotKey,
    /// Target, role, rank and extra labels: what rules group by.
    pub labels: Labels,
    /// Its series, by signal; [`NONE`] where it has none.
    pub series: Vec<u32>,
    /// The built-in signals that have a place in `series`.
    pub known: SignalSet,
    /// How often it reports, and when it last did.
    pub cadence: Cadence,
    /// Some of its last lines, where its source is a log.
    pub lines: Lines,
    /// The totals of its prefill lines, where its source is a log.
    pub batches: Batches,
    /// It writes a profile and cannot report meanwhile: its silence means nothing.
    pub is_exporting: bool,
    /// Since when it is known to exist from the server's size alone.
    pub expected_since: Option<Time>,
}

/// In [`Slot::series`]: no such series.
pub const NONE: u32 = u32::MAX;

impl Slot {
    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.lines.shift(by_ns);
        self.batches.shift(by_ns);
        Time::shift_all(self.expected_since.iter_mut().chain(&mut self.cadence.last_report), by_ns);
    }
}

/// How often a rank reports. A rank that starves prints nothing at all, so its silence must be
/// distinguished from the pause between two reports: that needs its usual gap.
#[derive(Clone, Copy, Debug)]
pub struct Cadence {
    last_report: Option<Time>,
    usual_gap_s: f64,
    /// Follows from the usual gap, and is read far more often than the gap changes.
    silent_after: Duration,
}

impl Default for Cadence {
    fn default() -> Self {
        Self { last_report: None, usual_gap_s: 0.0, silent_after: SILENT_AT_LEAST }
    }
}

impl Cadence {
    /// Takes the time of a report. `was_idle` means that there was no work in the gap before it (a
    /// prefill batch that found nothing running), so that the gap is no usual one.
    pub fn on_report(&mut self, at: Time, was_idle: bool) {
        let Some(last) = self.last_report else {
            self.last_report = Some(at);
            return;
        };
        if last.since(at) > JUMP {
            *self = Self { last_report: Some(at), ..Self::default() };
            return;
        }
        if at <= last {
            return;
        }
        let gap = at.signed_s_since(last);
        // Below the least silence no gap matters; skipping the arithmetic keeps a busy log cheap.
        if gap > 0.4 || self.usual_gap_s > 0.0 {
            let faded = self.usual_gap_s * (-gap * std::f64::consts::LN_2 / GAP_HALF_LIFE_S).exp();
            self.usual_gap_s = if was_idle { faded } else { faded.max(gap) };
            let silent_after = Duration::from_secs_f64(self.usual_gap_s * USUAL_GAPS);
            self.silent_after = silent_after.clamp(SILENT_AT_LEAST, SILENT_AT_MOST);
        }
        self.last_report = Some(at);
    }

    pub fn last_report(&self) -> Option<Time> {
        self.last_report
    }

    /// After how long it counts as silent.
    pub fn silent_after(&self) -> Duration {
        self.silent_after
    }

    /// Whether it is not silent at `now`.
    pub fn is_reporting(&self, now: Time) -> bool {
        self.last_report.is_some_and(|last| now.since(last) <= self.silent_after)
    }
}

/// One signal of one slot.
#[derive(Clone, Debug)]
pub struct Series {
    /// The rank it is of.
    pub slot: u32,
    pub signal: Signal,
    /// How a reported number becomes a sample.
    pub measure: Measure,
    /// The recent past, the latest sample included.
    pub ring: Ring,
    /// The groups that it is a member of, as (view, group).
    pub groups: Vec<(u32, u32)>,
    /// The store's count of reads when this series last marked its groups as touched: until the next
    /// read they need not be marked again.
    pub announced: u64,
}

/// How a number becomes a sample.
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    Gauge,
    /// As a rate since the number before.
    Counter(Rate),
    /// As it is, but without the first one after a pause: SGLang's average spans the pause. Holds when
    /// it was printed last.
    LoggedThroughput(Option<Time>),
}

/// The last reading of one counter, for its rate. Each series has its own: a rate must never be
/// computed across two ranks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    last: Option<(Time, f64)>,
}

impl Rate {
    /// The rate per second since the last reading; `None` for the first reading, and for one that
    /// is not later than the last. A counter that fell was restarted at zero in between (the
    /// convention of Prometheus), so its whole value is growth.
    pub fn step(&mut self, at: Time, total: f64) -> Option<f64> {
        let last = self.last;
        if last.is_some_and(|(then, _)| at == then) {
            return None;
        }
        self.last = Some((at, total));
        let (then, before) = last?;
        let seconds = at.signed_s_since(then);
        let growth = if total < before { total } else { total - before };
        (seconds > 0.0 && growth.is_finite()).then(|| growth / seconds)
    }
}

impl Measure {
    /// The sample's value, if there is one. A gap longer than `pause` is a pause of the server.
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
        Self { slot, signal, measure, ring: Ring::default(), groups: Vec::new(), announced: 0 }
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.ring.shift(by_ns);
        match &mut self.measure {
            Measure::Gauge => {}
            Measure::Counter(rate) => Time::shift_all(rate.last.iter_mut().map(|last| &mut last.0), by_ns),
            Measure::LoggedThroughput(before) => Time::shift_all(before, by_ns),
        }
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
            slow.on_report(at(f64::from(i) * 8.0), false);
        }
        assert!(slow.is_reporting(at(42.0)));
        assert!(!slow.is_reporting(at(53.0)));
        let mut quick = Cadence::default();
        for i in 0..500 {
            quick.on_report(at(f64::from(i) * 0.1), false);
        }
        assert!(quick.is_reporting(at(52.0)));
        assert!(
            !quick.is_reporting(at(53.5)),
            "three seconds are enough for one that prints ten lines a second"
        );
    }

    #[test]
    fn idle_time_teaches_nothing_and_old_gaps_fade() {
        let mut rank = Cadence::default();
        rank.on_report(at(0.0), false);
        rank.on_report(at(100.0), true);
        assert_eq!(rank.silent_after(), SILENT_AT_LEAST);
        rank.on_report(at(110.0), false);
        assert_eq!(rank.silent_after(), Duration::from_secs(25));
        for i in 0..600 {
            rank.on_report(at(110.0 + f64::from(i)), false);
        }
        assert_eq!(rank.silent_after(), SILENT_AT_LEAST);
    }

    #[test]
    fn a_clock_that_jumps_back_far_starts_anew() {
        let mut rank = Cadence::default();
        rank.on_report(at(1000.0), false);
        rank.on_report(at(999.0), false);
        assert_eq!(rank.last_report(), Some(at(1000.0)));
        rank.on_report(at(10.0), false);
        assert_eq!(rank.last_report(), Some(at(10.0)));
    }

    #[test]
    fn a_rate_survives_a_restart_of_its_counter_and_a_clock_that_jumps_back() {
        let mut rate = Rate::default();
        let at = Time::from_epoch_s;
        assert_eq!(rate.step(at(10.0), 100.0), None, "one reading has no rate");
        assert_eq!(rate.step(at(12.0), 150.0), Some(25.0));
        assert_eq!(rate.step(at(12.0), 150.0), None, "the same page twice");
        assert_eq!(rate.step(at(14.0), 30.0), Some(15.0), "restarted");
        assert_eq!(rate.step(at(3.0), 40.0), None, "the clock jumped back");
        assert_eq!(rate.step(at(4.0), 44.0), Some(4.0));
    }
}
