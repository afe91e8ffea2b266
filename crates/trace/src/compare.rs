//! Ranks of one capture to a [`Comparison`]: which ranks run the same layers and may be compared
//! with each other, which are idle or missing, and whose comparison tells most.

use std::collections::BTreeMap;

use crate::conclude::{Conclusion, confirms};
use crate::evidence::{self, Figures};
use crate::judge::{Judged, judge};
use crate::labels::Labels;
use crate::rank::{Axis, Rank};
use crate::step::RankProfile;
use crate::table::{Comparison, report};
use crate::trace::{StepKind, StepSource, Who};
use crate::verdict::Kind;

/// What is compared.
#[derive(Debug, Default)]
pub struct Study {
    /// The capture's ranks.
    pub profiles: Vec<RankProfile>,
    /// The same ranks at a time when all was well; may be empty.
    pub baseline: Vec<RankProfile>,
    /// The rank that is suspected beforehand: the one that the rule blamed.
    pub suspect: Option<Labels>,
    /// What readers found worth saying: files left out, ranks assumed.
    pub notes: Vec<String>,
    /// Ranks whose files could not be read.
    pub unreadable: Vec<Who>,
    /// Kernel that told the steps, where nothing else did.
    pub period_kernel: Option<String>,
}

/// Between the windows of one capture at most, nanoseconds: clocks of hosts differ, but not so much.
const APART_NS: i64 = 60_000_000_000;

impl Study {
    /// Why the windows cannot be of one capture: they lie too far apart.
    pub fn mixed(&self) -> Option<String> {
        let busy = || self.profiles.iter().filter(|p| p.rows > 0);
        let (end, ended) = busy().map(|p| (p.epoch_ns.saturating_add(p.window.1), p.who)).min()?;
        let (start, started) = busy().map(|p| (p.epoch_ns.saturating_add(p.window.0), p.who)).max()?;
        let apart = start.saturating_sub(end);
        (apart > APART_NS).then(|| {
            format!(
                "the window of {started} begins {:.0} minutes after that of {ended} ended: these are hardly of one capture",
                apart as f64 / 60e9
            )
        })
    }
}

/// Compares the ranks of a capture.
pub fn compare(study: &Study) -> Comparison {
    let figures: Vec<Figures> = study.profiles.iter().map(evidence::figures_of).collect();
    let usual = usual_factors(study, &figures);
    let missing = missing_ranks(study);
    let idle: Vec<usize> = (0..figures.len()).filter(|&i| is_idle(&study.profiles, &figures, i)).collect();
    let active: Vec<usize> = (0..figures.len()).filter(|i| !idle.contains(i)).collect();
    let (judged, members) = judge_groups(study, &figures, &usual, &active);
    let mut verdict =
        Conclusion { study, figures: &figures, idle: &idle, active: &active, missing: &missing }
            .verdict(judged.as_ref(), &members);
    verdict.confirms = confirms(&verdict, study.suspect.as_ref());
    report(study, verdict, &figures, judged.and_then(|j| j.matched), missing)
}

/// The axes on which ranks differ: names need no other.
pub fn telling_axes(ranks: &[Who]) -> Vec<Axis> {
    let ranks: Vec<Rank> = ranks.iter().filter_map(|w| rank_of(*w)).collect();
    Axis::ALL.into_iter().filter(|&a| ranks.iter().any(|r| r.get(a) != ranks[0].get(a))).collect()
}

/// A rank named only by `axes`: `TP0 DP2` of ranks that are all TP0 is `DP2`. Without axes it stays.
pub fn named_by(who: Who, axes: &[Axis]) -> Who {
    match who {
        Who::Rank(rank) if !axes.is_empty() => Who::Rank(
            rank.iter().filter(|(a, _)| axes.contains(a)).fold(Rank::NONE, |r, (a, i)| r.with(a, i)),
        ),
        other => other,
    }
}

fn rank_of(who: Who) -> Option<Rank> {
    match who {
        Who::Rank(rank) => Some(rank),
        Who::Pid(_) => None,
    }
}

/// What takes a rank's constant difference out: the baseline's median over its own, or 1.
fn usual_factors(study: &Study, figures: &[Figures]) -> Vec<f64> {
    let before: Vec<Option<f64>> = study
        .profiles
        .iter()
        .map(|p| study.baseline.iter().find(|b| b.who == p.who).map(|b| evidence::figures_of(b).work_ms))
        .collect();
    let typical = evidence::median(&before.iter().flatten().copied().collect::<Vec<_>>());
    figures
        .iter()
        .zip(before)
        .map(|(_, own)| match (typical, own) {
            (Some(t), Some(o)) if o > 0.0 && t > 0.0 => t / o,
            _ => 1.0,
        })
        .collect()
}

/// A whole file without work: no kernels, or only batches without requests.
fn is_idle(profiles: &[RankProfile], figures: &[Figures], at: usize) -> bool {
    let p = &profiles[at];
    if p.partial {
        return false;
    }
    let rows: Vec<f64> = profiles.iter().map(|p| p.rows as f64).collect();
    let no_batches = !p.steps.is_empty() && p.steps.iter().all(|s| s.kind == StepKind::Idle);
    let next_to_nothing =
        (p.rows as f64) < 0.01 * evidence::median(&rows).unwrap_or(0.0) && figures[at].steps < 2;
    p.rows == 0 || no_batches || next_to_nothing
}

/// Ranks that the others' numbers, or the size of the world, say there are.
fn missing_ranks(study: &Study) -> Vec<Who> {
    let profiles = &study.profiles;
    let ranks: Vec<Rank> = profiles.iter().filter_map(|p| rank_of(p.who)).collect();
    let varying = telling_axes(&profiles.iter().map(|p| p.who).collect::<Vec<_>>());
    let [axis] = varying.as_slice() else { return study.unreadable.clone() };
    let world = profiles.iter().filter_map(|p| p.world_size).max().unwrap_or(0);
    let highest = ranks.iter().filter_map(|r| r.get(*axis)).max().map_or(0, |m| u32::from(m) + 1);
    let until = u16::try_from(world.min(4096).max(highest)).unwrap_or(u16::MAX);
    (0..until)
        .filter(|i| !ranks.iter().any(|r| r.get(*axis) == Some(*i)))
        .map(|i| Who::Rank(Rank::NONE.with(*axis, i)))
        .collect()
}

/// Judges every set of ranks that may be compared, and returns the most telling one's result with
/// the places of its members.
fn judge_groups(
    study: &Study,
    figures: &[Figures],
    usual: &[f64],
    active: &[usize],
) -> (Option<Judged>, Vec<usize>) {
    if study.profiles.iter().any(|p| p.source == StepSource::PerSecond && p.rows > 0) {
        return (None, Vec::new());
    }
    let mut best: Option<(Judged, Vec<usize>)> = None;
    for members in groups_of(study, figures, active) {
        if members.len() < 2 {
            continue;
        }
        let profiles: Vec<&RankProfile> = members.iter().map(|&i| &study.profiles[i]).collect();
        let some_figures: Vec<&Figures> = members.iter().map(|&i| &figures[i]).collect();
        let factors: Vec<f64> = members.iter().map(|&i| usual[i]).collect();
        let judged = judge(&profiles, &some_figures, &factors);
        let better = best.as_ref().is_none_or(|(b, _)| weight_of(&judged) > weight_of(b));
        if better {
            best = Some((judged, members));
        }
    }
    best.map_or((None, Vec::new()), |(j, m)| (Some(j), m))
}

/// A finding outweighs a doubt, and a doubt outweighs "nothing found".
fn weight_of(j: &Judged) -> f64 {
    match j.kind {
        Kind::NoFinding => 0.0,
        Kind::InsufficientEvidence => 1.0,
        _ => 2.0 + j.gap.relative(),
    }
}

/// Sets of ranks that run the same layers: one pipeline stage; of several DP replicas with several
/// ranks each, the ranks inside each replica, and one representative rank of every replica.
fn groups_of(study: &Study, figures: &[Figures], active: &[usize]) -> Vec<Vec<usize>> {
    let mut stages: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
    for &i in active {
        stages.entry(study.profiles[i].who.get(Axis::Pp)).or_default().push(i);
    }
    let mut groups = Vec::new();
    for members in stages.into_values() {
        // A process that nobody named stands for itself.
        let replica = |who: Who| match who {
            Who::Pid(pid) => (None, Some(pid)),
            Who::Rank(rank) => (rank.get(Axis::Dp), None),
        };
        let mut replicas: BTreeMap<(Option<u16>, Option<u32>), Vec<usize>> = BTreeMap::new();
        for &i in &members {
            replicas.entry(replica(study.profiles[i].who)).or_default().push(i);
        }
        if replicas.len() < 2 || replicas.len() == members.len() {
            groups.push(members);
            continue;
        }
        let middle = |ranks: &Vec<usize>| {
            let mut order = ranks.clone();
            order.sort_by(|&a, &b| figures[a].work_ms.total_cmp(&figures[b].work_ms));
            order[order.len() / 2]
        };
        groups.push(replicas.values().map(middle).collect());
        groups.extend(replicas.into_values());
    }
    groups
}
