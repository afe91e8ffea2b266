//! Compares the ranks of a capture: which of them run the same layers and may be compared with each
//! other, which are idle or missing, and which group has the most significant difference.

mod conclusion;
mod sentence;

use std::collections::{BTreeMap, BTreeSet};

use self::conclusion::{Conclusion, confirms};
use crate::comparison::{Comparison, ComparisonInput};
use crate::diagnosis::{Diagnosis, diagnose};
use crate::profile::RankProfile;
use crate::rank::{Axis, Rank, RankId, varying_axes};
use crate::since::since;
use crate::stats::{KindStats, RankStats, median};
use crate::step::{StepKind, StepSource};
use crate::verdict::Kind;

/// Compares the ranks of a capture.
pub fn compare(input: &ComparisonInput) -> Comparison {
    let stats: Vec<RankStats> = input.profiles.iter().map(RankStats::new).collect();
    let factors = baseline_factors(input, &stats);
    let missing = missing_ranks(input);
    let idle: Vec<usize> = (0..stats.len()).filter(|&i| is_idle(&input.profiles, &stats, i)).collect();
    let active: Vec<usize> = (0..stats.len()).filter(|i| !idle.contains(i)).collect();
    let (diagnosis, members) = diagnose_groups(input, &stats, &factors, &active);
    let mut verdict = Conclusion { input, stats: &stats, idle: &idle, active: &active, missing: &missing }
        .verdict(diagnosis.as_ref(), &members);
    if let Some(since) = since(input.before(), &input.profiles, &stats, verdict.rank) {
        verdict.tell_since(since);
    }
    verdict.confirms = confirms(&verdict, input.suspect.as_ref());
    Comparison::new(input, verdict, &stats, diagnosis.and_then(|d| d.matched), missing)
}

/// The factors that take a constant difference of each rank out: the median of all baselines over
/// the rank's own, or 1 without a baseline. All are of one mix of steps, that of all ranks now: a rank that had more
/// prefills in its baseline is no slower one.
fn baseline_factors(input: &ComparisonInput, stats: &[RankStats]) -> Vec<f64> {
    let mut mix = BTreeMap::new();
    for (kind, of_rank) in stats.iter().flat_map(|s| &s.kinds) {
        mix.entry(*kind).or_insert_with(KindStats::default).steps += of_rank.steps;
    }
    let of_rank = |p: &RankProfile| input.baseline.iter().find(|b| b.rank == p.rank).map(RankStats::new);
    let baselines: Vec<Option<RankStats>> = input.profiles.iter().map(of_rank).collect();
    // Of the kinds that every baseline has: others would be compared with nothing.
    mix.retain(|kind, _| baselines.iter().flatten().all(|before| before.kinds.contains_key(kind)));
    let before: Vec<Option<f64>> =
        baselines.iter().map(|before| before.as_ref()?.work_of_mix(&mix)).collect();
    let typical = median(&before.iter().flatten().copied().collect::<Vec<_>>());
    stats
        .iter()
        .zip(before)
        .map(|(_, own)| match (typical, own) {
            (Some(t), Some(o)) if o > 0.0 && t > 0.0 => t / o,
            _ => 1.0,
        })
        .collect()
}

/// Whether a complete window has no work: (next to) no kernels, or only batches without requests.
fn is_idle(profiles: &[RankProfile], stats: &[RankStats], at: usize) -> bool {
    let p = &profiles[at];
    if p.partial {
        return false;
    }
    let rows: Vec<f64> = profiles.iter().map(|p| p.rows as f64).collect();
    let no_batches = !p.steps.is_empty() && p.steps.iter().all(|s| s.kind == StepKind::Idle);
    let next_to_nothing = (p.rows as f64) < 0.01 * median(&rows).unwrap_or(0.0) && stats[at].steps < 2;
    p.rows == 0 || no_batches || next_to_nothing
}

/// Ranks that are absent although the numbers of the others, or the world size, imply them, and those
/// whose files could not be read.
fn missing_ranks(input: &ComparisonInput) -> Vec<RankId> {
    let profiles = &input.profiles;
    let ranks: Vec<Rank> = profiles.iter().filter_map(|p| p.rank.rank()).collect();
    let varying = varying_axes(&profiles.iter().map(|p| p.rank).collect::<Vec<_>>());
    // Under DP attention ranks have two numbers, each of which tells them apart.
    let is_distinct = |axis: &&Axis| {
        let numbers: BTreeSet<Option<u16>> = ranks.iter().map(|r| r.get(**axis)).collect();
        numbers.len() == profiles.len() && !numbers.contains(&None)
    };
    let Some(axis) = varying.iter().find(is_distinct) else { return input.unreadable.clone() };
    let alike: Vec<Axis> =
        varying.iter().copied().filter(|a| ranks.iter().all(|r| r.get(*a) == r.get(*axis))).collect();
    let world = profiles.iter().filter_map(|p| p.world_size).max().unwrap_or(0);
    let highest = ranks.iter().filter_map(|r| r.get(*axis)).max().map_or(0, |m| u32::from(m) + 1);
    // The world counts processes: where another axis numbers them otherwise, this one does not reach so far.
    let world = if alike.len() == varying.len() { world } else { 0 };
    let until = u16::try_from(world.min(4096).max(highest)).unwrap_or(u16::MAX);
    let implied = (0..until)
        .filter(|i| !ranks.iter().any(|r| r.get(*axis) == Some(*i)))
        .map(|i| RankId::Rank(alike.iter().fold(Rank::NONE, |rank, axis| rank.with(*axis, i))));
    let missing: BTreeSet<RankId> = implied.chain(input.unreadable.iter().copied()).collect();
    missing.into_iter().collect()
}

/// Diagnoses every group of ranks that may be compared. Returns the most significant result, with the
/// indices of the members of its group.
fn diagnose_groups(
    input: &ComparisonInput,
    stats: &[RankStats],
    factors: &[f64],
    active: &[usize],
) -> (Option<Diagnosis>, Vec<usize>) {
    if input.profiles.iter().any(|p| p.source == StepSource::PerSecond && p.rows > 0) {
        return (None, Vec::new());
    }
    let mut best: Option<(Diagnosis, Vec<usize>)> = None;
    for members in groups_of(input, stats, active) {
        if members.len() < 2 {
            continue;
        }
        let profiles: Vec<&RankProfile> = members.iter().map(|&i| &input.profiles[i]).collect();
        let stats_of_members: Vec<&RankStats> = members.iter().map(|&i| &stats[i]).collect();
        let factors: Vec<f64> = members.iter().map(|&i| factors[i]).collect();
        let diagnosis = diagnose(&profiles, &stats_of_members, &factors);
        let better = best.as_ref().is_none_or(|(b, _)| significance(&diagnosis) > significance(b));
        if better {
            best = Some((diagnosis, members));
        }
    }
    best.map_or((None, Vec::new()), |(d, m)| (Some(d), m))
}

/// A difference ranks above insufficient evidence, and that above no difference.
fn significance(diagnosis: &Diagnosis) -> f64 {
    match diagnosis.kind {
        Kind::NoFinding => 0.0,
        Kind::InsufficientEvidence => 1.0,
        _ if diagnosis.by_host => 2.0 + diagnosis.host.map_or(0.0, |h| h.ratio - 1.0),
        _ => 2.0 + diagnosis.gap.relative(),
    }
}

/// The groups of ranks that run the same layers, which are those of one pipeline stage. Where a stage
/// has several DP replicas of several ranks each, the groups are the ranks inside each replica, and
/// one representative rank of every replica.
fn groups_of(input: &ComparisonInput, stats: &[RankStats], active: &[usize]) -> Vec<Vec<usize>> {
    let mut stages: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
    for &i in active {
        stages.entry(input.profiles[i].rank.get(Axis::Pp)).or_default().push(i);
    }
    let mut groups = Vec::new();
    for members in stages.into_values() {
        // A process of unknown rank counts as a replica of its own.
        let replica = |rank: RankId| match rank {
            RankId::Pid(pid) => (None, Some(pid)),
            RankId::Rank(rank) => (rank.get(Axis::Dp), None),
        };
        let mut replicas: BTreeMap<(Option<u16>, Option<u32>), Vec<usize>> = BTreeMap::new();
        for &i in &members {
            replicas.entry(replica(input.profiles[i].rank)).or_default().push(i);
        }
        if replicas.len() < 2 || replicas.len() == members.len() {
            groups.push(members);
            continue;
        }
        let middle = |ranks: &Vec<usize>| {
            let mut order = ranks.clone();
            order.sort_by(|&a, &b| stats[a].work_ms.total_cmp(&stats[b].work_ms));
            order[order.len() / 2]
        };
        groups.push(replicas.values().map(middle).collect());
        groups.extend(replicas.into_values());
    }
    groups
}
