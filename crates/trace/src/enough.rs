//! Whether the steps of a window are enough to say that a rank's host is slow.
//!
//! A window shows a moment: steps that follow each other share what kept the host busy, so they are no
//! independent witnesses. Each rank's steps are therefore cut into blocks of two and more that follow each
//! other ([`blocks`]), and the pace of a block (host time per launch) is one observation. Whether the
//! rank's blocks are slower than its peers' is the exact rank-sum test (H. B. Mann and D. R. Whitney, "On
//! a test of whether one of two random variables is stochastically larger than the other", Annals of
//! Mathematical Statistics 18, 1947), one-sided, times the number of ranks, because any of them could have
//! been the one that stands out (Bonferroni). A finding needs a chance of at most [`CHANCE`] and
//! [`FEWEST`] steps: healthy hosts of one busy machine were seen slow for five steps in a row.

use crate::profile::{RankProfile, Step};
use crate::step::StepKind;

/// Fewer steps never tell that a host is slow.
pub const FEWEST: usize = 8;
/// The chance that a healthy window shows as much.
const CHANCE: f64 = 0.01;
/// A rank has at most this many blocks.
const BLOCKS: usize = 8;
/// Above this number of pairs the normal law stands for the exact one.
const EXACT: usize = 4096;
/// No window holds more steps than this for its cost: more are never recommended.
const MOST: usize = 200;

/// What the steps of a window can show of host time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepEvidence {
    /// The difference is beyond chance.
    Yes,
    /// It may be chance; about so many steps would tell, if as many as a window can hold do.
    No(Option<usize>),
}

/// Judges the host time of rank `at` against its peers with the same activities of the profiler.
pub fn enough(profiles: &[&RankProfile], at: usize) -> StepEvidence {
    let known = profiles.iter().all(|p| p.knows_launches);
    let mine = blocks(profiles[at], known);
    let alike = |i: &usize| *i != at && profiles[*i].activities == profiles[at].activities;
    let peers: Vec<usize> = (0..profiles.len()).filter(alike).collect();
    let theirs: Vec<f64> = peers.iter().flat_map(|&i| blocks(profiles[i], known)).collect();
    let ranks = peers.len() + 1;
    let steps = [at].iter().chain(&peers).map(|&i| with_work(profiles[i]).count()).min().unwrap_or(0);
    let least = fewest_steps(ranks);
    if steps < least || mine.is_empty() || theirs.is_empty() {
        return StepEvidence::No(Some(least));
    }
    let above = pairs_above(&mine, &theirs);
    if ranks as f64 * chance(above, mine.len(), theirs.len()) <= CHANCE {
        return StepEvidence::Yes;
    }
    StepEvidence::No(steps_wanted(above, mine.len(), theirs.len(), steps))
}

/// Pace of each block of steps that follow each other: nanoseconds of host time per launch, or per step
/// where the trace does not tell launches.
fn blocks(p: &RankProfile, knows_launches: bool) -> Vec<f64> {
    let steps: Vec<&Step> = with_work(p).collect();
    let count = (steps.len() / 2).min(BLOCKS);
    let pace = |block: &[&Step]| {
        let gap: u64 = block.iter().map(|s| s.gap_ns()).sum();
        let launches: u64 = block.iter().map(|s| u64::from(s.launches)).sum();
        gap as f64 / if knows_launches { launches.max(1) as f64 } else { block.len() as f64 }
    };
    (0..count).map(|b| pace(&steps[b * steps.len() / count..(b + 1) * steps.len() / count])).collect()
}

fn with_work(p: &RankProfile) -> impl Iterator<Item = &Step> {
    p.steps.iter().filter(|s| s.kind != StepKind::Idle)
}

/// The fewest steps of each rank with which the test can find anything.
fn fewest_steps(ranks: usize) -> usize {
    let best = |steps: usize| {
        let n = (steps / 2).min(BLOCKS);
        ranks as f64 * chance((n * n * (ranks - 1)) as f64, n, n * (ranks - 1))
    };
    (FEWEST..=2 * BLOCKS).step_by(2).find(|steps| best(*steps) <= CHANCE).unwrap_or(2 * BLOCKS)
}

/// In how many pairs mine is the larger one; equal ones count half.
fn pairs_above(mine: &[f64], theirs: &[f64]) -> f64 {
    let pair = |a: f64, b: f64| match a.total_cmp(&b) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    mine.iter().map(|a| theirs.iter().map(|b| pair(*a, *b)).sum::<f64>()).sum()
}

/// The chance that at least `above` of all pairs are won where the two samples, of `n` and `m`, do not
/// differ.
fn chance(above: f64, n: usize, m: usize) -> f64 {
    if n == 0 || m == 0 {
        return 1.0;
    }
    if n * m > EXACT {
        return upper_tail(score(above - 0.5, n, m));
    }
    let most = n * m;
    // ways[i][u]: how many orders of i of mine and the peers so far win u pairs.
    let mut ways = vec![vec![0.0f64; most + 1]; n + 1];
    ways.iter_mut().for_each(|of| of[0] = 1.0);
    for j in 1..=m {
        for i in 1..=n {
            // The largest of all is one of mine, and wins j pairs, or one of theirs.
            for u in (0..=i * j).rev() {
                let theirs = ways[i][u];
                let mine = if u >= j { ways[i - 1][u - j] } else { 0.0 };
                ways[i][u] = theirs + mine;
            }
        }
    }
    let all: f64 = ways[n].iter().sum();
    let from = (above - 1e-9).ceil().max(0.0) as usize;
    ways[n].get(from..).map_or(0.0, |tail| tail.iter().sum::<f64>() / all)
}

/// Standard deviations by which `above` exceeds what equal samples win.
fn score(above: f64, n: usize, m: usize) -> f64 {
    let (n, m) = (n as f64, m as f64);
    (above - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// The upper tail of the normal law (M. Abramowitz and I. Stegun, formula 26.2.17).
fn upper_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * series
}

/// Steps with which the difference would be beyond chance if it stays as clear: deviations grow with the
/// root of the number of observations.
fn steps_wanted(above: f64, n: usize, m: usize, steps: usize) -> Option<usize> {
    let seen = score(above, n, m);
    let wanted = 3.1;
    let factor = (wanted / seen.max(1e-9)).powi(2);
    let more = (steps as f64 * factor.max(1.25)).ceil() as usize;
    (seen > 0.0 && more <= MOST).then_some(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_exact_as_the_tables_say() {
        // All of 4 above all of 12: one order of C(16, 4).
        assert!((chance(48.0, 4, 12) - 1.0 / 1820.0).abs() < 1e-12);
        // Two of two against three: the orders that win 5 and 6 of 6 pairs are 2 of C(5, 2).
        assert!((chance(5.0, 2, 3) - 0.2).abs() < 1e-12);
        assert!((chance(0.0, 3, 5) - 1.0).abs() < 1e-12);
        // The normal law agrees where both can be computed.
        let exact = chance(1100.0, 8, 200);
        let normal = upper_tail(score(1099.5, 8, 200));
        assert!((exact / normal - 1.0).abs() < 0.05, "{exact} {normal}");
    }

    #[test]
    fn fewer_ranks_need_more_steps() {
        assert_eq!((fewest_steps(2), fewest_steps(4), fewest_steps(8)), (10, 8, 8));
    }

    #[test]
    fn a_difference_that_is_half_clear_says_how_many_steps_would_do() {
        assert_eq!(steps_wanted(24.0, 4, 12, 8), None, "no difference at all");
        let wanted = steps_wanted(42.0, 4, 12, 8).expect("some");
        assert!((10..=20).contains(&wanted), "{wanted}");
    }
}
