//! Ranks of which none stands out: whether that is a finding, or only that the traces do not tell.
//!
//! Of ranks that meet in collectives the one that waits least holds the others up, whatever its kernels say.

use super::{
    Diagnosis, LARGER, batch_growth, count_doubts, host_may_be_chance, others_wait, plural, waits_of,
};
use crate::host::HostTime;
use crate::period_fit;
use crate::profile::RankProfile;
use crate::stats::{Gap, RankStats, median};
use crate::step::{MIN_STEPS, StepKind};
use crate::verdict::Kind;

/// Says of ranks without an outlier what is missing for the finding that there is none, if anything is.
pub(super) fn nothing_stands_out(
    profiles: &[&RankProfile],
    stats: &[&RankStats],
    gaps: &[Gap],
    hosts: &[Option<HostTime>],
    bound: f64,
    found: &mut Diagnosis,
) {
    if let Some(why) = why_nothing_can_be_told(profiles, stats, gaps, bound, found) {
        return found.conclude(Kind::InsufficientEvidence, vec![why]);
    }
    let Some((late, held_up)) = late_without_cause(profiles, stats, found) else { return };
    let rank = profiles[late].rank;
    // The step is the same for all of them, so what the late rank does not compute it idles.
    let idles = hosts[late].filter(|h| !h.by_pace && h.beyond_ms() >= 0.5 * held_up);
    let is_chance = host_may_be_chance(profiles, late, found).is_some();
    let has_equal_batches =
        batch_growth(profiles, stats, late, found.own_batches).is_some_and(|growth| growth < LARGER);
    if let Some(host) = idles.filter(|_| found.matched.is_some() && has_equal_batches && !is_chance) {
        found.by_host = true;
        found.outlier = Some(late);
        found.gap = gaps[late].clone();
        found.host = Some(host);
        count_doubts(profiles, stats, late, found);
        let waits = format!(
            "the others wait {held_up:.2} ms a step for {rank} in collectives, and its GPU idles {:.2} ms longer than theirs while no kernel of it is slower",
            host.beyond_ms()
        );
        return found.conclude(Kind::SlowRank, vec![waits]);
    }
    let waits =
        format!("the others wait {held_up:.2} ms a step for {rank} although its kernels are no slower");
    let why = match hosts[late].filter(|h| h.by_pace) {
        Some(host) => format!(
            "{waits}, but its host needs only {:.1} times what its launches take at its peers' pace",
            host.ratio
        ),
        None => format!("{waits}: look at what keeps its host from launching them"),
    };
    found.conclude(Kind::InsufficientEvidence, vec![why]);
}

/// Why the window shows neither that a rank stands out nor that none does.
fn why_nothing_can_be_told(
    profiles: &[&RankProfile],
    stats: &[&RankStats],
    gaps: &[Gap],
    bound: f64,
    found: &Diagnosis,
) -> Option<String> {
    if let Some(few) = (0..stats.len()).find(|&i| stats[i].steps < MIN_STEPS) {
        let (rank, n) = (profiles[few].rank, stats[few].steps);
        let steps = plural(n);
        return Some(format!("{rank} shows {n} step{steps}; at least {MIN_STEPS} are needed on every rank"));
    }
    if let Some(why) = period_fit::pieces(profiles).filter(|_| found.matched.is_none()) {
        return Some(why);
    }
    if gaps.iter().any(|gap| gap.within_ms.is_none()) {
        let who = odd_one(stats).map_or_else(
            || "the ranks ran different kinds of steps".to_owned(),
            |odd| format!("{} ran other kinds of steps than its peers", profiles[odd].rank),
        );
        return Some(format!("{who}, or too few of each kind: they cannot be compared"));
    }
    let is_wide = |i: &usize| gaps[*i].relative_within().is_some_and(|r| r >= 2.0 * bound);
    if let Some(wide) = (0..gaps.len()).find(is_wide) {
        return Some(format!(
            "{} needs {:.0} % more per step than its peers, but the ranks differ so much among each other that this may be chance",
            profiles[wide].rank,
            gaps[wide].relative_within().unwrap_or(0.0) * 100.0
        ));
    }
    let (idle, wall) = all_idle_alike(stats, found)?;
    Some(format!(
        "no rank's kernels are slower, but the GPUs of all ranks idle alike, {idle:.1} of the {wall:.1} ms of a step: their hosts agree on every batch before they launch it, so a slow one holds up all GPUs and no kernel shows which"
    ))
}

/// How long the GPUs of ranks with DP attention idle in a step, of how long a step, milliseconds (medians), where
/// all of them idle for a third of it and more: there one slow host costs all ranks the same.
fn all_idle_alike(stats: &[&RankStats], found: &Diagnosis) -> Option<(f64, f64)> {
    let idle = |s: &&&RankStats| s.split.host >= s.wall_ms / 3.0;
    if !found.own_batches || found.matched.is_none() || !stats.iter().all(|s| idle(&s)) {
        return None;
    }
    let of = |f: fn(&RankStats) -> f64| median(&stats.iter().map(|s| f(s)).collect::<Vec<_>>());
    of(|s| s.split.host).zip(of(|s| s.wall_ms))
}

/// The one rank that shares kinds of steps with fewer peers than any other does.
fn odd_one(stats: &[&RankStats]) -> Option<usize> {
    let runs = |i: usize, kind| stats[i].kinds.get(&kind).is_some_and(|k| k.steps >= MIN_STEPS);
    let share = |a: usize, b: usize| StepKind::ALL.into_iter().any(|kind| runs(a, kind) && runs(b, kind));
    let shared: Vec<usize> = (0..stats.len())
        .map(|i| (0..stats.len()).filter(|&other| other != i && share(i, other)).count())
        .collect();
    let fewest = *shared.iter().min()?;
    let mut odd = (0..stats.len()).filter(|&i| shared[i] == fewest);
    odd.next().filter(|_| odd.next().is_none())
}

/// The index of a rank for which all others wait although nothing on its GPU is slower, and how long they wait,
/// milliseconds per step.
fn late_without_cause(
    profiles: &[&RankProfile],
    stats: &[&RankStats],
    found: &Diagnosis,
) -> Option<(usize, f64)> {
    let waits = waits_of(profiles, found)?;
    let least = (0..waits.len()).min_by(|&a, &b| waits[a].total_cmp(&waits[b]))?;
    let work = median(&stats.iter().map(|f| f.work_ms).collect::<Vec<_>>())?;
    let held_up = others_wait(&waits, least)? - waits[least];
    (held_up >= 0.1 * work).then_some((least, held_up))
}
