//! How widely the smoothed courses of normal members scatter, and how far out one of them is.
//!
//! A member that gets more requests than its peers shows it on all three courses at once, and each
//! scatters in its own way. The sum of them that tells such a member best from a normal one weighs
//! them by the inverse of their normal covariance (Fisher's linear discriminant, Fisher 1936).

use super::{COURSES, LOAD, SPEED, TOKENS};

/// A spread is never taken to be less, however even the group has been: smaller differences do not
/// matter. Roots of counts; logarithms, so a fiftieth is two in a hundred.
const LEAST: [f64; COURSES] = [0.2, 0.03, 0.02];
/// Two courses are never taken to show the same: their correlation is scaled by this factor.
const MOST_TOGETHER: f64 = 0.99;
/// What a member shows that gets more requests, in standard deviations of its load, tokens and speed:
/// it prefills and its steps grow, so it slows down; what it holds is young, so its tokens lag behind.
const MORE_REQUESTS: [f64; COURSES] = [1.0, 0.4, -1.0];
/// What a member shows that gets more requests whose prompts it has cached: no more tokens, and it
/// hardly slows down.
const MORE_CACHED: [f64; COURSES] = [1.0, 0.0, -0.4];

/// Covariances of the courses at one scale.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread([[f64; COURSES]; COURSES]);

/// What one member shows at one scale, in standard deviations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Distances {
    /// Of its load alone.
    pub load: f64,
    /// Of its speed alone; negative when slow.
    pub speed: f64,
    /// Of all courses together, as more requests show on them; negative for fewer.
    pub surplus: f64,
    /// Likewise, as more requests with cached prompts do.
    pub cached: f64,
    /// Of all together in any direction, squared (Mahalanobis).
    pub total: f64,
}

/// A spread turned into what measures members by it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gauge {
    /// One over the standard deviation of each course; 0 for one that does not arrive.
    scale: [f64; COURSES],
    inverse: [[f64; COURSES]; COURSES],
    surplus: [f64; COURSES],
    cached: [f64; COURSES],
}

impl Gauge {
    /// How far out `s` is.
    pub fn measure(&self, s: &[f64; COURSES]) -> Distances {
        let z = std::array::from_fn(|c| s[c] * self.scale[c]);
        Distances {
            load: z[LOAD],
            speed: z[SPEED],
            surplus: dot(&self.surplus, &z),
            cached: dot(&self.cached, &z),
            total: dot(&times(&self.inverse, &z), &z),
        }
    }
}

impl Spread {
    /// For measuring by it, with every variance taken to be `inflated` times larger.
    pub fn gauge(&self, inflated: f64) -> Gauge {
        let scale = std::array::from_fn(|c| {
            let variance = self.0[c][c].max(LEAST[c] * LEAST[c]) * inflated;
            if self.has(c) { 1.0 / variance.sqrt() } else { 0.0 }
        });
        let inverse = self.inverse_of_correlations();
        let along = |direction: &[f64; COURSES]| {
            let shown = std::array::from_fn(|c| if self.has(c) { direction[c] } else { 0.0 });
            let weights = times(&inverse, &shown);
            let length = dot(&weights, &shown).max(1e-9).sqrt();
            weights.map(|w| w / length)
        };
        Gauge { scale, inverse, surplus: along(&MORE_REQUESTS), cached: along(&MORE_CACHED) }
    }

    /// Takes the members' values but those of `without`; `share` turns their sums into variances.
    pub fn learn<'a>(
        &mut self,
        smooth: impl Iterator<Item = &'a [f64; COURSES]>,
        without: usize,
        share: f64,
        weight: f64,
    ) {
        let mut seen = Self::default();
        for (_, s) in smooth.enumerate().filter(|(m, _)| *m != without) {
            seen.each(|a, b, sum| *sum += s[a] * s[b]);
        }
        self.each(|a, b, own| *own += weight * (seen.0[a][b] * share - *own));
    }

    fn each(&mut self, mut change: impl FnMut(usize, usize, &mut f64)) {
        for (a, row) in self.0.iter_mut().enumerate() {
            row.iter_mut().enumerate().for_each(|(b, value)| change(a, b, value));
        }
    }

    /// Whether neither tokens nor speeds have arrived.
    pub fn is_load_alone(&self) -> bool {
        !self.has(TOKENS) && !self.has(SPEED)
    }

    /// Whether this course has arrived at all.
    fn has(&self, c: usize) -> bool {
        self.0[c][c] > 0.0
    }

    /// By cofactors: it is three by three, and never singular with correlations below one.
    fn inverse_of_correlations(&self) -> [[f64; COURSES]; COURSES] {
        let together = |a: usize, b: usize| {
            let product = self.0[a][a] * self.0[b][b];
            if product > 0.0 { MOST_TOGETHER * self.0[a][b] / product.sqrt() } else { 0.0 }
        };
        let (lt, ls, ts) = (together(LOAD, TOKENS), together(LOAD, SPEED), together(TOKENS, SPEED));
        let (a, b, c) = (ls * ts - lt, lt * ts - ls, lt * ls - ts);
        let cofactors = [[1.0 - ts * ts, a, b], [a, 1.0 - ls * ls, c], [b, c, 1.0 - lt * lt]];
        let determinant = cofactors[0][0] + lt * a + ls * b;
        cofactors.map(|row| row.map(|v| v / determinant))
    }
}

fn dot(a: &[f64; COURSES], b: &[f64; COURSES]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn times(matrix: &[[f64; COURSES]; COURSES], v: &[f64; COURSES]) -> [f64; COURSES] {
    [dot(&matrix[0], v), dot(&matrix[1], v), dot(&matrix[2], v)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spread that saw each of `samples` and its opposite.
    fn spread(samples: &[[f64; COURSES]]) -> Spread {
        let mut spread = Spread::default();
        spread.learn(samples.iter(), usize::MAX, 1.0 / samples.len() as f64, 1.0);
        spread
    }

    fn independent() -> Spread {
        spread(&[[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])
    }

    #[test]
    fn independent_courses_are_weighed_by_what_more_requests_show_on_them() {
        let seen = independent().gauge(1.0).measure(&[3.0_f64.sqrt() * 2.0, 0.0, 0.0]);
        let of_all = (1.0_f64 + 0.4 * 0.4 + 1.0).sqrt();
        assert!((seen.load - 2.0).abs() < 1e-9, "{seen:?}");
        assert!((seen.surplus - 2.0 / of_all).abs() < 0.01, "{seen:?}");
        assert!((seen.total - 4.0).abs() < 0.01, "{seen:?}");
    }

    #[test]
    fn what_the_other_courses_explain_does_not_count_as_more_requests() {
        // Normally load, tokens and slowness go together, with a little of their own.
        let usual = [[2.0, 2.0, -2.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]];
        let spread = spread(&usual);
        let long_requests = spread.gauge(1.0).measure(&[2.0, 3.0, -2.0]);
        let more_requests = spread.gauge(1.0).measure(&[2.0, 1.0, -2.0]);
        assert_eq!(long_requests.load, more_requests.load);
        assert!(more_requests.cached > long_requests.cached + 1.0, "{more_requests:?} {long_requests:?}");
    }

    #[test]
    fn fewer_requests_are_as_far_as_more_on_the_other_side() {
        let more = independent().gauge(1.0).measure(&[2.0, 1.0, -1.0]);
        let fewer = independent().gauge(1.0).measure(&[-2.0, -1.0, 1.0]);
        assert_eq!((more.surplus, more.cached), (-fewer.surplus, -fewer.cached));
    }

    #[test]
    fn a_course_that_does_not_arrive_changes_nothing() {
        let of_load = spread(&[[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]);
        let seen = of_load.gauge(1.0).measure(&[6.0, 5.0, -5.0]);
        assert_eq!((seen.load, seen.surplus, seen.cached, seen.speed), (3.0, 3.0, 3.0, 0.0));
        let without_tokens = spread(&[[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]);
        let (one, other) = ([4.0, 5.0, -4.0], [4.0, -5.0, -4.0]);
        let surplus = |s| without_tokens.gauge(1.0).measure(s).surplus;
        assert_eq!(surplus(&one), surplus(&other));
    }

    #[test]
    fn courses_that_never_differed_stay_finite() {
        let same = spread(&[[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]]);
        let seen = same.gauge(1.0).measure(&[4.0, 4.0, 0.0]);
        assert!(seen.surplus.is_finite() && seen.total > 0.0, "{seen:?}");
    }
}
