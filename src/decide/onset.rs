//! Since when: where the course of a blamed member left its peers.
//!
//! Imbalance accumulates: work arrives faster than it leaves, and the load climbs. A level followed
//! by a climb is laid over the recent differences, with its break at every sample, and the break that
//! leaves the least unexplained is the onset. A load that drains levels off at nothing, and a speed
//! changes at once: they have their own shapes. Normal differences remember themselves, so they are
//! whitened first (Cochrane and Orcutt 1949) with the memory seen before the alarm.
//! The uncertainty is the profile likelihood's: every break that explains the course nearly as well.

use crate::decide::rule::Side;
use crate::decide::time::Time;

/// Fewer points than this show no course.
const FEWEST: usize = 12;
/// The break is at least this many points from either end.
const MARGIN: usize = 3;
/// A climb that levels off only after so many points is straight.
const STRAIGHT: f64 = 1e4;
/// How much of the memory measured before the alarm is believed: too much of it hides slow climbs.
const TRUSTED_MEMORY: f64 = 0.8;
/// Breaks whose log-likelihood is within this of the best one's are as good: two standard deviations.
const AS_GOOD: f64 = 2.0;
/// Nothing is located more finely than half the distance between two points.
const LEAST_ERROR_POINTS: f64 = 0.5;

/// Where an imbalance began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Onset {
    /// When.
    pub at: Time,
    /// How far off that may be, in seconds (two standard deviations).
    pub error_s: f64,
    /// The first sample that shows it.
    pub first_sample: Time,
}

/// Finds where `course` (differences of the blamed member from its peers, oldest first, at about
/// even distances) left zero on `side`. `None` when it is too short.
pub fn locate(course: &[(Time, f64)], side: Side, manner: Manner) -> Option<Onset> {
    if course.len() < FEWEST {
        return None;
    }
    let sign = if side == Side::Low { -1.0 } else { 1.0 };
    let white = Whitened::of(&course.iter().map(|(_, d)| sign * d).collect::<Vec<_>>());
    let shapes: Vec<_> = manner.shapes(side).iter().map(|climb| white.shape(*climb)).collect();
    let fits: Vec<f64> = (MARGIN..course.len() - MARGIN)
        .map(|from| shapes.iter().map(|shape| white.misfit(shape, from)).fold(f64::INFINITY, f64::min))
        .collect();
    let best = (0..fits.len()).min_by(|a, b| fits[*a].total_cmp(&fits[*b]))?;
    let is_as_good = |f: &f64| f - fits[best] <= AS_GOOD;
    let first = fits.iter().position(is_as_good)?;
    let last = fits.iter().rposition(is_as_good)?;
    let step_s = course[course.len() - 1].0.signed_s_since(course[0].0) / (course.len() - 1) as f64;
    let place = best + MARGIN;
    Some(Onset {
        at: course[place].0,
        error_s: ((last - first) as f64 / 2.0).max(LEAST_ERROR_POINTS) * step_s,
        first_sample: course[(place + 1).min(course.len() - 1)].0,
    })
}

/// What kind of quantity the course is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It accumulates, as a load does.
    Accumulates,
    /// It changes at once, as a speed does.
    Jumps,
}

impl Manner {
    fn shapes(self, side: Side) -> &'static [Climb] {
        match (self, side) {
            (Self::Jumps, _) => &[Climb(0.5), Climb(10.0)],
            // A load cannot fall below nothing: it levels off, at once when the rank died.
            (_, Side::Low) => &[Climb(STRAIGHT), Climb(30.0), Climb(10.0), Climb(0.5)],
            _ => &[Climb(STRAIGHT)],
        }
    }
}

/// A course whose normal part no longer remembers itself.
struct Whitened {
    memory: f64,
    values: Vec<f64>,
    sum: f64,
    squares: f64,
}

impl Whitened {
    fn of(y: &[f64]) -> Self {
        let memory = TRUSTED_MEMORY * memory_of(&y[..y.len() / 2]);
        let values: Vec<f64> = y.windows(2).map(|w| w[1] - memory * w[0]).collect();
        let (sum, squares) = (values.iter().sum(), values.iter().map(|v| v * v).sum());
        Self { memory, values, sum, squares }
    }

    /// A climb that begins at the first point, whitened like the course. One that begins later is
    /// the same, moved: before its break it is zero, whitened too.
    fn shape(&self, climb: Climb) -> Shape {
        let points = 0..self.values.len();
        let values: Vec<f64> = points.map(|i| climb.at(i + 1) - self.memory * climb.at(i)).collect();
        let mut sums = Vec::with_capacity(values.len() + 1);
        sums.push((0.0, 0.0));
        for v in &values {
            let (sum, squares) = sums[sums.len() - 1];
            sums.push((sum + v, squares + v * v));
        }
        Shape { values, sums }
    }

    /// Minus the log-likelihood of a level and `shape` from the point `from` on, upwards only, up to
    /// a constant.
    fn misfit(&self, shape: &Shape, from: usize) -> f64 {
        let n = self.values.len() as f64;
        let behind = &self.values[from..];
        let (sx, sxx) = shape.sums[behind.len()];
        let sxy = dot(behind, &shape.values[..behind.len()]);
        let (xx, xy) = (sxx - sx * sx / n, sxy - sx * self.sum / n);
        let yy = self.squares - self.sum * self.sum / n;
        let is_flat = xx <= 1e-12 || xy <= 0.0;
        let left = if is_flat { yy } else { yy - xy * xy / xx };
        n / 2.0 * (left / n).max(1e-9).ln()
    }
}

/// A whitened climb, and the sums and sums of squares of its first values.
struct Shape {
    values: Vec<f64>,
    sums: Vec<(f64, f64)>,
}

/// The sum of products, in four lanes: added one by one, each waits for the one before.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut lanes = [0.0; 4];
    for (a, b) in a.zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// A climb that levels off, with this many points as its time constant.
#[derive(Clone, Copy)]
struct Climb(f64);

impl Climb {
    /// How high it is so many points after its break.
    fn at(self, points: usize) -> f64 {
        self.0 * (1.0 - (-(points as f64) / self.0).exp())
    }
}

/// How much of the last difference is left in the next: lag-one correlation, from what is normal.
fn memory_of(y: &[f64]) -> f64 {
    let mean = y.iter().sum::<f64>() / y.len() as f64;
    let (mut own, mut next) = (1e-12, 0.0);
    for pair in y.windows(2) {
        own += (pair[0] - mean).powi(2);
        next += (pair[0] - mean) * (pair[1] - mean);
    }
    (next / own).clamp(0.0, 0.95)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn course(f: impl Fn(f64) -> f64) -> Vec<(Time, f64)> {
        let start = Time::from_epoch_s(1_000.0);
        let wiggle = |i: u64| ((i * 7919) % 13) as f64 / 13.0 - 0.5;
        (0..120).map(|i| (start + Duration::from_secs(i), f(i as f64) + 0.4 * wiggle(i))).collect()
    }

    fn error_s(onset: Onset, truth: f64) -> f64 {
        (onset.at.epoch_s() - 1_000.0 - truth).abs()
    }

    #[test]
    fn the_foot_of_a_climb_is_found() {
        let onset = locate(&course(|i| (i - 100.0).max(0.0) * 0.5), Side::High, Manner::Accumulates).unwrap();
        assert!(error_s(onset, 100.0) <= 1.5, "{onset:?}");
        assert!(onset.error_s <= 5.0, "{onset:?}");
    }

    #[test]
    fn a_drain_that_levels_off_is_found_on_the_low_side() {
        let onset = locate(
            &course(|i| -5.0 * (1.0 - (-(i - 80.0).max(0.0) / 8.0).exp())),
            Side::Low,
            Manner::Accumulates,
        )
        .unwrap();
        assert!(error_s(onset, 80.0) <= 1.5, "{onset:?}");
    }

    #[test]
    fn a_drift_that_grows_is_traced_back_most_of_the_way() {
        let onset = locate(&course(|i| (i - 50.0).max(0.0).powi(2) / 700.0), Side::High, Manner::Accumulates)
            .unwrap();
        assert!(error_s(onset, 50.0) <= 25.0, "{onset:?}");
    }

    #[test]
    fn too_short_a_course_has_no_onset() {
        assert_eq!(locate(&course(|i| i)[..10], Side::High, Manner::Accumulates), None);
    }
}
