//! How far one member's course departs from its peers', in units of what this group usually does.
//!
//! Three courses are watched: a member's load, the tokens it holds, and how fast it works. On each,
//! a member is compared with the middle of its group, in a scale on which counts have one variance
//! at any load, less the usual difference (`usual`). The differences are smoothed over seconds and
//! over a quarter of a minute, and measured against their own spread, which the group's other
//! members show at the same time: normal load is noisy and remembers itself, and how much so
//! differs from server to server. Cost and memory do not grow with history. It only measures: bounds,
//! `for` and states belong to the rule.
//!
//! Sources: variance-stabilising root (Anscombe 1948); multivariate EWMA (Lowry et al. 1992).

mod evidence;
mod history;
mod past;
mod spread;
mod tick;
mod usual;

pub use self::evidence::{Course, Evidence};
use self::history::{History, Kept};
use self::past::Past;
use self::spread::Spread;
use self::tick::Bin;
use self::usual::Usual;
use crate::finding::Side;
use crate::onset::{self, MemberCourse, Onset, QuantityKind};
use skewtrap_trace::time::Time;

/// How many courses there are.
const COURSES: usize = 3;
const LOAD: usize = 0;
const TOKENS: usize = 1;
const SPEED: usize = 2;

/// Smoothing, in ticks: quick for what builds up at once, slow for what creeps.
const SCALES: [f64; 2] = [3.0, 12.0];
const QUICK: usize = 0;
/// So many ticks only make the smoothed courses settle.
const FIRST: u32 = 10;
/// The spread is learned with this memory, in ticks: loads remember themselves for half a minute at the
/// slow scale, so a quarter of an hour is no more than a few dozen independent values of each member.
const MEMORY: f64 = 900.0;
/// A member's own usual load is learned with this one.
const LEVEL_MEMORY: f64 = 150.0;
/// With fewer ticks than this there is no evidence.
const WARM: u32 = 60;
/// A spread learned from so many ticks (of two members) may be as small as half of the true one.
const UNSURE: f64 = 40.0;
/// The length of a tick in seconds; shorter ones would only count noise.
const TICK_S: f64 = 1.0;
/// Nothing new from anybody for so long, in seconds, is a pause of the server or of its log ...
const PAUSE_S: f64 = 2.5;
/// ... unless news comes more seldom anyway: then so many times its usual distance.
const PAUSE_PACES: f64 = 2.5;
/// Fewer members than this are compared by their load alone: no member is left to learn from that is
/// not under suspicion itself.
const FEW: usize = 4;
/// After a pause, this many ticks are not used.
const SETTLE: u32 = 6;
/// One tick counts no more than this many standard deviations of its course.
const CLIP: [f64; COURSES] = [8.0, 6.0, 3.0];
/// From here on the group is under suspicion and learns with care.
const SUSPICIOUS: f64 = 3.5;
/// From here on differences are no longer taken for usual ones.
const ALARMING: f64 = 4.5;
/// For the onset, the load and what cached prompts explain of it largely show the same, so neither
/// counts in full, ...
const WEIGHT_OF_LOAD: f64 = 0.6;
const WEIGHT_OF_CACHED: f64 = 0.3;
const WEIGHT_OF_BOTH: f64 = WEIGHT_OF_LOAD + WEIGHT_OF_CACHED;
/// ... and a speed that goes with them has causes of its own.
const WEIGHT_OF_SPEED: f64 = 0.3;
/// A load that has grown this much is another regime; more is not expected of its spread.
const MOST_GROWN: f64 = 4.0;
/// The variance grows by this power of the load's growth: steps grow with the load, so what is late
/// makes more late.
const GROWING: f64 = 1.5;

/// What is known of one member at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Requests it runs and queues; 0 when it went silent while its peers work.
    pub load: f64,
    /// Tokens that it holds for them.
    pub tokens: Option<f64>,
    /// Tokens a second for each request it runs; `None` when it runs none.
    pub speed: Option<f64>,
    /// When that was last measured.
    pub at: Time,
}

/// The detector of one group.
#[derive(Clone, Debug, Default)]
pub struct Departure {
    bins: Vec<Bin>,
    closed: Option<Time>,
    changed: Time,
    /// The usual time between news, in seconds.
    pace_s: f64,
    settling: u32,
    ticks: u32,
    /// Ticks that taught what is usual.
    learned: u32,
    raw: Vec<[f64; COURSES]>,
    smooth: Vec<[[f64; COURSES]; SCALES.len()]>,
    /// Variance of the differences, tick by tick.
    variance: [f64; COURSES],
    spread: [Spread; SCALES.len()],
    past: Vec<Past>,
    /// Each member's load in this tick, and ...
    absolute: Vec<f64>,
    /// ... its own usual load, on the scale of the differences.
    level: Vec<f64>,
    /// The load in the group's middle in this tick, and when its spread was learned.
    middle: f64,
    usual_middle: f64,
    usual: Usual,
    /// When each member was measured in this tick.
    times: Vec<Option<Time>>,
    history: History,
    evidence: Option<Evidence>,
}

impl Departure {
    /// Takes what is known of the members now, always in the same order. `may_learn` is false
    /// while the rule is pending, firing or capturing: then nothing of it becomes usual.
    /// Returns whether a tick ended, that is, whether [`Self::evidence`] is new.
    pub fn observe(&mut self, now: Time, members: &[Work], may_learn: bool) -> bool {
        if self.bins.len() != members.len() {
            *self = Self::of(members.len(), now);
        }
        let mut is_news = false;
        for (bin, work) in self.bins.iter_mut().zip(members) {
            is_news |= bin.take(work);
        }
        let quiet_s = now.signed_s_since(self.changed);
        if quiet_s > PAUSE_S.max(PAUSE_PACES * self.pace_s) && self.pace_s > 0.0 {
            self.settling = SETTLE;
        }
        if is_news {
            let gap = if self.pace_s > 0.0 { quiet_s.min(10.0 * self.pace_s) } else { quiet_s };
            self.pace_s += if self.pace_s > 0.0 { 0.1 * (gap - self.pace_s) } else { gap };
            self.changed = now;
        }
        let start = *self.closed.get_or_insert(now);
        let fresh = self.bins.iter().filter(|b| b.samples > 0).count();
        if now.signed_s_since(start) < TICK_S - 0.05 || 2 * fresh < self.bins.len() {
            return false;
        }
        self.closed = Some(now);
        if self.settling > 0 {
            self.settling -= 1;
            self.bins.iter_mut().for_each(Bin::empty);
            self.evidence = None;
            return true;
        }
        self.tick(now, may_learn);
        true
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.bins.iter_mut().for_each(|bin| bin.shift(by_ns));
        self.history.shift(by_ns);
        Time::shift_all(self.times.iter_mut().flatten(), by_ns);
        Time::shift_all(self.closed.iter_mut().chain([&mut self.changed]), by_ns);
    }

    /// The farthest departure as of the last tick; `None` while too little has been seen.
    pub fn evidence(&self) -> Option<&Evidence> {
        self.evidence.as_ref().filter(|_| self.is_warm())
    }

    /// Whether enough has been seen for a verdict.
    pub fn is_warm(&self) -> bool {
        self.learned >= WARM
    }

    /// When `evidence`'s member left its peers, not before `since`: where all that shows it broke.
    pub fn onset(&self, evidence: &Evidence, since: Time) -> Option<Onset> {
        let is_before = |t: &Time| *t < since;
        let before = self.history.times(evidence.member).take_while(is_before).count();
        let times: Vec<Time> = self.history.times(evidence.member).skip(before).collect();
        let member_course = |course: Course, quantity: QuantityKind, weight: f64| {
            let values = self.history.of(evidence.member, course).skip(before).collect();
            MemberCourse { values, quantity, memory: self.memory(evidence.member, course), weight }
        };
        let speed = || member_course(Course::Speed, QuantityKind::Follows, WEIGHT_OF_SPEED);
        let member_courses = match evidence.course {
            Course::Speed => vec![member_course(Course::Speed, QuantityKind::Jumps, 1.0)],
            _ if self.spread[QUICK].is_load_alone() => {
                vec![member_course(Course::Load, QuantityKind::Accumulates, 1.0)]
            }
            Course::Load => vec![
                member_course(Course::Load, QuantityKind::Accumulates, WEIGHT_OF_LOAD),
                member_course(Course::Cached, QuantityKind::Accumulates, WEIGHT_OF_CACHED),
                speed(),
            ],
            Course::Cached => {
                vec![member_course(Course::Cached, QuantityKind::Accumulates, WEIGHT_OF_BOTH), speed()]
            }
        };
        onset::locate(&times, &member_courses, evidence.side)
    }

    /// How much of a normal difference is left a tick later, as the peers of `member` show it in the
    /// older half of what is kept; `None` where too few are not under suspicion.
    fn memory(&self, member: usize, course: Course) -> Option<f64> {
        let peers = (0..self.bins.len()).filter(|m| *m != member);
        let older = peers.map(|m| {
            let differences: Vec<f64> = self.history.of(m, course).collect();
            onset::older(&differences).to_vec()
        });
        (self.bins.len() >= FEW).then(|| onset::memory_of(older))
    }

    fn of(members: usize, now: Time) -> Self {
        Self {
            bins: vec![Bin::default(); members],
            raw: vec![[0.0; COURSES]; members],
            smooth: vec![[[0.0; COURSES]; SCALES.len()]; members],
            past: vec![Past::default(); members],
            absolute: vec![0.0; members],
            level: vec![0.0; members],
            times: vec![None; members],
            usual: Usual::new(members),
            changed: now,
            ..Self::default()
        }
    }

    fn tick(&mut self, now: Time, may_learn: bool) {
        self.times.iter_mut().zip(&self.bins).for_each(|(t, b)| *t = b.time());
        self.difference();
        self.ticks += 1;
        let n = self.bins.len();
        let unsure = 1.0 + UNSURE / (f64::from(self.learned + 1) * (n as f64 - 1.0).max(1.0).sqrt());
        let grown = self.grown();
        let gauges = self.spread.map(|s| s.gauge(unsure * grown));
        let usual = self.spread[QUICK].gauge(1.0);
        let mut worst =
            Evidence { value: 0.0, lately: 0.0, member: 0, side: Side::High, course: Course::Load };
        let mut extreme = [(0.0, 0); SCALES.len()];
        let mut kept = Vec::with_capacity(n);
        for m in 0..n {
            let unusual = self.unusual(m);
            let clipped = self.clipped(m, &unusual);
            let cached = usual.measure(&clipped).cached;
            kept.push(Kept::of(now, self.times[m], &unusual, cached));
            let is_over = self.past[m].is_over(unusual[LOAD]);
            for (k, scale) in SCALES.iter().enumerate() {
                let weight = (1.0 / scale).max(1.0 / f64::from(self.ticks));
                let s = &mut self.smooth[m][k];
                (0..COURSES).for_each(|c| s[c] += weight * (clipped[c] - s[c]));
                let seen = gauges[k].measure(s);
                if seen.total > extreme[k].0 {
                    extreme[k] = (seen.total, m);
                }
                if self.ticks <= FIRST {
                    continue;
                }
                if k == QUICK {
                    let apparent = evidence::apparent(&seen);
                    let believed = self.past[m].within_stride(apparent);
                    self.past[m].keep(unusual[LOAD], apparent);
                    worst.raise_quick(m, &seen, (apparent, believed), is_over);
                } else {
                    worst.raise_slow(m, &seen, is_over);
                }
            }
        }
        self.history.keep(now, kept);
        if n == 2 {
            worst = self.of_two(worst);
        }
        self.evidence = Some(worst);
        let is_calm = may_learn && worst.value < SUSPICIOUS;
        self.learned += u32::from(may_learn);
        self.learn(&extreme, may_learn, is_calm);
        let is_alarming = worst.value.max(worst.lately) >= ALARMING;
        self.usual.learn(&self.raw, &self.variance, may_learn && !is_alarming);
        if is_calm {
            let weight = (1.0 / LEVEL_MEMORY).max(1.0 / f64::from(self.learned));
            self.level.iter_mut().zip(&self.absolute).for_each(|(l, a)| *l += weight * (a - *l));
        }
    }

    /// How much larger the variances may be than when they were learned, because the whole group has
    /// more to do than then: loads near a server's limit scatter in proportion, not as counts do, and
    /// remember themselves for longer. They are learned anew as the load stays.
    fn grown(&self) -> f64 {
        if self.usual_middle > 0.0 {
            (self.middle / self.usual_middle).clamp(1.0, MOST_GROWN).powf(GROWING)
        } else {
            1.0
        }
    }

    /// The differences of `m` less the usual ones.
    fn unusual(&self, m: usize) -> [f64; COURSES] {
        std::array::from_fn(|c| self.raw[m][c] - self.usual.of(m)[c])
    }

    /// The same, outliers drawn in.
    fn clipped(&self, m: usize, unusual: &[f64; COURSES]) -> [f64; COURSES] {
        if self.ticks <= 5 {
            return self.raw[m];
        }
        std::array::from_fn(|c| {
            let limit = CLIP[c] * self.variance[c].sqrt();
            unusual[c].clamp(-limit, limit)
        })
    }

    /// Of two members each is as far from the other: to blame is the one that left its own level.
    fn of_two(&self, evidence: Evidence) -> Evidence {
        let left = |m: usize| self.absolute[m] - self.level[m];
        let member = usize::from(left(1).abs() > left(0).abs());
        let side = if left(member) > 0.0 { Side::High } else { Side::Low };
        Evidence { member, side, ..evidence }
    }

    /// Every member's differences from the middle of the group in this tick.
    fn difference(&mut self) {
        let n = self.bins.len();
        let load = self.bins.iter().map(Bin::load).sum::<f64>();
        let tokens = self.bins.iter().filter_map(Bin::tokens).sum::<f64>() / n as f64;
        for (raw, bin) in self.raw.iter_mut().zip(&self.bins) {
            raw[LOAD] = 2.0 * (bin.load() + 0.375).sqrt();
            raw[TOKENS] = match bin.tokens() {
                Some(t) if tokens > 0.0 && load > 0.0 => (t / tokens + 0.1).ln(),
                _ => f64::NAN,
            };
            raw[SPEED] = bin.speed().filter(|s| *s > 0.0).map_or(f64::NAN, f64::ln);
        }
        self.absolute.iter_mut().zip(&self.raw).for_each(|(a, r)| *a = r[LOAD]);
        // Of two, the lesser: else the one that departs takes the middle with it.
        let loads = self.bins.iter().map(Bin::load);
        let middle = if n == 2 { loads.fold(f64::INFINITY, f64::min) } else { middle_of(loads) };
        self.middle += (1.0 / SCALES[1]).max(1.0 / f64::from(self.ticks + 1)) * (middle - self.middle);
        for c in 0..COURSES {
            let middle = middle_of(self.raw.iter().map(|r| r[c]));
            for raw in &mut self.raw {
                let d = raw[c] - middle;
                raw[c] = if d.is_nan() || (n < FEW && c != LOAD) { 0.0 } else { d };
            }
        }
        self.bins.iter_mut().for_each(Bin::empty);
    }

    /// The spread, from all members but the most extreme one, so that the one that departs does
    /// not hide itself.
    fn learn(&mut self, extreme: &[(f64, usize); SCALES.len()], may_learn: bool, is_calm: bool) {
        let n = self.bins.len() as f64;
        let care = match (may_learn, is_calm) {
            (false, _) => 0.0,
            (true, true) => 1.0,
            (true, false) => 0.25,
        };
        let weight = (1.0 / MEMORY).max(1.0 / f64::from(self.learned + 10)) * care;
        let weight = if self.ticks == 1 { 1.0 } else { weight };
        self.usual_middle += weight * (self.middle - self.usual_middle);
        for c in 0..COURSES {
            let limit = 9.0 * self.variance[c];
            let (mut sum, mut largest) = (0.0, 0.0_f64);
            for (m, raw) in self.raw.iter().enumerate() {
                let square = (raw[c] - self.usual.of(m)[c]).powi(2);
                let square = if self.ticks > 1 { square.min(limit.max(1e-6)) } else { square };
                sum += square;
                largest = largest.max(square);
            }
            let seen = if n < FEW as f64 { sum / n } else { (sum - largest) / (n - 1.0) * (1.0 + 5.0 / n) };
            self.variance[c] += weight * (seen - self.variance[c]);
        }
        for (k, spread) in self.spread.iter_mut().enumerate() {
            let without = if n < FEW as f64 { usize::MAX } else { extreme[k].1 };
            let share = if n < FEW as f64 { 1.0 / n } else { (1.0 + 0.85 / n) / (n - 1.0) };
            spread.learn(self.smooth.iter().map(|s| &s[k]), without, share, weight);
        }
    }
}

/// The mean without the largest and the smallest; with fewer than three, the mean. NaN for none.
fn middle_of(values: impl Iterator<Item = f64>) -> f64 {
    let (mut n, mut sum, mut low, mut high) = (0_u32, 0.0, f64::INFINITY, f64::NEG_INFINITY);
    for v in values.filter(|v| !v.is_nan()) {
        (n, sum, low, high) = (n + 1, sum + v, f64::min(low, v), f64::max(high, v));
    }
    match n {
        0 => f64::NAN,
        1 | 2 => sum / f64::from(n),
        _ => (sum - low - high) / f64::from(n - 2),
    }
}

#[cfg(test)]
mod tests;
