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
//!
//! Ranks that meet in collectives run the same steps at the same time, and what makes one of these longer
//! makes it longer on all of them. So there blocks are also compared in pairs: in how many of them the rank's
//! pace is slower than that of every peer in the very same steps ([`won_blocks`]). A rank like its peers is
//! the slowest in one block of as many as there are ranks, which is the sign test (W. J. Dixon and A. M.
//! Mood, "The statistical sign test", Journal of the American Statistical Association 41, 1946). Either test
//! is enough: the first one tells with fewer steps.

use crate::collective::MatchedCollectives;
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

/// A window is too short for what it shows to be more than a passing moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFewSteps {
    /// Steps of the rank with the fewest.
    pub steps: usize,
    /// About so many on every rank would tell.
    pub needed: usize,
}

/// Judges the host time of rank `at` against its peers with the same activities of the profiler; `matched` are the
/// collectives in which all ranks meet.
pub fn enough(profiles: &[&RankProfile], at: usize, matched: Option<&MatchedCollectives>) -> StepEvidence {
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
    let wanted = steps_wanted(above, mine.len(), theirs.len(), steps);
    let Some((won, of)) = matched.map(|m| won_blocks(profiles, at, &peers, m, known)) else {
        return StepEvidence::No(wanted);
    };
    if ranks as f64 * chance_of_blocks(won, of, ranks) <= CHANCE {
        return StepEvidence::Yes;
    }
    // As long as it is the slowest in all of them, only their number is missing.
    let in_pairs = steps_of_pairs(ranks).filter(|more| won == of && *more > steps);
    StepEvidence::No(wanted.into_iter().chain(in_pairs).min())
}

/// In how many blocks of steps the rank's pace is slower than that of every peer in the same steps, and how many blocks
/// there are. A peer's step is the same one if it begins within half of the step's length.
fn won_blocks(
    profiles: &[&RankProfile],
    at: usize,
    peers: &[usize],
    matched: &MatchedCollectives,
    knows_launches: bool,
) -> (usize, usize) {
    let begins = |i: usize, s: &Step| {
        let epoch = profiles[i].epoch_ns.saturating_sub(profiles[0].epoch_ns);
        s.start.saturating_add(epoch).saturating_sub(matched.ranks[i].clock.offset_ns())
    };
    let same = |i: usize, of: &Step| {
        let start = begins(at, of);
        let apart = |s: &&Step| begins(i, s).abs_diff(start);
        with_work(profiles[i]).min_by_key(apart).filter(|s| 2 * apart(s) < of.wall_ns)
    };
    let alike: Vec<Vec<&Step>> = with_work(profiles[at])
        .filter_map(|s| std::iter::once(Some(s)).chain(peers.iter().map(|&i| same(i, s))).collect())
        .collect();
    let count = (alike.len() / 2).min(BLOCKS);
    let is_won = |b: &usize| {
        let block = &alike[b * alike.len() / count..(b + 1) * alike.len() / count];
        let of =
            |rank: usize| pace(&block.iter().map(|steps| steps[rank]).collect::<Vec<_>>(), knows_launches);
        let mine = of(0);
        (1..=peers.len()).all(|rank| mine > of(rank))
    };
    ((0..count).filter(is_won).count(), count)
}

/// The chance that a rank like its peers is the slowest of all in at least `won` of `of` blocks.
fn chance_of_blocks(won: usize, of: usize, ranks: usize) -> f64 {
    let p = 1.0 / ranks as f64;
    // The chance of none, then of one more each time.
    let mut exactly = (1.0 - p).powi(of as i32);
    let mut fewer = 0.0;
    for k in 0..won {
        fewer += exactly;
        exactly *= (of - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
    }
    1.0 - fewer
}

/// The fewest steps with which the comparison in pairs can find anything.
fn steps_of_pairs(ranks: usize) -> Option<usize> {
    let tells = |blocks: &usize| ranks as f64 * chance_of_blocks(*blocks, *blocks, ranks) <= CHANCE;
    (FEWEST / 2..=BLOCKS).find(tells).map(|blocks| 2 * blocks)
}

/// Pace of each block of steps that follow each other: nanoseconds of host time per launch, or per step
/// where the trace does not tell launches.
fn blocks(p: &RankProfile, knows_launches: bool) -> Vec<f64> {
    let steps: Vec<&Step> = with_work(p).collect();
    let count = (steps.len() / 2).min(BLOCKS);
    let block = |b: usize| &steps[b * steps.len() / count..(b + 1) * steps.len() / count];
    (0..count).map(|b| pace(block(b), knows_launches)).collect()
}

/// Nanoseconds of host time per launch in these steps, or per step.
fn pace(block: &[&Step], knows_launches: bool) -> f64 {
    let gap: u64 = block.iter().map(|s| s.gap_ns()).sum();
    let launches: u64 = block.iter().map(|s| u64::from(s.launches)).sum();
    gap as f64 / if knows_launches { launches.max(1) as f64 } else { block.len() as f64 }
}

fn with_work(p: &RankProfile) -> impl Iterator<Item = &Step> {
    p.steps.iter().filter(|s| s.kind != StepKind::Idle)
}

/// The fewest steps of each of so many ranks with which a window can tell that a host is slow.
pub fn fewest_steps(ranks: usize) -> usize {
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
    use crate::collective::match_collectives;
    use crate::profile::Collective;
    use crate::rank::{Rank, RankId};
    use crate::step::StepSource;

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
    fn the_slowest_rank_in_all_of_eight_blocks_of_two_ranks_is_no_chance() {
        assert!((chance_of_blocks(8, 8, 2) - 1.0 / 256.0).abs() < 1e-12);
        assert!((chance_of_blocks(7, 8, 2) - 9.0 / 256.0).abs() < 1e-12);
        assert!((chance_of_blocks(0, 5, 3) - 1.0).abs() < 1e-12);
        assert_eq!([2, 4, 8].map(steps_of_pairs), [Some(16), Some(10), Some(8)]);
    }

    /// Two ranks that meet in collectives: host time of each step, milliseconds.
    fn in_lockstep(host_ms: [&[u64]; 2]) -> [RankProfile; 2] {
        let wall_ms = |i: usize| 10 + host_ms[0][i].max(host_ms[1][i]);
        [0, 1].map(|rank| {
            let step = |i: usize| Step {
                start: (0..i).map(wall_ms).sum::<u64>() as i64 * 1_000_000,
                wall_ns: wall_ms(i) * 1_000_000,
                busy_ns: (wall_ms(i) - host_ms[rank][i]) * 1_000_000,
                work_ns: 5_000_000,
                longest_gap_ns: 0,
                rows: 100,
                launches: 100,
                kind: StepKind::Decode,
                requests: None,
                tokens: None,
            };
            let steps: Vec<Step> = (0..host_ms[rank].len()).map(step).collect();
            let collectives = steps.iter().enumerate().flat_map(|(i, s)| {
                let end = s.start + s.wall_ns as i64;
                let at = |end| Collective { start: end - 1_000, end, id: None, step: Some(i as u32) };
                [at(end - 2_000_000 - i as i64 * 1_000), at(end)]
            });
            let collectives = collectives.collect();
            RankProfile {
                steps,
                collectives,
                knows_launches: true,
                source: StepSource::Period,
                ..RankProfile::unreadable(RankId::Rank(Rank::dp(rank as u16)))
            }
        })
    }

    #[test]
    fn ranks_in_lockstep_are_compared_step_by_step() {
        // As of two H200 with a crowded scheduler: steps differ among each other more than the ranks do in
        // each of them.
        let slow: Vec<u64> = (0..32).map(|i| if i / 4 % 2 == 0 { 12 } else { 60 }).collect();
        let fast: Vec<u64> = slow.iter().map(|ms| ms / 3).collect();
        let judged = |hosts: [&[u64]; 2]| {
            let ranks = in_lockstep(hosts);
            let ranks = [&ranks[0], &ranks[1]];
            let matched = match_collectives(&ranks).expect("they meet");
            (enough(&ranks, 0, None), enough(&ranks, 0, Some(&matched)))
        };
        let (apart, in_pairs) = judged([&slow, &fast]);
        assert!(matches!(apart, StepEvidence::No(Some(_))), "{apart:?}");
        assert_eq!(in_pairs, StepEvidence::Yes);
        assert_eq!(
            judged([&slow[..14], &fast[..14]]).1,
            StepEvidence::No(Some(16)),
            "they need eight blocks"
        );
        // In one of the blocks the peer is slower.
        let once: Vec<u64> = (0..32).map(|i| if i / 4 == 3 { 70 } else { fast[i] }).collect();
        assert!(matches!(judged([&slow, &once]).1, StepEvidence::No(_)));
    }

    #[test]
    fn a_difference_that_is_half_clear_says_how_many_steps_would_do() {
        assert_eq!(steps_wanted(24.0, 4, 12, 8), None, "no difference at all");
        let wanted = steps_wanted(42.0, 4, 12, 8).expect("some");
        assert!((10..=20).contains(&wanted), "{wanted}");
    }
}
