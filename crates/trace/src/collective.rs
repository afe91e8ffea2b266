//! Collectives of several ranks, matched: the same call on each rank, by group and sequence number
//! where the traces tell them, else by the shift at which the rhythm of their ends fits best.
//!
//! A collective ends together on all ranks, so what one rank spent in it beyond the rank that
//! spent least is waiting for the last arriver; the rest is transfer. Durations alone tell that:
//! no clock is needed. The culprit is the rank that waits least.

use std::collections::HashMap;

use serde::Serialize;

use crate::clock::{self, Clock};
use crate::step::RankProfile;
use crate::trace::{Sequence, Who};

/// One collective on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// Nanoseconds since the window's epoch.
    pub start: i64,
    /// Nanoseconds since the window's epoch.
    pub end: i64,
    /// Index of its kernel.
    pub name: u16,
    /// Its place in its group, where the trace says.
    pub sequence: Option<Sequence>,
    /// The step it ran in.
    pub step: Option<u32>,
}

impl Collective {
    const fn dur(self) -> i64 {
        self.end - self.start
    }
}

/// How collectives were matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchedBy {
    /// Process group and sequence number.
    Sequence,
    /// The shift at which the rhythm of the ends fits.
    Shift,
}

/// One rank's part in the matched collectives.
#[derive(Clone, Debug, Serialize)]
pub struct RankWait {
    /// Whose.
    pub rank: Who,
    /// Waiting for the last arriver, milliseconds in all.
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
    pub clock: Clock,
}

/// Collectives of ranks that take part in the same ones.
#[derive(Clone, Debug, Serialize)]
pub struct Matched {
    /// How.
    pub by: MatchedBy,
    /// How many were found on every rank.
    pub count: usize,
    /// Transfer, milliseconds in all: what the last arriver spent.
    pub transfer_ms: f64,
    /// The ranks, in the order of the profiles.
    pub ranks: Vec<RankWait>,
}

/// The fewest collectives from which a rhythm is told.
const MIN_COUNT: usize = 16;
/// How far windows may be shifted, in collectives.
const MAX_SHIFT: usize = 2048;
/// How much better the best shift must fit than any other.
const MIN_MARGIN: f64 = 2.0;

/// Matches the collectives of `profiles`; `None` when they have too few, or do not take part in
/// the same ones, or when no shift fits clearly better than all others.
pub fn matched(profiles: &[&RankProfile]) -> Option<Matched> {
    if profiles.len() < 2 || profiles.iter().any(|p| p.collectives.len() < MIN_COUNT) {
        return None;
    }
    by_sequence(profiles).or_else(|| by_shift(profiles))
}

fn by_sequence(profiles: &[&RankProfile]) -> Option<Matched> {
    let mut rows: HashMap<Sequence, Vec<Option<Collective>>> = HashMap::new();
    for (i, p) in profiles.iter().enumerate() {
        for c in &p.collectives {
            rows.entry(c.sequence?).or_insert_with(|| vec![None; profiles.len()])[i] = Some(*c);
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

fn by_shift(profiles: &[&RankProfile]) -> Option<Matched> {
    let reference = &profiles[0].collectives;
    let mut shifts = vec![(0i64, None)];
    for p in &profiles[1..] {
        let (shift, margin) = best_shift(reference, &p.collectives)?;
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

/// The shift of `other` against `reference`, and by what factor it fits better than the second
/// best. The fit compares the time between successive ends, so a clock offset does not matter.
fn best_shift(reference: &[Collective], other: &[Collective]) -> Option<(i64, f64)> {
    let rhythm = |c: &[Collective]| -> Vec<i64> { c.windows(2).map(|w| w[1].end - w[0].end).collect() };
    let (a, b) = (rhythm(reference), rhythm(other));
    let reach = (a.len().min(b.len()) * 3 / 4).min(MAX_SHIFT) as i64;
    let mut fits: Vec<(i64, i64)> =
        (-reach..=reach).filter_map(|s| misfit(&a, &b, s, 96).map(|m| (m, s))).collect();
    fits.sort_unstable();
    fits.truncate(24);
    let mut fine: Vec<(i64, i64)> =
        fits.iter().filter_map(|f| misfit(&a, &b, f.1, 1024).map(|m| (m, f.1))).collect();
    fine.sort_unstable();
    let (best, shift) = *fine.first()?;
    // Clocks tick in nanoseconds: below 100 of them one fit is as good as another.
    let second = fine.get(1).map_or(i64::MAX, |f| f.0);
    let margin = (second.max(1) as f64 / best.max(100) as f64).min(1e6);
    (margin >= MIN_MARGIN).then_some((shift, margin))
}

/// The median difference between two rhythms at a shift, over at most `samples` places.
fn misfit(a: &[i64], b: &[i64], shift: i64, samples: usize) -> Option<i64> {
    let from = shift.max(0) as usize;
    let until = (b.len() as i64 + shift).min(a.len() as i64);
    let n = usize::try_from(until).ok()?.checked_sub(from).filter(|n| *n >= MIN_COUNT / 2)?;
    let stride = (n / samples).max(1);
    let mut off: Vec<i64> =
        (from..from + n).step_by(stride).map(|i| (a[i] - b[(i as i64 - shift) as usize]).abs()).collect();
    // Not the median: most layers look alike, only some of the gaps tell steps apart.
    let at = (off.len() * 3 / 4).min(off.len().checked_sub(1)?);
    Some(*off.select_nth_unstable(at).1)
}

fn waits(
    by: MatchedBy,
    profiles: &[&RankProfile],
    rows: &[Vec<Collective>],
    shifts: &[(i64, Option<f64>)],
) -> Matched {
    let n = profiles.len();
    let (mut wait_ns, mut last, mut transfer_ns) = (vec![0i64; n], vec![0usize; n], 0i64);
    for row in rows {
        let least = (0..n).min_by_key(|&i| row[i].dur()).unwrap_or(0);
        transfer_ns += row[least].dur();
        last[least] += 1;
        (0..n).for_each(|i| wait_ns[i] += row[i].dur() - row[least].dur());
    }
    let ranks = profiles
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let steps = steps_touched(rows, i);
            RankWait {
                rank: p.who,
                wait_ms: wait_ns[i] as f64 / 1e6,
                wait_ms_per_step: wait_ns[i] as f64 / 1e6 / steps as f64,
                last_share: last[i] as f64 / rows.len().max(1) as f64,
                shift: shifts[i].0,
                margin: shifts[i].1,
                clock: clock::offset(
                    rows.iter().map(|r| (r[i].end + p.epoch_ns - profiles[0].epoch_ns) - r[0].end),
                ),
            }
        })
        .collect();
    Matched { by, count: rows.len(), transfer_ms: transfer_ns as f64 / 1e6, ranks }
}

fn steps_touched(rows: &[Vec<Collective>], rank: usize) -> usize {
    let mut steps: Vec<u32> = rows.iter().filter_map(|r| r[rank].step).collect();
    steps.dedup();
    steps.len().max(1)
}
