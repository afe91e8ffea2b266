//! Statistics of imbalance: one number for the values of a group at one time.
//!
//! All are pure functions of a slice, take no memory beyond one reused buffer for those that sort,
//! and take an all-zero or empty group to be even. None depends on time, which the state handles.

use serde::Serialize;

use crate::finding::{Side, Statistic};
use crate::signal::frame::{Frame, Summary};

/// On which side of its bound a statistic means imbalance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Larger is worse.
    Above,
    /// Smaller is worse.
    Below,
}

impl Statistic {
    /// Where imbalance lies, unless the rule says otherwise.
    pub const fn direction(self) -> Direction {
        match self {
            Self::MinOverMean | Self::Jain => Direction::Below,
            _ => Direction::Above,
        }
    }

    /// Which side is blamed, unless the rule says otherwise.
    pub const fn side(self) -> Side {
        match self {
            Self::MaxOverMean | Self::LostShare | Self::AnyMember | Self::AllMembers => Side::High,
            Self::MinOverMean => Side::Low,
            Self::MaxMinusMin
            | Self::Cv
            | Self::Gini
            | Self::Jain
            | Self::RobustZ
            | Self::Departure
            | Self::Factors
            | Self::Other => Side::Both,
        }
    }

    /// The bounds that can make sense, lowest and highest; a bound outside never or always holds.
    pub const fn range(self) -> (f64, f64) {
        match self {
            Self::MaxOverMean => (1.0, f64::INFINITY),
            Self::MinOverMean | Self::Gini | Self::Jain | Self::LostShare => (0.0, 1.0),
            Self::MaxMinusMin | Self::Cv | Self::RobustZ | Self::Departure | Self::Factors => {
                (0.0, f64::INFINITY)
            }
            Self::AnyMember | Self::AllMembers | Self::Other => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// Likewise, in a group of `members`; their values are 0 or more.
    pub fn range_in(self, members: usize) -> (f64, f64) {
        let (low, high) = self.range();
        let n = members as f64;
        match self {
            Self::MaxOverMean => (low, n),
            Self::Cv => (low, (n - 1.0).max(0.0).sqrt()),
            Self::Gini | Self::LostShare => (low, 1.0 - 1.0 / n),
            Self::Jain => (1.0 / n, high),
            // The median of two lies halfway, and so does the spread.
            Self::RobustZ if members <= 2 => (low, 1.0 / 1.4826),
            _ => (low, high),
        }
    }

    /// Its value for an even group; 0 for the two that compare single members with the bound, which have
    /// no such value.
    pub const fn even(self) -> f64 {
        match self {
            Self::MaxOverMean | Self::MinOverMean | Self::Jain => 1.0,
            _ => 0.0,
        }
    }

    /// Its value where one of `members` has everything; `None` for those without such a limit.
    pub fn utmost(self, members: usize) -> Option<f64> {
        let n = members.max(1) as f64;
        match self {
            Self::MaxOverMean => Some(n),
            Self::Cv => Some((n - 1.0).sqrt()),
            Self::Gini | Self::LostShare => Some(1.0 - 1.0 / n),
            Self::Jain => Some(1.0 / n),
            Self::MinOverMean => Some(0.0),
            _ => None,
        }
    }

    /// Whether it, or whom it blames, is computed from the values in their order.
    pub const fn sorts(self) -> bool {
        matches!(self, Self::MaxMinusMin | Self::Cv | Self::Gini | Self::Jain | Self::RobustZ)
    }

    /// Whether it stays the same when every value is multiplied by one number.
    pub const fn is_relative(self) -> bool {
        !matches!(
            self,
            Self::MaxMinusMin | Self::AnyMember | Self::AllMembers | Self::Departure | Self::Factors
        )
    }

    /// Its value for a group. `direction` matters to the two that compare single members with the bound;
    /// departures and factors have a memory and are no function of the values at one time: 0.
    pub fn of(self, frame: &Frame, direction: Direction, scratch: &mut Vec<f64>) -> f64 {
        let Frame { values, summary, .. } = frame;
        match self {
            Self::MaxOverMean => max_over_mean(summary),
            Self::MinOverMean => min_over_mean(summary),
            Self::MaxMinusMin => summary.max - summary.min,
            Self::Cv => cv(values, summary),
            Self::Gini => gini(frame.in_order(scratch), summary),
            Self::Jain => jain(values, summary),
            Self::LostShare => lost_share(summary),
            Self::RobustZ => robust_z(values, frame.in_order(scratch)).0,
            Self::AnyMember => summary.end(direction == Direction::Above),
            Self::AllMembers => summary.end(direction == Direction::Below),
            Self::Departure | Self::Factors | Self::Other => 0.0,
        }
    }
}

/// max / mean. Range 1 to n.
///
/// The load-imbalance factor of parallel computing: the time of a step over the time it would take
/// with even ranks.
pub fn max_over_mean(s: &Summary) -> f64 {
    if s.mean > 0.0 { s.max / s.mean } else { 1.0 }
}

/// min / mean. Range 0 to 1: how near the emptiest rank is to its peers.
pub fn min_over_mean(s: &Summary) -> f64 {
    if s.mean > 0.0 { s.min / s.mean } else { 1.0 }
}

/// 1 - mean / max. Range 0 to 1 - 1/n: the share of rank-seconds that wait at a barrier for the
/// fullest rank.
pub fn lost_share(s: &Summary) -> f64 {
    if s.max > 0.0 { 1.0 - s.mean / s.max } else { 0.0 }
}

/// Population standard deviation over mean, in two passes (one pass loses all digits when the
/// spread is small beside the mean). Range 0 to sqrt(n - 1).
pub fn cv(values: &[f64], s: &Summary) -> f64 {
    if s.mean <= 0.0 {
        return 0.0;
    }
    let squares: f64 = values.iter().map(|v| (v - s.mean) * (v - s.mean)).sum();
    (squares / s.n as f64).sqrt() / s.mean
}

/// Half the mean absolute difference of all pairs over the mean (Gini 1912), from the sorted values:
/// `sum((2i - n + 1) x_i) / (n^2 mean)` with i from 0. Range 0 to 1 - 1/n.
pub fn gini(sorted: &[f64], s: &Summary) -> f64 {
    if s.mean <= 0.0 {
        return 0.0;
    }
    let n = s.n as f64;
    let weighted: f64 = sorted.iter().enumerate().map(|(i, x)| (2.0 * i as f64 - n + 1.0) * x).sum();
    weighted / (n * n * s.mean)
}

/// `(sum x)^2 / (n sum x^2)` (Jain, Chiu, Hawe 1984). Range 1/n to 1.
pub fn jain(values: &[f64], s: &Summary) -> f64 {
    let squares: f64 = values.iter().map(|v| v * v).sum();
    let n = s.n as f64;
    if squares > 0.0 { (n * s.mean) * (n * s.mean) / (n * squares) } else { 1.0 }
}

/// The largest `|x - median| / (1.4826 MAD)` and where (Iglewicz and Hoaglin 1993). Where more than
/// half of the values agree the MAD is 0; the mean absolute deviation times 1.2533 takes its place.
/// Range 0 upwards; infinite never: an even group gives 0.
pub fn robust_z(values: &[f64], sorted: &[f64]) -> (f64, usize) {
    let median = median_of(sorted);
    let mad = 1.4826 * median_distance(sorted, median);
    let spread = if mad > 0.0 {
        mad
    } else {
        1.2533 * values.iter().map(|v| (v - median).abs()).sum::<f64>() / values.len().max(1) as f64
    };
    let (distance, at) = farthest_from(median, values);
    (if spread > 0.0 { distance / spread } else { 0.0 }, at)
}

/// The median of values in ascending order; 0 for none.
pub fn median_of(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The median of the distances of values in ascending order from `centre`; 0 for none. They grow to both
/// sides of it, so the smaller half of them is found by walking outwards.
fn median_distance(sorted: &[f64], centre: f64) -> f64 {
    let n = sorted.len();
    let mut above = sorted.partition_point(|v| *v < centre);
    let mut below = above;
    let (mut before, mut last) = (0.0, 0.0);
    for _ in 0..(n / 2 + 1).min(n) {
        let left = below.checked_sub(1).map_or(f64::INFINITY, |at| (sorted[at] - centre).abs());
        let right = sorted.get(above).map_or(f64::INFINITY, |v| (v - centre).abs());
        before = last;
        last = left.min(right);
        if left < right {
            below -= 1;
        } else {
            above += 1;
        }
    }
    if n.is_multiple_of(2) { f64::midpoint(before, last) } else { last }
}

fn farthest_from(centre: f64, values: &[f64]) -> (f64, usize) {
    values.iter().enumerate().fold((0.0, 0), |best, (i, v)| {
        let distance = (v - centre).abs();
        if distance > best.0 { (distance, i) } else { best }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(values: &[f64]) -> Frame {
        Frame { values: values.to_vec(), summary: Summary::of(values), ..Frame::default() }
    }

    fn z_of(values: &[f64]) -> (f64, usize) {
        robust_z(values, frame(values).in_order(&mut Vec::new()))
    }

    fn value(statistic: Statistic, values: &[f64]) -> f64 {
        statistic.of(&frame(values), statistic.direction(), &mut Vec::new())
    }

    proptest! {
        #[test]
        fn no_group_of_a_size_leaves_the_range_of_that_size(
            values in proptest::collection::vec(0.0f64..1e6, 2..9),
        ) {
            for statistic in Statistic::ALL.into_iter().filter(|s| !matches!(s, Statistic::Departure | Statistic::Factors)) {
                let (low, high) = statistic.range_in(values.len());
                let value = value(statistic, &values);
                prop_assert!(value >= low - 1e-9 && value <= high + 1e-9, "{statistic:?} {value} of {values:?}");
            }
        }
    }

    #[test]
    fn an_even_group_and_one_rank_with_everything_give_the_ends_of_the_range() {
        use Statistic::*;
        let cases = [
            (MaxOverMean, 1.0, 4.0),
            (MinOverMean, 1.0, 0.0),
            (MaxMinusMin, 0.0, 20.0),
            (Cv, 0.0, 3f64.sqrt()),
            (Gini, 0.0, 0.75),
            (Jain, 1.0, 0.25),
            (LostShare, 0.0, 0.75),
            (AnyMember, 5.0, 20.0),
            (AllMembers, 5.0, 0.0),
        ];
        for (statistic, even, all_on_one) in cases {
            assert!((value(statistic, &[5.0; 4]) - even).abs() < 1e-12, "{statistic:?} even");
            let skewed = value(statistic, &[0.0, 20.0, 0.0, 0.0]);
            assert!((skewed - all_on_one).abs() < 1e-12, "{statistic:?} skewed: {skewed}");
        }
    }

    #[test]
    fn robust_z_names_the_outlier_and_survives_a_zero_deviation() {
        assert_eq!(z_of(&[10.0, 11.0, 9.0, 40.0]).1, 3);
        let (z, at) = z_of(&[10.0, 10.0, 10.0, 2.0]);
        assert_eq!(at, 3);
        assert!((z - 8.0 / (1.2533 * 2.0)).abs() < 1e-9, "{z}");
        assert_eq!(z_of(&[]).0, 0.0);
    }

    proptest! {
        #[test]
        fn the_median_distance_is_that_of_all_distances_in_order(values in prop::collection::vec(0u8..20, 0..12)) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let scene = frame(&values);
            let mut scratch = Vec::new();
            let sorted = scene.in_order(&mut scratch);
            let median = median_of(sorted);
            let mut distances: Vec<f64> = values.iter().map(|v| (v - median).abs()).collect();
            distances.sort_by(f64::total_cmp);
            prop_assert_eq!(median_distance(sorted, median), median_of(&distances));
        }
    }

    #[test]
    fn the_gini_coefficient_is_half_the_mean_difference_of_pairs_over_the_mean() {
        let values = [3.0, 1.0, 7.0, 2.0_f64];
        let pairs: f64 = values.iter().flat_map(|a| values.iter().map(move |b| (a - b).abs())).sum();
        let expected = pairs / (2.0 * 16.0 * 3.25);
        assert!((value(Statistic::Gini, &values) - expected).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn every_statistic_is_finite_in_its_range_and_blind_to_order(mut values in prop::collection::vec(0.0..1e6f64, 0..12)) {
            let before: Vec<f64> = Statistic::ALL.iter().map(|s| value(*s, &values)).collect();
            values.reverse();
            for (statistic, was) in Statistic::ALL.into_iter().zip(before) {
                let is = value(statistic, &values);
                prop_assert!(is.is_finite());
                prop_assert!((is - was).abs() <= 1e-9 * was.abs().max(1.0));
                let (low, high) = statistic.range();
                prop_assert!(is >= low - 1e-9 && is <= high + 1e-9, "{statistic:?} {is}");
            }
        }

        #[test]
        fn relative_statistics_do_not_see_the_scale(values in prop::collection::vec(0.1..1e3f64, 2..9), by in 0.5..50.0f64) {
            let scaled: Vec<f64> = values.iter().map(|v| v * by).collect();
            for statistic in Statistic::ALL.into_iter().filter(|s| s.is_relative()) {
                let (a, b) = (value(statistic, &values), value(statistic, &scaled));
                prop_assert!((a - b).abs() < 1e-6 * a.abs().max(1.0), "{statistic:?}: {a} {b}");
            }
        }
    }
}
