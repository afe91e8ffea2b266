//! Diagnoses a group of ranks that run the same layers, and may thus be compared with each other.
//!
//! The questions, in their order: does one rank stand out beyond noise, by its GPU work or by its host? Do
//! the waits in collectives agree with that? Was it given more to do, or did it do the same more slowly?
//! Where no answer fits, the evidence is insufficient.

mod nothing;
mod own_batches;

use std::collections::{BTreeMap, BTreeSet};

use self::nothing::nothing_stands_out;
use self::own_batches::kind_with_own_batches;
use crate::collective::{MatchedCollectives, match_collectives};
use crate::enough::{StepEvidence, TooFewSteps, enough};
use crate::host::{HostFinding, HostTime, host_time};
use crate::kernel::Family;
use crate::period_fit;
use crate::profile::RankProfile;
use crate::rank::{Axis, RankId};
use crate::stats::{Gap, RankStats, gap_of, median, same_calls};
use crate::step::{MIN_STEPS, StepKind, StepSource};
use crate::verdict::Kind;

/// Among ranks that share a batch, a gap below this share of the peers' work is no finding.
const SHARED_BOUND: f64 = 0.10;
/// The same among ranks with batches of their own, which always differ a little.
const OWN_BOUND: f64 = 0.15;
/// A gap must be this many times the noise.
const NOISE_BOUND: f64 = 4.0;
/// The same where the others are seen to wait in collectives for what the rank takes longer. Another process
/// on its GPU takes turns with it, so some of its kernels take many times as long and most none.
const WAITED_FOR_BOUND: f64 = 2.0;
/// A factor that no noise explains: batches, grids, launches.
const LARGER: f64 = 1.25;
/// Batches within this factor are equal.
const EQUAL: f64 = 1.15;

/// Experts are hot where the other kernels grew by less than this part of the growth of theirs.
const OF_HOT_EXPERTS: f64 = 0.25;
/// A GPU is slow, or serves another process too, where they grew by this part and more.
const OF_A_SLOW_GPU: f64 = 0.5;

/// What was found in a group of ranks.
#[derive(Debug)]
pub struct Diagnosis {
    /// The kind of difference.
    pub kind: Kind,
    /// The index of the rank that stands out most.
    pub outlier: Option<usize>,
    /// The factor that took the constant difference of the outlier out; 1 without a baseline.
    pub baseline_factor: f64,
    /// The gap of the outlier.
    pub gap: Gap,
    /// The host time of the outlier, where that can be compared.
    pub host: Option<HostTime>,
    /// Whether the outlier stands out by its host, and not by the work of its GPU.
    pub by_host: bool,
    /// Indices of other ranks beyond the bounds, the largest gap first.
    pub also: Vec<usize>,
    /// Whether the ranks have batches of their own.
    pub own_batches: bool,
    /// The collectives, if they could be matched.
    pub matched: Option<MatchedCollectives>,
    /// What the diagnosis rests on.
    pub reasons: Vec<String>,
    /// The number of things that are missing for full confidence.
    pub doubts: usize,
    /// What alone is missing for a finding about the outlier, where that is steps.
    pub too_few: Option<TooFewSteps>,
}

/// Why host time may be chance.
enum Chance {
    Few(TooFewSteps),
    Other(&'static str),
}

impl Diagnosis {
    /// That it is of this kind, and why.
    fn conclude(&mut self, kind: Kind, mut reasons: Vec<String>) {
        self.kind = kind;
        self.reasons.append(&mut reasons);
    }
}

/// Diagnoses ranks that run the same layers. The work of each rank is multiplied by its entry of
/// `factors`, which takes a constant difference of the rank out.
pub fn diagnose(profiles: &[&RankProfile], stats: &[&RankStats], factors: &[f64]) -> Diagnosis {
    let matched = match_collectives(profiles);
    let own_batches = own_batches(profiles, matched.is_some());
    let bound = if own_batches { OWN_BOUND } else { SHARED_BOUND };
    let gaps: Vec<Gap> = (0..stats.len()).map(|i| gap_of(stats, i, factors)).collect();
    let by_gpu = gpu_outliers(stats, &gaps, own_batches, matched.as_ref());
    let mut found = Diagnosis {
        kind: Kind::NoFinding,
        outlier: None,
        baseline_factor: 1.0,
        gap: Gap::default(),
        host: None,
        by_host: false,
        also: Vec::new(),
        own_batches,
        matched,
        reasons: Vec::new(),
        doubts: 0,
        too_few: None,
    };
    let hosts: Vec<Option<HostTime>> = (0..stats.len())
        .map(|i| {
            host_time(profiles, stats, i, found.matched.is_some(), || {
                batch_growth(profiles, stats, i, own_batches)
            })
        })
        .collect();
    let beyond = |i: usize| hosts[i].map_or(0.0, |h| h.beyond_ms());
    let mut by_host: Vec<usize> =
        (0..hosts.len()).filter(|&i| is_host_bound(profiles, &hosts, i, &found)).collect();
    by_host.sort_by(|&a, &b| beyond(b).total_cmp(&beyond(a)));
    let on_gpu = by_gpu.first().map_or(0.0, |&i| gaps[i].ms);
    // What costs more time comes first.
    let slowest_host = by_host.first().copied().filter(|&i| beyond(i) > on_gpu);
    found.by_host = slowest_host.is_some();
    let at = slowest_host.or_else(|| by_gpu.first().copied());
    found.also = by_gpu.iter().chain(&by_host).copied().filter(|&i| Some(i) != at).collect();
    found.also.sort_by(|&a, &b| gaps[b].ms.max(beyond(b)).total_cmp(&gaps[a].ms.max(beyond(a))));
    found.also.dedup();
    let Some(at) = at else {
        nothing_stands_out(profiles, stats, &gaps, &hosts, bound, &mut found);
        return found;
    };
    found.outlier = Some(at);
    found.baseline_factor = factors[at];
    found.gap = gaps[at].clone();
    found.host = hosts[at];
    kind_of_outlier(profiles, stats, at, &mut found);
    found
}

/// What kind of difference rank `at` shows, which stands out.
fn kind_of_outlier(profiles: &[&RankProfile], stats: &[&RankStats], at: usize, found: &mut Diagnosis) {
    count_doubts(profiles, stats, at, found);
    let misfit = found.matched.as_ref().and_then(|m| period_fit::misfit_in_lockstep(profiles, m));
    if few_complete_peers(profiles, at, found) {
        found.kind = Kind::InsufficientEvidence;
    } else if let Some(why) = misfit {
        found.conclude(Kind::InsufficientEvidence, vec![why]);
    } else if found.by_host {
        kind_by_host(profiles, stats, at, found);
    } else if waits_disagree(profiles, at, found) {
        found.kind = Kind::InsufficientEvidence;
    } else if found.own_batches {
        kind_with_own_batches(profiles, stats, at, found);
    } else {
        kind_with_shared_batch(profiles, stats, at, found);
    }
}

/// The ranks whose GPUs have more work than their peers', the largest gap first. `matched` are the collectives in which
/// they meet.
fn gpu_outliers(
    stats: &[&RankStats],
    gaps: &[Gap],
    own_batches: bool,
    matched: Option<&MatchedCollectives>,
) -> Vec<usize> {
    let bound = if own_batches { OWN_BOUND } else { SHARED_BOUND };
    let waits = matched
        .filter(|_| !own_batches)
        .map(|m| m.ranks.iter().map(|r| r.wait_ms_per_step).collect::<Vec<_>>());
    let stands_out = |i: &usize| {
        let is_waited_for = waits.as_ref().is_some_and(|waits| waited_for(waits, *i, &gaps[*i]));
        let noise = if is_waited_for { WAITED_FOR_BOUND } else { NOISE_BOUND };
        stands_out(stats, gaps, *i, bound, noise, own_batches)
    };
    let mut outliers: Vec<usize> = (0..gaps.len()).filter(stands_out).collect();
    outliers.sort_by(|&a, &b| gaps[b].ms.total_cmp(&gaps[a].ms));
    outliers
}

/// The factor by which the rank's batches are larger than its peers': by requests or tokens, else by
/// the width of its launches. `None` where nothing tells.
fn batch_growth(
    profiles: &[&RankProfile],
    stats: &[&RankStats],
    at: usize,
    own_batches: bool,
) -> Option<f64> {
    if !own_batches {
        return Some(1.0);
    }
    batch_ratio(stats, at).map(|(ratio, _)| ratio).or_else(|| same_calls(profiles, at).width)
}

/// Whether the rank's host loses time that its work does not account for, or may not. Where ranks meet
/// in collectives the others must wait for it.
fn is_host_bound(
    profiles: &[&RankProfile],
    hosts: &[Option<HostTime>],
    at: usize,
    found: &Diagnosis,
) -> bool {
    let Some(host) = hosts[at].filter(|h| matches!(h.finding, HostFinding::Slow | HostFinding::Untold))
    else {
        return false;
    };
    let Some(waits) = waits_of(profiles, found) else { return true };
    others_wait(&waits, at).unwrap_or(0.0) - waits[at] >= 0.25 * host.beyond_ms()
}

/// The kind of a difference in host time.
fn kind_by_host(profiles: &[&RankProfile], stats: &[&RankStats], at: usize, found: &mut Diagnosis) {
    let Some(host) = found.host else { return };
    let rank = profiles[at].rank;
    found.doubts += host.doubts();
    let pace = format!(
        "its GPU idles {:.1} ms a step while the host works, {:.1} times the {:.1} ms that its launches account for at its peers' pace",
        host.ms,
        host.ms / host.expected_ms.max(1e-6),
        host.expected_ms
    );
    if let Some(p) = host.pauses.filter(|p| p.count > 1) {
        found.reasons.push(format!(
            "its GPU stood idle {} times for up to {:.1} ms, and hardly longer than its peers' between: its process was stopped or waited for a CPU, which a larger batch does not explain",
            p.count, p.longest_ms
        ));
    }
    let growth = batch_growth(profiles, stats, at, found.own_batches);
    if host.finding == HostFinding::Untold {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.push(match growth {
            Some(g) => format!("{pace}, but its batches are {g:.1} times as large and may need that"),
            None => format!("{pace}, but nothing tells whether its batches are larger"),
        });
        return;
    }
    if let Some(chance) = host_may_be_chance(profiles, at, found) {
        found.kind = Kind::InsufficientEvidence;
        match chance {
            Chance::Few(few) => {
                found.too_few = Some(few);
                found.reasons.push(pace);
            }
            Chance::Other(why) => found.reasons.push(format!("{pace}, but {why}")),
        }
        return;
    }
    found.kind = Kind::SlowRank;
    found.reasons.push(pace);
    if let Some((factor, _)) = host.alike {
        found.reasons.push(format!(
            "in steps of the same kind and batch its host takes {factor:.1} times as long as its peers'"
        ));
    }
    if let Some(g) = growth.filter(|g| *g >= LARGER) {
        found.reasons.push(format!(
            "its batches are {g:.1} times its peers', which may be requests that pile up behind a slow host"
        ));
    }
    if let Some(waits) = waits_of(profiles, found) {
        found.reasons.push(format!(
            "{rank} waits {:.2} ms a step in collectives, its peers {:.2} ms: they wait for it",
            waits[at],
            others_wait(&waits, at).unwrap_or(0.0)
        ));
    }
}

/// Why the host time of rank `at` may be chance, if it may.
fn host_may_be_chance(profiles: &[&RankProfile], at: usize, found: &Diagnosis) -> Option<Chance> {
    if found.matched.is_none() && period_fit::misfit(profiles).is_some() {
        return Some(Chance::Other("the steps are not told apart well enough to compare their hosts"));
    }
    let with_work = |p: &&RankProfile| p.steps.iter().filter(|s| s.kind != StepKind::Idle).count();
    let fewest = profiles.iter().map(with_work).min().unwrap_or(0);
    match enough(profiles, at, found.matched.as_ref()) {
        StepEvidence::Yes => None,
        StepEvidence::No(Some(needed)) if needed > fewest => {
            Some(Chance::Few(TooFewSteps { steps: fewest, needed }))
        }
        StepEvidence::No(_) => {
            Some(Chance::Other("its steps differ so much among each other that this may be chance"))
        }
    }
}

/// Whether the ranks have batches of their own, by their names; processes of unknown rank share a
/// batch exactly if they take part in the same collectives.
fn own_batches(profiles: &[&RankProfile], matched: bool) -> bool {
    if profiles.iter().any(|p| matches!(p.rank, RankId::Pid(_))) {
        return !matched;
    }
    let distinct: BTreeSet<Option<u16>> = profiles.iter().map(|p| p.rank.get(Axis::Dp)).collect();
    distinct.len() > 1 && distinct.len() == profiles.len()
}

/// Whether the others wait for at least three quarters of what rank `at` takes longer.
fn waited_for(waits: &[f64], at: usize, gap: &Gap) -> bool {
    gap.ms > 0.0 && others_wait(waits, at).unwrap_or(0.0) - waits[at] >= 0.75 * gap.ms
}

fn stands_out(
    stats: &[&RankStats],
    gaps: &[Gap],
    at: usize,
    bound: f64,
    noise: f64,
    own_batches: bool,
) -> bool {
    let gap = &gaps[at];
    if stats[at].steps < MIN_STEPS || gap.ms <= 0.0 {
        return false;
    }
    let within = gap.relative_within().is_some_and(|r| r >= bound) && gap.beyond_noise >= noise;
    within && gap.relative() >= bound / 2.0
        || own_batches && more_prefill(stats, at) && gap.relative() >= LARGER - 1.0
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// The time that each rank waits in collectives, milliseconds per step. Where the collectives are not
/// matched, the time in communication stands for it, provided that the ranks share a batch.
fn waits_of(profiles: &[&RankProfile], found: &Diagnosis) -> Option<Vec<f64>> {
    if let Some(m) = &found.matched {
        return Some(m.ranks.iter().map(|r| r.wait_ms_per_step).collect());
    }
    let in_communication = |p: &&RankProfile| {
        let sum: i64 = p.collectives.iter().map(|c| c.duration_ns()).sum();
        sum as f64 / 1e6 / p.steps.len().max(1) as f64
    };
    let known = !found.own_batches && profiles.iter().all(|p| !p.collectives.is_empty());
    known.then(|| profiles.iter().map(in_communication).collect())
}

/// How long the others than rank `at` wait: their median; `None` where there is no other.
fn others_wait(waits: &[f64], at: usize) -> Option<f64> {
    median(&(0..waits.len()).filter(|&i| i != at).map(|i| waits[i]).collect::<Vec<_>>())
}

/// Counts what is missing for full confidence, and says it where that is not in the table.
fn count_doubts(profiles: &[&RankProfile], stats: &[&RankStats], at: usize, found: &mut Diagnosis) {
    let gap = &found.gap;
    if !found.by_host && (gap.relative() < 0.2 || gap.beyond_noise < 2.0 * NOISE_BOUND) {
        found.doubts += 1;
    }
    if stats.iter().any(|f| f.steps < 8) {
        found.doubts += 1;
        let fewest = stats.iter().map(|f| f.steps).min().unwrap_or(0);
        found
            .reasons
            .push(format!("the window has {fewest} step{} on the rank with the fewest", plural(fewest)));
    }
    if profiles.len() == 2 {
        found.doubts += 1;
        found.reasons.push("with two ranks the slower one may as well be the normal one".into());
    }
    if found.matched.is_none() {
        let misfit = period_fit::misfit(profiles);
        if misfit.is_some() || profiles.iter().any(|p| p.source == StepSource::CpuAnnotations) {
            found.doubts += 1;
        }
        found.reasons.extend(misfit);
    }
    if profiles[at].partial {
        found.doubts += 2;
    }
}

/// Whether so many files of the peers end too early that fewer than two complete ones are left.
fn few_complete_peers(profiles: &[&RankProfile], at: usize, found: &mut Diagnosis) -> bool {
    let peers = || profiles.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, p)| p);
    let Some(cut) = peers().find(|p| p.partial) else { return false };
    found.doubts += 1;
    found.reasons.push(format!("a part of {}'s window is missing", cut.rank));
    peers().filter(|p| !p.partial).count() < 2
}

/// Whether the waits contradict that the others wait for rank `at`.
fn waits_disagree(profiles: &[&RankProfile], at: usize, found: &mut Diagnosis) -> bool {
    let Some(waits) = waits_of(profiles, found) else { return false };
    let typical = others_wait(&waits, at).unwrap_or(0.0);
    let rank = profiles[at].rank;
    // The gap must reappear as waiting of the others; a part of it may be hidden by overlap.
    let expected = 0.25 * found.gap.ms;
    if typical - waits[at] >= expected {
        if found.matched.is_some() {
            found.reasons.push(format!(
                "{rank} waits {:.2} ms a step in collectives, its peers {typical:.2} ms: they wait for it",
                waits[at]
            ));
        }
        return false;
    }
    found.reasons.push(format!(
        "its kernels say {rank}, but it waits {:.2} ms a step in collectives and its peers {typical:.2} ms: if it held them up they would wait longer",
        waits[at]
    ));
    true
}

/// Whether far more of the rank's steps are prefill than of its peers'.
fn more_prefill(stats: &[&RankStats], at: usize) -> bool {
    let others: Vec<f64> = (0..stats.len()).filter(|&i| i != at).map(|i| stats[i].extend_share).collect();
    let steps = stats.iter().map(|f| f.steps).min().unwrap_or(0);
    steps >= 8 && stats[at].extend_share - median(&others).unwrap_or(1.0) >= 0.3
}

/// The kind of the difference among ranks that share a batch.
fn kind_with_shared_batch(profiles: &[&RankProfile], stats: &[&RankStats], at: usize, found: &mut Diagnosis) {
    let rank = profiles[at].rank;
    let launches = ratio_to_peers(stats, at, |f| f.launches);
    let moe = found.gap.families.get(&Family::Moe).copied().unwrap_or(0.0);
    let experts = (rank.get(Axis::Ep).is_some() && moe >= 0.8 * found.gap.ms)
        .then(|| others_beside_experts(stats[at], &found.gap));
    if let Some(others) = experts.filter(|others| *others < OF_HOT_EXPERTS) {
        found.kind = Kind::UnevenWork;
        found.reasons.push(format!(
            "the experts' kernels take longer on {rank}, and all others {:.0} % of that: its experts are hot",
            (others * 100.0).max(0.0)
        ));
    } else if let Some(others) = experts.filter(|others| *others < OF_A_SLOW_GPU) {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.push(format!(
            "most of what {rank} takes longer is its experts' kernels, but its other kernels grew too, {others:.1} times as much: its experts may be hot, or its GPU slow"
        ));
    } else if launches.is_some_and(|r| !(1.0 / EQUAL..=EQUAL).contains(&r)) {
        found.kind = Kind::InsufficientEvidence;
        let more = launches.unwrap_or(1.0);
        found.reasons.push(format!(
            "{rank} launches {more:.2} times the kernels of its peers per step: not the same calls"
        ));
    } else {
        found.kind = Kind::SlowRank;
        found
            .reasons
            .push(format!("{rank} shares its batch with its peers and takes longer for the same calls"));
        if found.matched.is_none() {
            found.doubts += 1;
            found
                .reasons
                .push("the collectives could not be matched, so nobody's waiting bears it out".into());
        }
    }
}

/// By how much the kernels that are no experts' grew on the rank beside its peers', over the growth of the experts':
/// next to nothing where its experts are hot, and about 1 where its GPU is slow or serves somebody else too.
fn others_beside_experts(own: &RankStats, gap: &Gap) -> f64 {
    let growth = |keep: &dyn Fn(Family) -> bool| {
        let of = |families: &BTreeMap<Family, f64>| -> f64 {
            families.iter().filter(|(f, _)| keep(**f)).map(|(_, ms)| ms).sum()
        };
        let grown = of(&gap.families);
        grown / (of(&own.families) - grown).max(1e-9)
    };
    let others = growth(&|f| !matches!(f, Family::Moe | Family::Communication));
    others / growth(&|f| f == Family::Moe).max(1e-9)
}

/// The batch of the rank over that of its peers, and what of its is: requests of decode steps, else tokens of
/// prefill steps, else requests of steps of unknown kind. Reports show the mean over all kinds.
fn batch_ratio(stats: &[&RankStats], at: usize) -> Option<(f64, &'static str)> {
    let of = |kind: StepKind, tokens: bool| {
        ratio_to_peers(stats, at, |f| {
            let k = f.kinds.get(&kind).filter(|k| k.steps >= MIN_STEPS);
            k.and_then(|k| if tokens { k.tokens } else { k.requests }).unwrap_or(f64::NAN)
        })
    };
    let named = |kind, tokens, name| Some((of(kind, tokens)?, name));
    named(StepKind::Decode, false, "decode batches")
        .or_else(|| named(StepKind::Extend, true, "prefill batches"))
        .or_else(|| named(StepKind::Step, false, "batches"))
}

/// Requests in the decode batches of the peers of rank `at`, if the traces say it.
fn batch_size(stats: &[&RankStats], at: usize) -> Option<f64> {
    let peers = (0..stats.len()).filter(|&i| i != at);
    let of = |i: usize| stats[i].kinds.get(&StepKind::Decode).and_then(|k| k.requests);
    median(&peers.filter_map(of).collect::<Vec<_>>())
}

/// Launches in a step of the rank's most frequent kind, over those of its peers.
fn launch_ratio(stats: &[&RankStats], at: usize) -> Option<f64> {
    let main = stats[at].kinds.iter().max_by_key(|(_, k)| k.steps)?.0;
    ratio_to_peers(stats, at, |f| f.kinds.get(main).map_or(f64::NAN, |k| k.launches))
}

/// A statistic of the rank over the median of its peers; `None` where either is unknown.
fn ratio_to_peers(stats: &[&RankStats], at: usize, of: impl Fn(&RankStats) -> f64) -> Option<f64> {
    let mine = of(stats[at]);
    let others: Vec<f64> = (0..stats.len()).filter(|&i| i != at).map(|i| of(stats[i])).collect();
    let typical = median(&others).filter(|t| *t > 0.0)?;
    mine.is_finite().then_some(mine / typical)
}
