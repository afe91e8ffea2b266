//! What a window cost: how long the server did not serve, as far as that can be observed from outside.
//!
//! Three witnesses: the exports themselves (from `Stop profiling...` to `Profiling done` in the log, or
//! the times of the files), `/health` beyond its median, and gaps in the ranks' samples beyond their
//! usual interval. Their union in time is booked; each alone misses cases (an export that blocks one
//! rank leaves `/health` well; a polled load endpoint answers from a snapshot; files may be out of
//! sight). A rank that says that its export is done has spoken: what its samples lack after that is a silence
//! of its own. The exports need nothing to compare with. For a window that another agent opened nothing usual
//! is known when it is closed: the usual intervals of the samples are learned from those around it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::signal::sample::Source;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// The usual interval of each rank's samples, by source.
pub type UsualIntervals = BTreeMap<(Rank, Source), Duration>;

/// When each rank gave samples, and whether it had work.
type Samples = BTreeMap<(Rank, Source), Vec<(Time, bool)>>;

/// The usual interval is known once there were so many gaps.
const FEWEST: usize = 8;

/// Learns the usual intervals from the ranks' samples, which arrive series by series in the order
/// of time, with whether the rank had work. It takes the second-longest gap, so that a single long
/// one does not count; a rank without work has none, because its silence means nothing.
pub fn usual_intervals(samples: impl IntoIterator<Item = (Rank, Source, Time, bool)>) -> UsualIntervals {
    let mut gaps: BTreeMap<(Rank, Source), (Time, Vec<Duration>)> = BTreeMap::new();
    for (rank, source, at, has_work) in samples {
        if !has_work {
            gaps.remove(&(rank, source));
            continue;
        }
        let (last, known) = gaps.entry((rank, source)).or_insert((at, Vec::new()));
        // Samples of one moment are one.
        if at > *last {
            known.push(at.since(std::mem::replace(last, at)));
        }
    }
    let usual = |mut gaps: Vec<Duration>| {
        gaps.sort_unstable();
        (gaps.len() >= FEWEST).then(|| gaps[gaps.len() - 2])
    };
    gaps.into_iter().filter_map(|(who, (_, gaps))| Some((who, usual(gaps)?))).collect()
}

/// When a rank began to write a file that was last `changed` then: when the file was `made`, where its file
/// system tells that, or when the window was stopped, which closes every rank's at once, and a rank writes
/// elsewhere first. Where the agent was dead and no file tells, nobody saw it: then it is booked as it was
/// predicted, `unseen`.
pub fn writing_began(
    made: Option<Time>,
    changed: Time,
    stopped_at: Option<Time>,
    unseen: Option<Duration>,
) -> Option<Time> {
    let stopped_at = stopped_at.filter(|at| *at < changed);
    made.into_iter().chain(stopped_at).min().or_else(|| unseen.map(|stall| changed - stall))
}

/// Measures one window, from its start to its recovery.
#[derive(Clone, Debug)]
pub struct StallMeter {
    median: Duration,
    usual: UsualIntervals,
    last: BTreeMap<(Rank, Source), Time>,
    /// Ranks that said that their export began, and have not said that it is done.
    writing: BTreeMap<Rank, Time>,
    /// When ranks said that their exports are done, in the order of time.
    done: Vec<(Rank, Time)>,
    /// Who stood still, from when to when; `None` for what `/health` showed.
    stalled: Vec<(Option<Rank>, Time, Time)>,
    /// Who gave no sample for longer than usual.
    silences: Vec<Silence>,
    /// When it began, and the samples since then, where nothing usual was known.
    learns: Option<(Time, Samples)>,
}

/// A rank gave no sample by one of its sources for longer than usual.
#[derive(Clone, Copy, Debug)]
struct Silence {
    rank: Rank,
    from: Time,
    until: Time,
    /// The usual interval, and how much more than that is a stall.
    usual: Duration,
    more: Duration,
    /// Nothing before counts.
    since: Time,
}

impl StallMeter {
    /// Less than this beyond what is usual is noise.
    const LEAST: Duration = Duration::from_millis(100);

    /// Starts at `from`: `median` is the usual latency of `/health`, zero when it is not known;
    /// `usual` has the intervals of the samples.
    pub fn new(from: Time, median: Duration, usual: UsualIntervals) -> Self {
        let last = usual.keys().map(|who| (*who, from)).collect();
        Self {
            median,
            usual,
            last,
            writing: BTreeMap::new(),
            done: Vec::new(),
            stalled: Vec::new(),
            silences: Vec::new(),
            learns: None,
        }
    }

    /// Starts at `from` without anything usual: the samples teach it.
    pub fn learning(from: Time) -> Self {
        let learns = Some((from, BTreeMap::new()));
        Self { learns, ..Self::new(from, Duration::ZERO, UsualIntervals::new()) }
    }

    /// Whether nothing usual was known at its start.
    pub const fn learns(&self) -> bool {
        self.learns.is_some()
    }

    /// Whether it would know more if it waited for more samples: nothing was silent so far, and too few
    /// samples came to tell.
    pub fn wants_samples(&self) -> bool {
        let knows = |samples: &Vec<(Time, bool)>| samples.len() > FEWEST;
        let has_seen = !self.stalled.is_empty() || !self.silences.is_empty();
        self.learns.as_ref().is_some_and(|(_, all)| !all.values().any(knows)) && !has_seen
    }

    /// The shortest silence of a rank that its samples would show, of the rank whose samples show least;
    /// `None` where no rank's samples have a usual interval. Exports that are seen need none.
    pub fn resolution(&self) -> Option<Duration> {
        let mut shown: BTreeMap<Rank, Duration> = BTreeMap::new();
        for ((rank, _), usual) in &self.usual {
            let from = *usual + (*usual / 2).max(Self::LEAST);
            shown.entry(*rank).and_modify(|known| *known = from.min(*known)).or_insert(from);
        }
        shown.into_values().max()
    }

    /// Whether every rank whose samples have a usual interval gave one after `at`, by any of its sources.
    pub fn has_heard_since(&self, at: Time) -> bool {
        let mut heard: BTreeMap<Rank, bool> = BTreeMap::new();
        for ((rank, _), last) in &self.last {
            *heard.entry(*rank).or_default() |= *last > at;
        }
        heard.into_values().all(|heard| heard)
    }

    /// The silences that the samples show by what is usual among themselves.
    fn learned(&self) -> Vec<(Option<Rank>, Time, Time)> {
        let Some((begin, samples)) = &self.learns else { return Vec::new() };
        let all = samples.iter().flat_map(|((rank, source), all)| {
            all.iter().map(move |(at, has_work)| (*rank, *source, *at, *has_work))
        });
        let mut meter = Self::new(*begin, Duration::ZERO, usual_intervals(all));
        meter.done.clone_from(&self.done);
        for ((rank, source), all) in samples {
            all.iter().for_each(|(at, has_work)| meter.sample(*rank, *source, *at, *has_work));
        }
        meter.seen()
    }

    /// Who stood still, from when to when, as far as it was seen: a silence in which its rank said that its
    /// export is done is two, and each counts where it is longer than usual.
    fn seen(&self) -> Vec<(Option<Rank>, Time, Time)> {
        let mut all = self.stalled.clone();
        for silence in &self.silences {
            let &Silence { rank, from, until, usual, more, since } = silence;
            let spoke = self.done.iter().filter(|(of, at)| *of == rank && *at > from && *at < until);
            let mut from = from;
            for until in spoke.map(|(_, at)| *at).chain([until]) {
                let begun = (from + usual).max(since);
                if until.since(from) > usual + more && until > begun {
                    all.push((Some(rank), begun, until));
                }
                from = until;
            }
        }
        all
    }

    /// A rank said that its export begins.
    pub fn export_begins(&mut self, rank: Rank, at: Time) {
        self.writing.entry(rank).or_insert(at);
    }

    /// A rank said that its export is done.
    pub fn export_ends(&mut self, rank: Rank, at: Time) {
        self.done.push((rank, at));
        if let Some(from) = self.writing.remove(&rank) {
            self.wrote(rank, from, at);
        }
    }

    /// A rank was writing its trace, as its file shows.
    pub fn wrote(&mut self, rank: Rank, from: Time, until: Time) {
        if until > from {
            self.stalled.push((Some(rank), from, until));
        }
    }

    /// `/health` was asked at `asked` and answered, or given up, at `answered`. Without a median there is
    /// nothing to compare it with.
    pub fn health(&mut self, asked: Time, answered: Time) {
        // Up to twice the median is noise, not a stall.
        let usual = self.median;
        if !usual.is_zero() && answered.since(asked) > usual + usual.max(Self::LEAST) {
            self.stalled.push((None, asked + usual, answered));
        }
    }

    /// A sample of a rank arrived, true for `at`, with whether it had work.
    pub fn sample(&mut self, rank: Rank, source: Source, at: Time, has_work: bool) {
        let who = (rank, source);
        if let Some((_, samples)) = &mut self.learns {
            let own = samples.entry(who).or_default();
            // Samples are passed on with an overlap.
            if own.last().is_none_or(|(last, _)| at > *last) {
                own.push((at, has_work));
            }
        }
        if let (Some(usual), Some(last)) = (self.usual.get(&who).copied(), self.last.get_mut(&who))
            && at > *last
        {
            let from = std::mem::replace(last, at);
            // The reference is the longest usual gap: half of it more is a stall.
            let more = (usual / 2).max(Self::LEAST);
            if at.since(from) > usual + more {
                self.silences.push(Silence { rank, from, until: at, usual, more, since: from });
            }
        }
    }

    /// The window is over: a rank that sent no sample while it was written counts as stalled in
    /// that time, from `closing` to `exported`.
    pub fn exported(&mut self, closing: Time, exported: Time) {
        for (rank, from) in std::mem::take(&mut self.writing) {
            self.wrote(rank, from, exported);
        }
        for (who, &last) in &self.last {
            let usual = self.usual.get(who).copied().unwrap_or_default();
            let more = usual / 2;
            if exported.since(last) > usual + more && exported > (last + usual).max(closing) {
                let rank = who.0;
                self.silences.push(Silence {
                    rank,
                    from: last,
                    until: exported,
                    usual,
                    more,
                    since: closing,
                });
            }
        }
    }

    /// The time covered by any of the stalls.
    pub fn stalled(&self) -> Duration {
        let all = self.seen().into_iter().chain(self.learned()).map(|(_, from, until)| (from, until));
        covered(all).map(|(from, until)| until.since(from)).sum()
    }

    /// The longest silence of one rank, or of `/health` where no rank was seen to be silent for as long.
    pub fn longest(&self) -> Duration {
        let mut by_rank: BTreeMap<Option<Rank>, Vec<(Time, Time)>> = BTreeMap::new();
        for (who, from, until) in self.seen().into_iter().chain(self.learned()) {
            by_rank.entry(who).or_default().push((from, until));
        }
        let silences = by_rank.into_values().flat_map(covered);
        silences.map(|(from, until)| until.since(from)).max().unwrap_or_default()
    }
}

/// The stretches of time that lie in any of `all`, in their order.
fn covered(all: impl IntoIterator<Item = (Time, Time)>) -> impl Iterator<Item = (Time, Time)> {
    let mut sorted: Vec<(Time, Time)> = all.into_iter().collect();
    sorted.sort_unstable();
    let mut stretches: Vec<(Time, Time)> = Vec::new();
    for (from, until) in sorted {
        match stretches.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(until),
            _ => stretches.push((from, until)),
        }
    }
    stretches.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: Source = Source::Log;

    fn at(s: f64) -> Time {
        Time::from_epoch_s(1000.0 + s)
    }

    #[test]
    fn an_export_that_nobody_saw_is_booked_as_it_was_predicted() {
        let predicted = Some(Duration::from_millis(300));
        let began = |made, stopped_at| writing_began(made, at(5.0), stopped_at, predicted);
        assert_eq!(began(None, None), Some(at(4.7)));
        // Its stop came after the server had ended it by itself.
        assert_eq!(began(None, Some(at(6.0))), Some(at(4.7)));
        assert_eq!(began(None, Some(at(4.0))), Some(at(4.0)));
        assert_eq!(began(Some(at(4.9)), Some(at(6.0))), Some(at(4.9)));
        assert_eq!(began(Some(at(4.9)), Some(at(4.5))), Some(at(4.5)));
        assert_eq!(writing_began(None, at(5.0), None, None), None);
    }

    fn every_second(ranks: u16) -> UsualIntervals {
        (0..ranks).map(|dp| ((Rank::dp(dp), LOG), Duration::from_secs(1))).collect()
    }

    #[test]
    fn stalls_that_two_witnesses_saw_are_booked_once() {
        let mut meter = StallMeter::new(at(0.0), Duration::from_secs(1), every_second(1));
        meter.health(at(0.0), at(1.9));
        meter.sample(Rank::dp(0), LOG, at(1.0), true);
        assert_eq!(meter.stalled(), Duration::ZERO, "usual seconds");
        meter.health(at(1.0), at(9.0)); // 2 to 9
        meter.sample(Rank::dp(0), LOG, at(10.0), true); // 2 to 10
        meter.sample(Rank::dp(0), LOG, at(4.0), true); // late, and old
        assert_eq!(meter.stalled(), Duration::from_secs(8));
    }

    #[test]
    fn an_export_is_a_stall_of_its_rank_without_any_habit() {
        let mut meter = StallMeter::new(at(0.0), Duration::ZERO, UsualIntervals::new());
        meter.export_begins(Rank::dp(0), at(1.0));
        meter.export_begins(Rank::dp(1), at(2.0));
        meter.export_ends(Rank::dp(0), at(8.6));
        meter.wrote(Rank::dp(0), at(3.0), at(8.7));
        meter.exported(at(1.0), at(14.0)); // DP1 never said that it was done.
        assert_eq!(meter.stalled(), Duration::from_secs(13));
        assert_eq!(meter.longest(), Duration::from_secs(12));
    }

    /// What is booked where a rank that speaks every second writes from 1 to 1.8, says so, and speaks again then.
    fn booked_where_it_speaks_again(then: f64) -> Duration {
        let mut meter = StallMeter::new(at(0.0), Duration::ZERO, every_second(1));
        meter.sample(Rank::dp(0), LOG, at(0.9), true);
        meter.export_begins(Rank::dp(0), at(1.0));
        meter.export_ends(Rank::dp(0), at(1.8));
        meter.sample(Rank::dp(0), LOG, at(then), true);
        meter.exported(at(1.0), at(then));
        meter.stalled()
    }

    #[test]
    fn a_rank_that_says_that_its_export_is_done_has_spoken() {
        assert_eq!(booked_where_it_speaks_again(3.2), Duration::from_millis(800), "the export alone");
        assert_eq!(
            booked_where_it_speaks_again(5.8),
            Duration::from_millis(800 + 3_000),
            "silent after it, too"
        );
    }

    #[test]
    fn silences_are_seen_from_one_and_a_half_usual_intervals_of_the_rank_that_speaks_least_on() {
        let loads = Source::Loads;
        let mut usual = every_second(2);
        usual.insert((Rank::dp(1), loads), Duration::from_millis(100));
        let mut meter = StallMeter::new(at(0.0), Duration::ZERO, usual);
        assert_eq!(
            meter.resolution(),
            Some(Duration::from_millis(1_500)),
            "DP0's log; DP1's loads show more"
        );
        meter.sample(Rank::dp(1), loads, at(2.0), true);
        assert!(!meter.has_heard_since(at(1.0)), "DP0 has not spoken");
        meter.sample(Rank::dp(0), LOG, at(2.4), true);
        assert!(meter.has_heard_since(at(1.0)));
        assert_eq!(StallMeter::new(at(0.0), Duration::ZERO, UsualIntervals::new()).resolution(), None);
    }

    #[test]
    fn a_rank_without_a_habit_gives_no_stall() {
        let mut meter = StallMeter::new(at(0.0), Duration::from_millis(2), UsualIntervals::new());
        meter.sample(Rank::dp(3), LOG, at(50.0), true);
        meter.sample(Rank::dp(3), LOG, at(90.0), true);
        meter.health(at(0.0), at(0.09));
        meter.exported(at(60.0), at(95.0));
        assert_eq!(meter.stalled(), Duration::ZERO);
    }

    #[test]
    fn a_gap_of_one_blocked_rank_is_seen_though_health_is_well() {
        let mut meter = StallMeter::new(at(0.0), Duration::from_millis(5), every_second(2));
        for s in 1..=12 {
            meter.sample(Rank::dp(0), LOG, at(f64::from(s)), true);
            meter.health(at(f64::from(s)), at(f64::from(s) + 0.005));
        }
        meter.sample(Rank::dp(1), LOG, at(1.4), true);
        meter.sample(Rank::dp(1), LOG, at(8.1), true); // 2.4 to 8.1
        assert_eq!(meter.stalled(), Duration::from_millis(5_700));
    }

    #[test]
    fn a_rank_that_has_not_spoken_again_when_it_is_over_counts_for_the_time_of_the_export_only() {
        let mut meter = StallMeter::new(at(0.0), Duration::from_secs(1), every_second(2));
        meter.sample(Rank::dp(0), LOG, at(8.0), true); // 1 to 8
        meter.exported(at(5.0), at(8.5)); // of DP1: 5 to 8.5
        assert_eq!(meter.stalled(), Duration::from_millis(7_500));
    }

    #[test]
    fn a_habit_is_the_longest_gap_but_one_of_a_rank_with_work() {
        let series = |dp: u16, times: &[f64], has_work: bool| -> Vec<_> {
            times.iter().map(|s| (Rank::dp(dp), LOG, at(*s), has_work)).collect()
        };
        let steady: Vec<f64> = (0..10).map(f64::from).collect();
        let hiccup = [&steady[..], &[20.0, 21.0]].concat();
        let learned = usual_intervals(
            [
                series(0, &steady, true),
                series(1, &hiccup, true),
                series(2, &steady[..5], true),
                series(3, &steady, false),
            ]
            .concat(),
        );
        assert_eq!(learned, every_second(2));
    }

    #[test]
    fn a_window_that_another_agent_opened_is_measured_by_what_is_usual_around_it() {
        let mut meter = StallMeter::learning(at(0.0));
        assert!(meter.wants_samples());
        for s in 1..=14 {
            meter.sample(Rank::dp(0), LOG, at(f64::from(s)), true);
            // DP1 is silent for its export, from 4 to 12, DP2 has no work meanwhile.
            if !(5..12).contains(&s) {
                meter.sample(Rank::dp(1), LOG, at(f64::from(s)), true);
                meter.sample(Rank::dp(2), LOG, at(f64::from(s)), s > 12);
            }
        }
        assert_eq!((meter.longest(), meter.stalled()), (Duration::ZERO, Duration::ZERO), "six gaps of DP1");
        for s in 15..=20 {
            meter.sample(Rank::dp(1), LOG, at(f64::from(s)), true);
        }
        assert!(!meter.wants_samples());
        assert_eq!((meter.longest(), meter.stalled()), (Duration::from_secs(7), Duration::from_secs(7)));
    }

    #[test]
    fn a_rank_that_is_silent_from_the_first_moment_on_counts_from_there() {
        let mut meter = StallMeter::learning(at(0.0));
        for s in 9..=20 {
            meter.sample(Rank::dp(0), LOG, at(f64::from(s)), true);
        }
        assert_eq!(meter.longest(), Duration::from_secs(8));
    }
}
