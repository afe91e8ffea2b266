//! One statistic of one signal against its bound: does it show imbalance now, and of which member?
//!
//! `chance` is what random arrival explains, [`Baseline`] what the group usually shows. How long a
//! condition must hold is remembered in [`ConditionMemory`], how long a trigger must, in the state.

use std::sync::Arc;
use std::time::Duration;

use super::baseline::Baseline;
use super::departure::Evidence;
use super::factors::{DetectorFindings, FactorSet, side_of};
use super::state::has_lasted;
use super::statistic::{Direction, median_of};
use super::{Combine, Trigger};
use crate::finding::{Side, Statistic};
use crate::signal::frame::{Frame, Member, Summary};
use crate::signal::sample::Signal;
use skewtrap_trace::labels::LabelValue;
use skewtrap_trace::time::Time;

/// The evidence of a departure grows for about this long after the load has changed: its slower
/// smoothing remembers a quarter of a minute, and samples may be seconds apart.
const DEPARTED: Duration = Duration::from_secs(60);
/// That of a factor grows until all the seconds in which it was found are of the trouble.
const FACTORS_SETTLE: Duration = Duration::from_secs(30);

/// One statistic of one signal against its bounds.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The signal whose values, one a member, the statistic summarises.
    pub signal: Signal,
    /// Its name in rules and messages.
    pub signal_name: Arc<str>,
    /// Which number.
    pub statistic: Statistic,
    /// Its bound; for a trigger it is exceeded, for a clear it is kept.
    pub bound: f64,
    /// On which side of the bound imbalance lies.
    pub direction: Direction,
    /// Which side may be blamed.
    pub side: Side,
    /// In a trigger: the excess must also be more than this many times what random arrival
    /// explains. In a clear: it suffices that it is within this many.
    pub chance: Option<f64>,
    /// The statistic must exceed the group's own learned baseline by this factor.
    pub above_baseline: Option<f64>,
    /// Values are averaged over this window first; zero for none.
    pub smooth: Duration,
    /// It must hold this long before it counts among others; zero for at once.
    pub hold: Duration,
    /// Which factors count, for the statistic that looks at them.
    pub factors: FactorSet,
}

/// What the detectors that remember have found, for the conditions that ask for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detected<'a> {
    /// The farthest departure.
    pub departure: Option<&'a Evidence>,
    /// What is held against the ranks of the server.
    pub factors: Option<&'a DetectorFindings<'a>>,
}

/// The value of a condition's statistic in one frame, and whom it blames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The statistic.
    pub value: f64,
    /// Whether it is beyond its bound, on a side that may be blamed.
    pub beyond_bound: bool,
    /// Its excess in units of what chance explains.
    pub times_chance: f64,
    /// The member farthest from its peers on the blamed side, by its result in the frame.
    pub member: usize,
    pub side: Side,
}

/// Members whose distances from the middle differ by less than this part of their whole distance are equally far.
const EQUALLY_FAR: f64 = 1e-9;

impl Condition {
    /// Reads a frame. `scratch` is a buffer that holds nothing between calls.
    pub fn read(&self, frame: &Frame, detected: Detected<'_>, scratch: &mut Vec<f64>) -> Reading {
        match self.statistic {
            Statistic::Departure => return self.read_departure(detected.departure),
            Statistic::Factors => return self.read_factors(frame, detected.factors),
            _ => {}
        }
        let summary = &frame.summary;
        let value = self.statistic.of(frame, self.direction, scratch);
        let side = self.blamed_side(frame, scratch);
        let beyond = match self.direction {
            Direction::Above => value > self.bound,
            Direction::Below => value < self.bound,
        };
        let member = if side == Side::Low { summary.argmin } else { summary.argmax };
        let times_chance = if self.chance.is_some() { times_chance(summary, side) } else { 0.0 };
        let beyond_bound = beyond && (self.side == Side::Both || self.side == side);
        Reading { value, beyond_bound, times_chance, member, side }
    }

    /// How long after a change in the samples the statistic shows all of it.
    pub fn settles(&self) -> Duration {
        match self.statistic {
            Statistic::Departure => DEPARTED,
            Statistic::Factors => FACTORS_SETTLE,
            _ => self.smooth * 3,
        }
    }

    fn read_departure(&self, departure: Option<&Evidence>) -> Reading {
        let Some(e) = departure else { return Reading::NOTHING };
        let beyond_bound = e.value > self.bound && (self.side == Side::Both || self.side == e.side);
        Reading { value: e.value, beyond_bound, times_chance: e.lately, member: e.member, side: e.side }
    }

    /// Beyond its bound while a trouble of one of its factors is under way; the value is in multiples of
    /// today's bound.
    fn read_factors(&self, frame: &Frame, findings: Option<&DetectorFindings<'_>>) -> Reading {
        let Some(findings) = findings else { return Reading::NOTHING };
        let trouble = findings.trouble.filter(|t| self.factors.has(t.factor));
        let Some(trouble) = trouble else {
            let is_near = findings.nearest.is_some_and(|nearest| self.factors.has(nearest.factor));
            let is_own = findings.trouble.is_none() && is_near;
            let value = if is_own { findings.times_bound().min(self.bound) } else { 0.0 };
            return Reading { value, ..Reading::NOTHING };
        };
        let dp = trouble.ranks.first().and_then(|rank| findings.dp(*rank));
        let is_blamed = |m: &Member| dp.is_some() && m.id.get("dp_rank").and_then(index_of) == dp;
        let Some(member) = frame.members.iter().position(is_blamed) else { return Reading::NOTHING };
        let side = side_of(trouble.side);
        let beyond_bound = self.side == Side::Both || self.side == side;
        Reading {
            value: findings.times_bound().max(self.bound),
            beyond_bound,
            member,
            side,
            ..Reading::NOTHING
        }
    }

    /// As part of a trigger: beyond the bound and beyond chance.
    pub fn is_exceeded(&self, r: &Reading) -> bool {
        r.beyond_bound && self.chance.is_none_or(|k| r.times_chance > k)
    }

    /// As part of a clear: within the bound or within chance.
    pub fn is_kept(&self, r: &Reading) -> bool {
        if self.statistic == Statistic::Departure {
            // A member on its way back no longer triggers, but the group is not yet even.
            return r.times_chance <= self.bound;
        }
        !r.beyond_bound || self.chance.is_some_and(|k| r.times_chance <= k)
    }

    /// High or low: the side that the statistic itself measures, else that of the member farthest from
    /// the median.
    fn blamed_side(&self, frame: &Frame, scratch: &mut Vec<f64>) -> Side {
        match self.statistic {
            Statistic::MaxOverMean | Statistic::LostShare => Side::High,
            Statistic::MinOverMean => Side::Low,
            Statistic::AnyMember | Statistic::AllMembers => match self.direction {
                Direction::Above => Side::High,
                Direction::Below => Side::Low,
            },
            _ => {
                let s = &frame.summary;
                let median = median_of(frame.in_order(scratch));
                let (above, below) = (s.max - median, median - s.min);
                // Of two members each is as far from the middle, and rounding must not choose between them.
                let are_equal = (above - below).abs() <= EQUALLY_FAR * (s.max - s.min);
                match self.side {
                    Side::Low if are_equal => Side::Low,
                    _ if are_equal || above > below => Side::High,
                    _ => Side::Low,
                }
            }
        }
    }
}

impl Reading {
    /// Nothing was found.
    const NOTHING: Self =
        Self { value: 0.0, beyond_bound: false, times_chance: 0.0, member: 0, side: Side::High };
}

fn index_of(label: &LabelValue) -> Option<u16> {
    match label {
        LabelValue::Index(index) => u16::try_from(*index).ok(),
        LabelValue::Text(_) => None,
    }
}

/// The blamed member's distance from the mean of its peers, in standard deviations of a Poisson
/// count around the group's mean.
fn times_chance(s: &Summary, side: Side) -> f64 {
    if s.n < 2 || s.mean <= 0.0 {
        return 0.0;
    }
    let n = s.n as f64;
    let own = if side == Side::Low { s.min } else { s.max };
    let peers = (s.mean * n - own) / (n - 1.0);
    (own - peers).abs() / (s.mean * n / (n - 1.0)).sqrt()
}

/// What a whole trigger or clear found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Whether the conditions, combined, hold (exceeded for a trigger, kept for a clear).
    pub holds: bool,
    /// The index of the deciding condition: the first that holds, else the first.
    pub deciding: usize,
    /// What that condition showed.
    pub reading: Reading,
}

/// What is missing for one condition of a trigger to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is within its bound, or within chance.
    Excess,
    /// It is beyond them, not yet for its own `for`.
    Time,
    /// It is no more than usual in this group, or what is usual is not known yet.
    Unusual,
}

/// What the last evaluation of one condition of a trigger found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConditionResult {
    /// Its numbers.
    pub reading: Reading,
    /// What is missing for it to hold, if anything.
    pub missing: Option<Missing>,
}

/// Which part of a rule is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its trigger: conditions must be exceeded.
    Trigger,
    /// Its clear: conditions must be kept.
    Clear,
}

impl ConditionResult {
    /// A condition that does not hold because nothing is beyond its bound, or beyond chance.
    pub const fn within_bound(reading: Reading) -> Self {
        Self { reading, missing: Some(Missing::Excess) }
    }
}

impl Trigger {
    /// Judges all conditions. `frames` has one for each of them, in their order.
    pub fn judge<'a>(
        &self,
        part: Part,
        frames: impl Iterator<Item = &'a Frame>,
        detected: Detected<'_>,
        memory: &mut ConditionMemory,
        scratch: &mut Vec<f64>,
    ) -> Judgement {
        let mut first: Option<(bool, usize, Reading)> = None;
        let (mut all, mut any) = (true, false);
        for (i, (condition, frame)) in self.conditions.iter().zip(frames).enumerate() {
            let reading = condition.read(frame, detected, scratch);
            let holds = match part {
                Part::Trigger => condition.is_exceeded(&reading),
                Part::Clear => condition.is_kept(&reading),
            };
            let lasts = memory.lasts(i, holds, condition.hold);
            // What is within its bound is what is usual above all.
            let is_unusual = memory.is_unusual(i, condition, &reading);
            let missing = match holds {
                false => Some(Missing::Excess),
                true if !lasts => Some(Missing::Time),
                true if !is_unusual => Some(Missing::Unusual),
                true => None,
            };
            if part == Part::Trigger {
                memory.note(i, ConditionResult { reading, missing });
            }
            let holds = missing.is_none();
            all &= holds;
            any |= holds;
            if first.is_none_or(|(held, ..)| holds && !held) {
                first = Some((holds, i, reading));
            }
        }
        let (_, deciding, reading) = first.expect("a trigger has at least one condition: config sees to it");
        Judgement { holds: if self.combine == Combine::All { all } else { any }, deciding, reading }
    }
}

/// What single conditions remember from one evaluation to the next: since when they have held, and
/// what is usual.
#[derive(Clone, Debug, Default)]
pub struct ConditionMemory {
    pub now: Time,
    /// Whether the values of this evaluation may become usual.
    pub may_learn: bool,
    since: Vec<Option<Time>>,
    baselines: Vec<Baseline>,
    results: Vec<ConditionResult>,
}

impl ConditionMemory {
    fn is_unusual(&mut self, index: usize, condition: &Condition, reading: &Reading) -> bool {
        let Some(factor) = condition.above_baseline else { return true };
        if self.baselines.len() <= index {
            self.baselines.resize(index + 1, Baseline::default());
        }
        let baseline = &mut self.baselines[index];
        let exceeded = baseline.is_exceeded(reading.value, factor, condition.direction);
        if self.may_learn && exceeded != Some(true) {
            baseline.learn(self.now, reading.value);
        }
        exceeded == Some(true)
    }

    fn lasts(&mut self, index: usize, holds: bool, hold: Duration) -> bool {
        if hold.is_zero() {
            return holds;
        }
        if self.since.len() <= index {
            self.since.resize(index + 1, None);
        }
        has_lasted(&mut self.since[index], holds, hold, self.now)
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(self.since.iter_mut().flatten().chain([&mut self.now]), by_ns);
        self.baselines.iter_mut().for_each(|baseline| baseline.shift(by_ns));
    }

    /// Keeps what an evaluation found of a condition.
    pub fn note(&mut self, index: usize, results: ConditionResult) {
        match self.results.get_mut(index) {
            Some(result) => *result = results,
            None => self.results.push(results),
        }
    }

    /// What the last evaluation found, condition by condition.
    pub fn results(&self) -> &[ConditionResult] {
        &self.results
    }

    /// Since when a condition has held, where that is known.
    pub fn since(&self, index: usize) -> Option<Time> {
        self.since.get(index).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(statistic: Statistic, bound: f64) -> Condition {
        Condition {
            signal: Signal(0),
            signal_name: "load".into(),
            statistic,
            bound,
            direction: statistic.direction(),
            side: statistic.side(),
            chance: None,
            above_baseline: None,
            smooth: Duration::ZERO,
            hold: Duration::ZERO,
            factors: FactorSet::NONE,
        }
    }

    fn read(c: &Condition, values: &[f64]) -> Reading {
        let member =
            |value: &f64| Member { id: Arc::default(), value: *value, at: Time::default(), stale: false };
        c.read(&Frame::of(values.iter().map(member).collect()), Detected::default(), &mut Vec::new())
    }

    #[test]
    fn a_statistic_at_its_bound_is_kept_and_just_beyond_it_exceeded() {
        let c = condition(Statistic::MaxOverMean, 1.5);
        let at = read(&c, &[15.0, 5.0]);
        assert!(!c.is_exceeded(&at) && c.is_kept(&at), "{at:?}");
        let beyond = read(&c, &[15.1, 5.0]);
        assert!(c.is_exceeded(&beyond) && !c.is_kept(&beyond), "{beyond:?}");
    }

    #[test]
    fn a_low_statistic_is_exceeded_downwards_and_blames_the_emptiest() {
        let c = condition(Statistic::MinOverMean, 0.3);
        let r = read(&c, &[20.0, 1.0, 20.0]);
        assert!(c.is_exceeded(&r));
        assert_eq!((r.member, r.side), (1, Side::Low));
    }

    #[test]
    fn small_counts_are_within_chance_where_large_ones_are_not() {
        let c = Condition { chance: Some(4.0), ..condition(Statistic::MaxOverMean, 1.4) };
        let few = read(&c, &[3.0, 2.0, 2.0, 1.0]);
        assert!(few.beyond_bound && !c.is_exceeded(&few) && c.is_kept(&few), "{few:?}");
        let many = read(&c, &[160.0, 80.0, 80.0, 80.0]);
        assert!(c.is_exceeded(&many) && !c.is_kept(&many), "{many:?}");
    }

    #[test]
    fn a_side_that_may_not_be_blamed_does_not_fire() {
        let both = condition(Statistic::Cv, 0.3);
        let high = Condition { side: Side::High, ..both.clone() };
        let starved = [20.0, 20.0, 20.0, 2.0];
        assert_eq!(read(&both, &starved).side, Side::Low);
        assert!(both.is_exceeded(&read(&both, &starved)));
        assert!(!high.is_exceeded(&read(&high, &starved)));
    }

    #[test]
    fn of_two_members_the_higher_is_blamed_unless_the_rule_looks_for_the_lower_whatever_is_rounded() {
        let both = condition(Statistic::MaxMinusMin, 0.3);
        let low = Condition { side: Side::Low, ..both.clone() };
        let high = Condition { side: Side::High, ..both.clone() };
        // As two H200 showed: one process waits for a CPU, the other does not.
        for waits in
            [[0.0000376474259101284, 0.7738288205628779], [0.000012048099218958172, 0.7925426261422012]]
        {
            let of = |c: &Condition| {
                (read(c, &waits).member, read(c, &waits).side, c.is_exceeded(&read(c, &waits)))
            };
            assert_eq!([of(&both), of(&high)], [(1, Side::High, true); 2], "{waits:?}");
            assert_eq!(of(&low), (0, Side::Low, true), "{waits:?}");
        }
    }

    #[test]
    fn any_member_looks_at_the_worst_and_all_members_at_the_best() {
        let hot = [0.97, 0.4, 0.5];
        let any = condition(Statistic::AnyMember, 0.9);
        let all = condition(Statistic::AllMembers, 0.9);
        assert!(any.is_exceeded(&read(&any, &hot)));
        assert!(!all.is_exceeded(&read(&all, &hot)));
        assert!(all.is_exceeded(&read(&all, &[0.97, 0.95, 0.91])));
        let any_low = Condition { direction: Direction::Below, side: Side::Low, ..any };
        let r = read(&any_low, &[5.0, 0.0, 5.0]);
        assert!(any_low.is_exceeded(&r));
        assert_eq!((r.member, r.side), (1, Side::Low));
    }
}
