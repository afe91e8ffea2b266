//! Matches the collective calls of several ranks, and derives who waited for whom and how far the
//! clocks of the ranks are apart.
//!
//! The same call is found on each rank by its group and sequence number where the traces have them,
//! else by the shift at which the intervals between the ends of calls fit best. Steps that are all alike fit
//! at many shifts: there the clock decides, which ranks of one host share. Windows with equally many calls
//! whose ends are at the same times call by call have no shift.
//!
//! A collective ends at the same time on all ranks, so the time that a rank spends in it beyond the
//! rank that spends least is waiting for the last arriver; the rest is transfer. That needs durations
//! only, no common clock. The rank that waits least is the one that the others wait for.
//!
//! The offset of a clock is the median difference of those common ends. What is left after
//! correcting it, the residual, is reported with it: nothing finer may be claimed across ranks.

use std::collections::HashMap;

use serde::Serialize;

use crate::profile::{Collective, RankProfile};
use crate::rank::RankId;
use crate::trace::CollectiveId;

/// How calls were matched across ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchedBy {
    /// Process group and sequence number.
    Sequence,
    /// The shift at which the intervals between the ends of calls fit best.
    Shift,
}

/// A rank's clock against that of the reference rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ClockOffset {
    /// How far it is ahead, microseconds.
    pub clock_offset_us: f64,
    /// The 90th percentile of what is left after correcting it, microseconds.
    pub clock_residual_us: f64,
}

impl ClockOffset {
    /// The offset in nanoseconds.
    pub fn offset_ns(self) -> i64 {
        (self.clock_offset_us * 1e3).round() as i64
    }

    /// The offset that explains `differences` of common ends (nanoseconds) best.
    fn from_differences(differences: impl Iterator<Item = i64>) -> Self {
        let mut ends: Vec<i64> = differences.collect();
        if ends.is_empty() {
            return Self::default();
        }
        let middle = ends.len() / 2;
        let offset = *ends.select_nth_unstable(middle).1;
        let mut left: Vec<i64> = ends.iter().map(|d| (d - offset).abs()).collect();
        let high = (left.len() * 9 / 10).min(left.len() - 1);
        let residual = *left.select_nth_unstable(high).1;
        Self { clock_offset_us: offset as f64 / 1e3, clock_residual_us: residual as f64 / 1e3 }
    }
}

/// One rank's part in the matched collectives.
#[derive(Clone, Debug, Serialize)]
pub struct RankWait {
    /// The rank.
    pub rank: RankId,
    /// Waiting for the last arriver, milliseconds in total.
    pub wait_ms: f64,
    /// Waiting, milliseconds per step.
    pub wait_ms_per_step: f64,
    /// The share of the collectives in which it arrived last.
    pub last_share: f64,
    /// By how many collectives its window begins later than the reference's.
    pub shift: i64,
    /// How much better that shift fits than the second best; `null` when matched by sequence.
    pub margin: Option<f64>,
    /// Its clock against the reference's.
    #[serde(flatten)]
    pub clock: ClockOffset,
    /// In how many of its steps the collectives lie.
    #[serde(skip)]
    pub(crate) steps: usize,
}

/// The collective calls in which all compared ranks take part.
#[derive(Clone, Debug, Serialize)]
pub struct MatchedCollectives {
    /// How they were matched.
    pub by: MatchedBy,
    /// The number of calls that were found on every rank.
    pub count: usize,
    /// Transfer, milliseconds in total: what the last arriver of each call spent.
    pub transfer_ms: f64,
    /// The ranks, in the order of the profiles.
    pub ranks: Vec<RankWait>,
}

/// Ranks with fewer calls are not matched.
const MIN_COUNT: usize = 16;
/// The most calls by which windows may be shifted.
const MAX_SHIFT: usize = 2048;
/// How much better the best shift must fit than the second best.
const MIN_MARGIN: f64 = 2.0;

/// Matches the collectives of `profiles`; `None` when they have too few, when they do not take part
/// in the same ones, or when no shift fits clearly better than all others.
pub(crate) fn match_collectives(profiles: &[&RankProfile]) -> Option<MatchedCollectives> {
    if profiles.len() < 2 || profiles.iter().any(|p| p.collectives.len() < MIN_COUNT) {
        return None;
    }
    by_id(profiles).or_else(|| by_shift(profiles))
}

fn by_id(profiles: &[&RankProfile]) -> Option<MatchedCollectives> {
    let mut rows: HashMap<CollectiveId, Vec<Option<Collective>>> = HashMap::new();
    for (i, p) in profiles.iter().enumerate() {
        for c in &p.collectives {
            rows.entry(c.id?).or_insert_with(|| vec![None; profiles.len()])[i] = Some(*c);
        }
    }
    let mut complete: Vec<Vec<Collective>> =
        rows.into_values().filter_map(|r| r.into_iter().collect()).collect();
    if complete.len() < MIN_COUNT {
        return None;
    }
    complete.sort_by_key(|row| row[0].start);
    Some(waits(MatchedBy::Sequence, profiles, &complete, &vec![(0, None); profiles.len()]))
}

fn by_shift(profiles: &[&RankProfile]) -> Option<MatchedCollectives> {
    let reference = &profiles[0].collectives;
    let mut shifts = vec![(0i64, None)];
    for p in &profiles[1..] {
        let apart_ns = p.epoch_ns.saturating_sub(profiles[0].epoch_ns);
        let (shift, margin) = best_shift(reference, &p.collectives, apart_ns)?;
        shifts.push((shift, Some(margin)));
    }
    // Reference index i is index i - shift on another rank.
    let from = shifts.iter().map(|s| s.0).max().unwrap_or(0).max(0);
    let until =
        profiles.iter().zip(&shifts).map(|(p, s)| p.collectives.len() as i64 + s.0).min().unwrap_or(0);
    if until - from < MIN_COUNT as i64 {
        return None;
    }
    let rows: Vec<Vec<Collective>> = (from..until)
        .map(|i| profiles.iter().zip(&shifts).map(|(p, s)| p.collectives[(i - s.0) as usize]).collect())
        .collect();
    Some(waits(MatchedBy::Shift, profiles, &rows, &shifts))
}

/// The shift of `other` against `reference`, and the factor by which it fits better than the second
/// best. Intervals between successive ends are compared, so an offset of the clocks does not matter;
/// `apart_ns`, the difference of the epochs, decides only where no shift fits clearly better than others.
fn best_shift(reference: &[Collective], other: &[Collective], apart_ns: i64) -> Option<(i64, f64)> {
    let intervals = |c: &[Collective]| -> Vec<i64> { c.windows(2).map(|w| w[1].end - w[0].end).collect() };
    let (a, b) = (intervals(reference), intervals(other));
    let reach = (a.len().min(b.len()) * 3 / 4).min(MAX_SHIFT) as i64;
    let mut fits: Vec<(i64, i64)> =
        (-reach..=reach).filter_map(|s| misfit(&a, &b, s, 96).map(|m| (m, s))).collect();
    fits.sort_unstable();
    fits.truncate(24);
    let mut fine: Vec<(i64, i64)> =
        fits.iter().filter_map(|f| misfit(&a, &b, f.1, 1024).map(|m| (m, f.1))).collect();
    fine.sort_unstable();
    let (best, shift) = *fine.first()?;
    // Below 100 ns one fit is as good as another.
    let second = fine.get(1).map_or(i64::MAX, |f| f.0);
    let margin = (second.max(1) as f64 / best.max(100) as f64).min(1e6);
    if margin < MIN_MARGIN
        && let Some(margin) = end_together(reference, other, apart_ns)
    {
        return Some((0, margin));
    }
    (margin >= MIN_MARGIN).then_some((shift, margin))
}

/// Whether equally many calls of two ranks end at the same times, call by call; `apart_ns` is the difference
/// of the epochs. Returns by how much better they fit than they would one call on.
fn end_together(reference: &[Collective], other: &[Collective], apart_ns: i64) -> Option<f64> {
    /// Ends of one call differ by a microsecond or so on one host.
    const SAME_NS: i64 = 10_000;
    if reference.len() != other.len() {
        return None;
    }
    let misfit = |by: usize| {
        let pairs = reference.iter().zip(&other[by..]);
        let mut off: Vec<i64> = pairs.map(|(a, b)| (b.end + apart_ns - a.end).abs()).collect();
        let at = (off.len() * 9 / 10).min(off.len().checked_sub(1)?);
        Some(*off.select_nth_unstable(at).1)
    };
    let (together, next) = (misfit(0)?, misfit(1)?);
    let margin = (next as f64 / together.max(100) as f64).min(1e6);
    (together <= SAME_NS && margin >= MIN_MARGIN).then_some(margin)
}

/// The 75th percentile of the differences between two series of intervals at a shift, over about
/// `samples` of them.
fn misfit(a: &[i64], b: &[i64], shift: i64, samples: usize) -> Option<i64> {
    let from = shift.max(0) as usize;
    let until = (b.len() as i64 + shift).min(a.len() as i64);
    let n = usize::try_from(until).ok()?.checked_sub(from).filter(|n| *n >= MIN_COUNT / 2)?;
    let stride = (n / samples).max(1);
    let mut off: Vec<i64> =
        (from..from + n).step_by(stride).map(|i| (a[i] - b[(i as i64 - shift) as usize]).abs()).collect();
    // The median would not do: most layers are alike, only some of the intervals tell steps apart.
    let at = (off.len() * 3 / 4).min(off.len().checked_sub(1)?);
    Some(*off.select_nth_unstable(at).1)
}

fn waits(
    by: MatchedBy,
    profiles: &[&RankProfile],
    rows: &[Vec<Collective>],
    shifts: &[(i64, Option<f64>)],
) -> MatchedCollectives {
    let n = profiles.len();
    let (mut wait_ns, mut last, mut transfer_ns) = (vec![0i64; n], vec![0usize; n], 0i64);
    for row in rows {
        let least = (0..n).min_by_key(|&i| row[i].duration_ns()).unwrap_or(0);
        transfer_ns += row[least].duration_ns();
        last[least] += 1;
        (0..n).for_each(|i| wait_ns[i] += row[i].duration_ns() - row[least].duration_ns());
    }
    let ranks = profiles
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let steps = steps_touched(rows, i);
            RankWait {
                rank: p.rank,
                wait_ms: wait_ns[i] as f64 / 1e6,
                wait_ms_per_step: wait_ns[i] as f64 / 1e6 / steps as f64,
                last_share: last[i] as f64 / rows.len().max(1) as f64,
                shift: shifts[i].0,
                margin: shifts[i].1,
                steps,
                clock: ClockOffset::from_differences(
                    rows.iter().map(|r| (r[i].end + p.epoch_ns - profiles[0].epoch_ns) - r[0].end),
                ),
            }
        })
        .collect();
    MatchedCollectives { by, count: rows.len(), transfer_ms: transfer_ns as f64 / 1e6, ranks }
}

fn steps_touched(rows: &[Vec<Collective>], rank: usize) -> usize {
    let mut steps: Vec<u32> = rows.iter().filter_map(|r| r[rank].step).collect();
    steps.dedup();
    steps.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_offset_is_found_and_the_residual_is_what_jitters() {
        let jitter = [0, 100, -100, 200, 0, 0, -200, 50, 0, 0];
        let clock = ClockOffset::from_differences(jitter.iter().map(|j| 7_000_000 + j));
        assert_eq!(clock.clock_offset_us, 7000.0);
        assert!(clock.clock_residual_us <= 0.2, "{clock:?}");
        assert_eq!(ClockOffset::from_differences(std::iter::empty()), ClockOffset::default());
    }

    #[test]
    fn steps_that_are_all_alike_are_matched_by_the_clock_of_one_host_and_not_by_another() {
        let call = |end: i64| Collective { start: end - 5_000, end, id: None, step: None };
        // Every interval is the same, so all shifts fit.
        let here: Vec<Collective> = (1..100).map(|i| call(i * 400_000)).collect();
        let late: Vec<Collective> = here.iter().map(|c| call(c.end + 700)).collect();
        let (shift, margin) = best_shift(&here, &late, 0).expect("they end together");
        assert_eq!(shift, 0);
        assert!(margin > 100.0, "{margin}");
        // The epochs are apart by what the times since then are not.
        assert_eq!(best_shift(&here, &late, 9_000_000), None);
        let moved: Vec<Collective> = late.iter().map(|c| call(c.end - 9_000_000)).collect();
        assert_eq!(best_shift(&here, &moved, 9_000_000).map(|s| s.0), Some(0));
        // One call less: whose first one is missing is not known.
        assert_eq!(best_shift(&here, &late[1..], 0), None);
    }
}
