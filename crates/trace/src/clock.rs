//! How far one rank's clock is from another's, told by collectives that ended together on both.
//!
//! The offset is the median difference of their ends. What is left after it, the residual, is
//! printed beside it: nothing finer than that may be claimed across ranks.

use serde::Serialize;

/// A clock against the reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Clock {
    /// How far it is ahead, microseconds.
    pub clock_offset_us: f64,
    /// The 90th percentile of what is left after correcting it, microseconds.
    pub clock_residual_us: f64,
}

impl Clock {
    /// The offset in nanoseconds.
    pub fn offset_ns(self) -> i64 {
        (self.clock_offset_us * 1e3).round() as i64
    }
}

/// The offset that explains `differences` of ends (nanoseconds) best.
pub fn offset(differences: impl Iterator<Item = i64>) -> Clock {
    let mut ends: Vec<i64> = differences.collect();
    if ends.is_empty() {
        return Clock::default();
    }
    let middle = ends.len() / 2;
    let offset = *ends.select_nth_unstable(middle).1;
    let mut left: Vec<i64> = ends.iter().map(|d| (d - offset).abs()).collect();
    let high = (left.len() * 9 / 10).min(left.len() - 1);
    let residual = *left.select_nth_unstable(high).1;
    Clock { clock_offset_us: offset as f64 / 1e3, clock_residual_us: residual as f64 / 1e3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_offset_is_found_and_the_residual_is_what_jitters() {
        let jitter = [0, 100, -100, 200, 0, 0, -200, 50, 0, 0];
        let clock = offset(jitter.iter().map(|j| 7_000_000 + j));
        assert_eq!(clock.clock_offset_us, 7000.0);
        assert!(clock.clock_residual_us <= 0.2, "{clock:?}");
        assert_eq!(offset(std::iter::empty()), Clock::default());
    }
}
