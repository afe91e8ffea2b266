//! Since when: where the course of a blamed member left its peers.
//!
//! Imbalance accumulates: work arrives faster than it leaves, and the load climbs. A level followed by a
//! climb is laid over the recent differences, with its break at every sample, and the break that leaves the
//! least unexplained is the onset. A load that drains levels off at nothing, a share that drifts makes the
//! climb itself grow, and a speed changes at once: they have their own shapes. What several courses of one
//! member show began at once, so they share the break. Normal differences are correlated in time, so they are
//! whitened first (Cochrane and Orcutt 1949) with the memory that the peers show, or else the course before
//! the alarm. The uncertainty is the profile likelihood's: every break that explains the course nearly as
//! well.

use std::ops::Range;
use std::time::Duration;

use crate::finding::Side;
use skewtrap_trace::time::Time;

/// Fewer points than this show no course.
const FEWEST: usize = 12;
/// The break is at least this many points from either end.
const MARGIN: usize = 3;
/// The share that is used of a memory measured on the peers: too much of it hides slow climbs.
const OF_PEERS: f64 = 0.9;
/// Likewise of one measured on the blamed member itself, whose climb may be part of it.
const OF_ITS_OWN: f64 = 0.8;
/// A memory beyond this would leave nothing to see.
const MOST_MEMORY: f64 = 0.95;
/// A climb that grows must explain this much more, in log-likelihood: the others are far more usual.
const SELDOM: f64 = 2.0;
/// Breaks whose log-likelihood is within this of the best one's are as good: two standard deviations.
const AS_GOOD: f64 = 2.0;
/// Nothing is located more finely than half the distance between two points.
const LEAST_ERROR_POINTS: f64 = 0.5;

/// Where an imbalance began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Onset {
    pub at: Time,
    /// How far off that may be, in seconds (two standard deviations).
    pub error_s: f64,
    /// The first sample that shows it.
    pub first_sample: Time,
}

/// One of the courses of a blamed member that left its peers' together.
#[derive(Clone, Debug)]
pub struct MemberCourse {
    /// Its differences from its peers, one for each time.
    pub values: Vec<f64>,
    /// How it leaves them.
    pub quantity: QuantityKind,
    /// How much of a difference is left in the next one among the peers ([`memory_of`]), where that is
    /// known.
    pub memory: Option<f64>,
    /// How much its log-likelihood counts: less than 1 where other courses show part of the same.
    pub weight: f64,
}

/// Finds where `member_courses` (as of `times`, oldest first, at about even distances) left zero on `side`,
/// all at once: their log-likelihoods are added (a composite likelihood, Lindsay 1988). `None` when there
/// are too few times.
pub fn locate(times: &[Time], member_courses: &[MemberCourse], side: Side) -> Option<Onset> {
    debug_assert!(member_courses.iter().all(|s| s.values.len() == times.len()));
    if times.len() < FEWEST {
        return None;
    }
    let last = times.len() - 1;
    let step_s = times[last].signed_s_since(times[0]) / last as f64;
    let steps: Vec<f64> = times.iter().map(|t| t.signed_s_since(times[0]) / step_s.max(1e-9)).collect();
    let breaks = MARGIN..times.len() - MARGIN;
    // A break may be seconds or minutes old, so all scales of its age are equally likely beforehand:
    // else one of the many breaks long ago would explain a short climb by accident.
    let mut fits: Vec<f64> = breaks.clone().map(|from| (1.0 + steps[last] - steps[from]).ln()).collect();
    for member_course in member_courses {
        let misfits = member_course.misfits(&steps, side, breaks.clone());
        fits.iter_mut().zip(misfits).for_each(|(fit, misfit)| *fit += member_course.weight * misfit);
    }
    let best = (0..fits.len()).min_by(|a, b| fits[*a].total_cmp(&fits[*b]))?;
    let is_as_good = |f: &f64| f - fits[best] <= AS_GOOD;
    let first = fits.iter().position(is_as_good)?;
    let latest = fits.iter().rposition(is_as_good)?;
    let (place, next) = (best + MARGIN, (best + MARGIN + 1).min(last));
    let apart_s = times[next].signed_s_since(times[place]);
    // A climb begins at its foot; a jump lies between the last point before it and the first after.
    let is_jump = member_courses.iter().all(|s| s.quantity == QuantityKind::Jumps);
    let into_s = if is_jump { apart_s / 2.0 } else { 0.0 };
    // The best break need not be in the middle of those that are as good.
    let apart = (best - first).max(latest - best) as f64;
    Some(Onset {
        at: times[place] + Duration::from_secs_f64(into_s.max(0.0)),
        error_s: apart.max(LEAST_ERROR_POINTS) * step_s,
        first_sample: times[next],
    })
}

impl MemberCourse {
    /// Minus the log-likelihood of each break, by the shape that fits it best.
    fn misfits(&self, steps: &[f64], side: Side, breaks: Range<usize>) -> Vec<f64> {
        let sign = if side == Side::Low { -1.0 } else { 1.0 };
        let up: Vec<f64> = self.values.iter().map(|d| sign * d).collect();
        let memory = match self.memory {
            Some(memory) => OF_PEERS * memory,
            None => OF_ITS_OWN * memory_of([older(&up)]),
        };
        let white = Whitened::of(&up, steps, memory.clamp(0.0, MOST_MEMORY));
        let shapes: Vec<_> =
            self.quantity.shapes(side).iter().map(|departing| white.shape(*departing, steps)).collect();
        let either_way = self.quantity == QuantityKind::Follows;
        let misfit = |from| {
            let misfits = shapes.iter().map(|shape| white.misfit(shape, from, steps[from], either_way));
            misfits.fold(f64::INFINITY, f64::min)
        };
        breaks.map(misfit).collect()
    }
}

/// What kind of quantity the course is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantityKind {
    /// It accumulates, as a load does.
    Accumulates,
    /// It changes at once, as a speed does.
    Jumps,
    /// It goes either way with what accumulates, at once or by and by: a speed, as prompts arrive and
    /// steps grow.
    Follows,
}

impl QuantityKind {
    fn shapes(self, side: Side) -> &'static [Departing] {
        match (self, side) {
            (Self::Jumps, _) => &[Departing::Bends(0.5), Departing::Bends(10.0)],
            (Self::Follows, _) => &[Departing::Bends(0.5), Departing::Straight],
            // A load cannot fall below zero: it levels off, at once when the rank died.
            (_, Side::Low) => &[
                Departing::Straight,
                Departing::Grows,
                Departing::Bends(30.0),
                Departing::Bends(10.0),
                Departing::Bends(0.5),
            ],
            // Work leaves the faster the more there is: a climb bends, unless the rank is swamped, or
            // ever more is sent to it.
            _ => &[Departing::Straight, Departing::Grows, Departing::Bends(10.0)],
        }
    }
}

/// A course from which its autocorrelation has been removed.
struct Whitened {
    /// How much of each point is left in the next.
    memories: Vec<f64>,
    values: Vec<f64>,
    sum: f64,
    squares: f64,
}

impl Whitened {
    /// `times` in steps: points need not lie at even distances. `memory` is for one step.
    fn of(y: &[f64], times: &[f64], memory: f64) -> Self {
        let memories: Vec<f64> = times.windows(2).map(|t| memory.powf((t[1] - t[0]).max(0.0))).collect();
        let values: Vec<f64> = y.windows(2).zip(&memories).map(|(w, m)| w[1] - m * w[0]).collect();
        let (sum, squares) = (values.iter().sum(), values.iter().map(|v| v * v).sum());
        Self { memories, values, sum, squares }
    }

    /// Wherever a climb breaks, it is made of the same [`TERMS`]; only their weights differ. So the
    /// sums that a fit needs are made once, from every point to the end, and each break costs the same
    /// whatever the length.
    fn shape(&self, departing: Departing, times: &[f64]) -> Shape {
        let mut sums = vec![Sums::default(); self.values.len() + 1];
        for i in (0..self.values.len()).rev() {
            let (last, next) = (departing.terms(times[i]), departing.terms(times[i + 1]));
            let terms: [f64; TERMS] = std::array::from_fn(|k| next[k] - self.memories[i] * last[k]);
            sums[i] = sums[i + 1].with(&terms, self.values[i]);
        }
        Shape { departing, sums }
    }

    /// Minus the log-likelihood of a level and a climb that breaks at the point `from`, at `time`;
    /// up to a constant, and upwards only unless it may go `either_way`.
    fn misfit(&self, shape: &Shape, from: usize, time: f64, either_way: bool) -> f64 {
        let n = self.values.len() as f64;
        let (sx, sxx, sxy) = shape.sums[from].weighted(&shape.departing.weights(time));
        let (xx, xy) = (sxx - sx * sx / n, sxy - sx * self.sum / n);
        let yy = self.squares - self.sum * self.sum / n;
        let is_flat = xx <= 1e-12 || (xy <= 0.0 && !either_way);
        let left = if is_flat { yy } else { yy - xy * xy / xx };
        n / 2.0 * (left / n).max(1e-9).ln() + shape.departing.cost()
    }
}

/// How a course leaves its level.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Departing {
    /// At a constant rate.
    Straight,
    /// At a rate that grows from zero: a share that drifts.
    Grows,
    /// Levelling off, with this many points as its time constant.
    Bends(f64),
}

/// Of how many functions of time a climb is the weighted sum, whatever its break.
const TERMS: usize = 3;

impl Departing {
    /// These functions, at `t`.
    fn terms(self, t: f64) -> [f64; TERMS] {
        match self {
            Self::Straight | Self::Grows => [1.0, t, t * t],
            Self::Bends(constant) => [constant, constant * (-t / constant).exp(), 0.0],
        }
    }

    /// Their weights in the climb that breaks at `t`.
    fn weights(self, t: f64) -> [f64; TERMS] {
        match self {
            Self::Straight => [-t, 1.0, 0.0],
            Self::Grows => [t * t, -2.0 * t, 1.0],
            Self::Bends(constant) => [1.0, -(t / constant).exp(), 0.0],
        }
    }

    /// How much better than others it must fit to be chosen.
    fn cost(self) -> f64 {
        if self == Self::Grows { SELDOM } else { 0.0 }
    }
}

/// A climb with the sums that fitting it needs, whatever its break.
struct Shape {
    departing: Departing,
    /// From each point to the last.
    sums: Vec<Sums>,
}

/// Sums over points of a climb's terms, of their products, and of their products with the course.
#[derive(Clone, Copy, Default)]
struct Sums {
    terms: [f64; TERMS],
    products: [[f64; TERMS]; TERMS],
    values: [f64; TERMS],
}

impl Sums {
    /// With one point more.
    fn with(mut self, terms: &[f64; TERMS], value: f64) -> Self {
        for (k, term) in terms.iter().enumerate() {
            self.terms[k] += term;
            self.values[k] += term * value;
            terms.iter().zip(&mut self.products[k]).for_each(|(other, sum)| *sum += term * other);
        }
        self
    }

    /// The sums of the climb itself, of its square, and of its product with the course.
    fn weighted(&self, weights: &[f64; TERMS]) -> (f64, f64, f64) {
        let dot = |sums: &[f64; TERMS]| weights.iter().zip(sums).map(|(w, s)| w * s).sum::<f64>();
        (dot(&self.terms), dot(&self.products.map(|of| dot(&of))), dot(&self.values))
    }
}

/// The half of a course that is usually before the firing.
pub fn older(course: &[f64]) -> &[f64] {
    &course[..course.len() / 2]
}

/// How much of a difference is left in the next: the lag-one correlation of normal courses, all
/// together.
pub fn memory_of(courses: impl IntoIterator<Item = impl AsRef<[f64]>>) -> f64 {
    let (mut own, mut next) = (1e-12, 0.0);
    for course in courses {
        let y = course.as_ref();
        let mean = y.iter().sum::<f64>() / y.len() as f64;
        for pair in y.windows(2) {
            own += (pair[0] - mean).powi(2);
            next += (pair[0] - mean) * (pair[1] - mean);
        }
    }
    next / own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rng::TestRng;

    fn course(f: impl Fn(f64) -> f64) -> Vec<(Time, f64)> {
        let start = Time::from_epoch_s(1_000.0);
        let wiggle = |i: u64| ((i * 7919) % 13) as f64 / 13.0 - 0.5;
        (0..120).map(|i| (start + Duration::from_secs(i), f(i as f64) + 0.4 * wiggle(i))).collect()
    }

    /// The onset in one course.
    fn found(course: Vec<(Time, f64)>, side: Side, quantity: QuantityKind) -> Option<Onset> {
        let (times, values): (Vec<Time>, Vec<f64>) = course.into_iter().unzip();
        locate(&times, &[MemberCourse { values, quantity, memory: None, weight: 1.0 }], side)
    }

    fn error_s(onset: Onset, truth: f64) -> f64 {
        (onset.at.epoch_s() - 1_000.0 - truth).abs()
    }

    #[test]
    fn the_foot_of_a_climb_is_found() {
        let onset =
            found(course(|i| (i - 100.0).max(0.0) * 0.5), Side::High, QuantityKind::Accumulates).unwrap();
        assert!(error_s(onset, 100.0) <= 1.5, "{onset:?}");
        assert!(onset.error_s <= 5.0, "{onset:?}");
    }

    #[test]
    fn the_error_reaches_every_break_that_is_as_good() {
        let mut rng = TestRng(11);
        let mut missed = 0;
        for round in 0..300 {
            let (began, rate) = (40.0 + f64::from(round % 60), 0.02 + 0.002 * f64::from(round % 40));
            let mut noisy = |(t, _): (Time, f64)| {
                let s = t.epoch_s() - 1_000.0;
                (t, rate * (s - began).max(0.0) + 1.5 * (rng.uniform() - 0.5))
            };
            let course: Vec<_> = course(|_| 0.0).into_iter().map(&mut noisy).collect();
            let onset = found(course, Side::High, QuantityKind::Accumulates).unwrap();
            missed += u32::from(error_s(onset, began) > onset.error_s + 0.5);
        }
        // One in twenty is 15, give or take 4.
        assert!(missed <= 20, "{missed} of 300 lie beyond two standard deviations");
    }

    #[test]
    fn a_drain_that_levels_off_is_found_on_the_low_side() {
        let onset = found(
            course(|i| -5.0 * (1.0 - (-(i - 80.0).max(0.0) / 8.0).exp())),
            Side::Low,
            QuantityKind::Accumulates,
        )
        .unwrap();
        assert!(error_s(onset, 80.0) <= 1.5, "{onset:?}");
    }

    #[test]
    fn a_drift_is_traced_back_to_where_it_began_to_grow() {
        let onset =
            found(course(|i| (i - 50.0).max(0.0).powi(2) / 700.0), Side::High, QuantityKind::Accumulates)
                .unwrap();
        assert!(error_s(onset, 50.0) <= 5.0, "{onset:?}");
    }

    #[test]
    fn a_climb_that_bends_is_found_at_its_foot_too() {
        let bent = |i: f64| 6.0 * (1.0 - (-(i - 95.0).max(0.0) / 10.0).exp());
        let onset = found(course(bent), Side::High, QuantityKind::Accumulates).unwrap();
        assert!(error_s(onset, 95.0) <= 1.5, "{onset:?}");
    }

    #[test]
    fn a_jump_lies_between_the_last_point_before_it_and_the_first_after() {
        let jump = |i: f64| if i >= 101.0 { 5.0 } else { 0.0 };
        let onset = found(course(jump), Side::High, QuantityKind::Jumps).unwrap();
        assert_eq!(onset.at.epoch_s() - 1_000.0, 100.5);
    }

    #[test]
    fn a_speed_that_breaks_with_the_load_tells_more_closely_when() {
        let times: Vec<Time> = course(|_| 0.0).into_iter().map(|(t, _)| t).collect();
        let mut rng = TestRng(3);
        let mut noisy =
            |f: &dyn Fn(f64) -> f64| (0..120).map(|i| f(f64::from(i)) + 2.0 * rng.uniform()).collect();
        let load: Vec<f64> = noisy(&|i| (i - 100.0).max(0.0) * 0.3);
        let speed: Vec<f64> = noisy(&|i| if i > 100.0 { -3.0 } else { 0.0 });
        let member_course =
            |values: Vec<f64>, quantity| MemberCourse { values, quantity, memory: Some(0.0), weight: 1.0 };
        let (load, speed) =
            (member_course(load, QuantityKind::Accumulates), member_course(speed, QuantityKind::Follows));
        let alone = locate(&times, std::slice::from_ref(&load), Side::High).unwrap();
        let both = locate(&times, &[load, speed], Side::High).unwrap();
        assert!(error_s(both, 100.0) <= 1.0, "{both:?}");
        assert!(both.error_s < alone.error_s, "{both:?} {alone:?}");
    }

    #[test]
    fn points_at_uneven_distances_are_taken_at_their_times() {
        let departing = course(|i| (i - 90.0).max(0.0) * 0.5);
        let seldom: Vec<_> = departing
            .into_iter()
            .enumerate()
            .filter(|(i, _)| *i < 90 || i % 3 == 0)
            .map(|(_, p)| p)
            .collect();
        let onset = found(seldom, Side::High, QuantityKind::Accumulates).unwrap();
        assert!(error_s(onset, 90.0) <= 1.5, "{onset:?}");
    }

    #[test]
    fn the_memory_of_several_courses_is_measured_together() {
        let mut rng = TestRng(7);
        let mut course = |level: f64| {
            let mut left = 0.0;
            let next = |_| {
                left = 0.8 * left + rng.uniform() - 0.5;
                level + left
            };
            (0..200).map(next).collect::<Vec<f64>>()
        };
        let courses = [course(0.0), course(5.0), course(-3.0), course(1.0)];
        let memory = memory_of(courses);
        assert!((memory - 0.8).abs() < 0.06, "levels do not count, only what lies around them: {memory}");
    }

    #[test]
    fn too_short_a_course_has_no_onset() {
        assert_eq!(found(course(|i| i)[..10].to_vec(), Side::High, QuantityKind::Accumulates), None);
    }
}
