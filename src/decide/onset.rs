//! Since when: where the course of a blamed member left its peers.
//!
//! Imbalance accumulates: work arrives faster than it leaves, and the load climbs. Several shapes
//! are laid over the recent differences (a straight climb, one that levels off sooner or later, a
//! climb that itself grows, a step), each with its break at every sample, and the one that leaves
//! the least unexplained gives the onset. Normal differences remember themselves, so the residuals
//! are whitened first (Cochrane and Orcutt 1949) with the memory seen before the alarm.
//! The uncertainty is the profile likelihood's: every break that explains the course nearly as well.

use crate::decide::rule::Side;
use crate::decide::time::Time;

/// Fewer points than this show no course.
const FEWEST: usize = 12;
/// The break is at least this many points from either end.
const MARGIN: usize = 3;
/// How fast a climb levels off, in points; the last is a straight line for the time looked at.
const LEVELLING: [f64; 4] = [3.0, 10.0, 30.0, 1e4];
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

/// The fit of one shape with one break.
#[derive(Clone, Copy)]
struct Fit {
    unexplained: f64,
    from: f64,
}

/// Finds where `course` (differences of the blamed member from its peers, oldest first, at about
/// even distances) left zero on `side`. `None` when it is too short or never did.
pub fn locate(course: &[(Time, f64)], side: Side) -> Option<Onset> {
    if course.len() < FEWEST {
        return None;
    }
    let sign = if side == Side::Low { -1.0 } else { 1.0 };
    let y: Vec<f64> = course.iter().map(|(_, d)| sign * d).collect();
    let memory = memory_of(&y[..y.len() / 2]);
    let white = whitened(&y, memory);
    let mut shape = vec![0.0; y.len()];
    let mut fits: Vec<Fit> = Vec::new();
    for from in MARGIN..y.len() - MARGIN {
        let mut best = f64::INFINITY;
        for kind in Shape::ALL {
            kind.draw(from, &mut shape);
            best = best.min(unexplained(&white, &shape, memory));
        }
        fits.push(Fit { unexplained: best, from: from as f64 });
    }
    let best = fits.iter().copied().min_by(|a, b| a.unexplained.total_cmp(&b.unexplained))?;
    if !best.unexplained.is_finite() {
        return None;
    }
    let variance = (best.unexplained / (y.len() - 3) as f64).max(1e-12);
    let good: Vec<&Fit> =
        fits.iter().filter(|f| (f.unexplained - best.unexplained) / (2.0 * variance) <= AS_GOOD).collect();
    let (first, last) = (good.first()?.from, good.last()?.from);
    let step_s = course[course.len() - 1].0.signed_s_since(course[0].0) / (course.len() - 1) as f64;
    let place = best.from as usize;
    Some(Onset {
        at: course[place].0,
        error_s: ((last - first) / 2.0).max(LEAST_ERROR_POINTS) * step_s,
        first_sample: course[(place + 1).min(course.len() - 1)].0,
    })
}

/// How a course leaves zero.
#[derive(Clone, Copy)]
enum Shape {
    /// Climbs and levels off, with this many points as its time constant.
    Climb(f64),
    /// Climbs ever faster: what makes it climb grows too.
    Growing,
}

impl Shape {
    const ALL: [Self; 5] = [
        Self::Climb(LEVELLING[0]),
        Self::Climb(LEVELLING[1]),
        Self::Climb(LEVELLING[2]),
        Self::Climb(LEVELLING[3]),
        Self::Growing,
    ];

    fn draw(self, from: usize, shape: &mut [f64]) {
        for (i, s) in shape.iter_mut().enumerate() {
            let x = i.saturating_sub(from) as f64;
            *s = match self {
                Self::Climb(points) => points * (1.0 - (-x / points).exp()),
                Self::Growing => x * x,
            };
        }
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

fn whitened(y: &[f64], memory: f64) -> Vec<f64> {
    y.windows(2).map(|w| w[1] - memory * w[0]).collect()
}

/// The sum of squares that a level and `shape`, only upwards, leave of the whitened course.
fn unexplained(white: &[f64], shape: &[f64], memory: f64) -> f64 {
    let n = white.len() as f64;
    let (mut sx, mut sy, mut sxx, mut sxy, mut syy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (w, s) in white.iter().zip(shape.windows(2)) {
        let x = s[1] - memory * s[0];
        sx += x;
        sy += w;
        sxx += x * x;
        sxy += x * w;
        syy += w * w;
    }
    let (xx, xy, yy) = (sxx - sx * sx / n, sxy - sx * sy / n, syy - sy * sy / n);
    if xx <= 1e-12 || xy <= 0.0 { yy } else { yy - xy * xy / xx }
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
        let onset = locate(&course(|i| (i - 100.0).max(0.0) * 0.5), Side::High).unwrap();
        assert!(error_s(onset, 100.0) <= 1.5, "{onset:?}");
        assert!(onset.error_s <= 5.0, "{onset:?}");
    }

    #[test]
    fn a_drain_that_levels_off_is_found_on_the_low_side() {
        let onset =
            locate(&course(|i| -5.0 * (1.0 - (-(i - 80.0).max(0.0) / 8.0).exp())), Side::Low).unwrap();
        assert!(error_s(onset, 80.0) <= 1.5, "{onset:?}");
    }

    #[test]
    fn the_beginning_of_a_slow_drift_is_found() {
        let onset = locate(&course(|i| (i - 50.0).max(0.0).powi(2) / 700.0), Side::High).unwrap();
        assert!(error_s(onset, 50.0) <= 8.0, "{onset:?}");
    }

    #[test]
    fn too_short_a_course_has_no_onset() {
        assert_eq!(locate(&course(|i| i)[..10], Side::High), None);
    }
}
