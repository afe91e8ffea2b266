//! From figures to a verdict about ranks that may be compared with each other.
//!
//! The order of the questions: does one rank stand out beyond noise? Do the waits in collectives
//! agree? Then, was it given more to do, or did it do the same more slowly? What no answer fits is
//! insufficient evidence.

use std::collections::BTreeSet;

use crate::decide::signal::rank::Axis;
use crate::explain::collective::{self, Matched};
use crate::explain::evidence::{self, Figures, Gap, MIN_STEPS, SameCalls};
use crate::explain::kernel::Family;
use crate::explain::step::RankProfile;
use crate::explain::trace::{StepKind, StepSource, Who};
use crate::explain::verdict::Kind;

/// Of ranks that share a batch, a gap below this share of the peers' work is no finding.
const SHARED_BOUND: f64 = 0.10;
/// Of ranks with batches of their own: these differ a little all the time.
const OWN_BOUND: f64 = 0.15;
/// How many times the noise a gap must be.
const NOISE_BOUND: f64 = 4.0;
/// A factor that no noise explains: batches, grids, launches.
const LARGER: f64 = 1.25;
/// Batches within this factor are equal.
const EQUAL: f64 = 1.15;

/// What was found among ranks that may be compared.
#[derive(Debug)]
pub struct Judged {
    /// What kind.
    pub kind: Kind,
    /// The culprit, by its place.
    pub at: Option<usize>,
    /// What the culprit's work was multiplied by to take its constant difference out.
    pub usual: f64,
    /// Its gap.
    pub gap: Gap,
    /// Others beyond the bounds, the most first.
    pub also: Vec<usize>,
    /// Whether the ranks have batches of their own.
    pub own_batches: bool,
    /// Collectives, where they could be matched.
    pub matched: Option<Matched>,
    /// What it rests on.
    pub reasons: Vec<String>,
    /// How many things are missing for full confidence.
    pub doubts: usize,
}

/// Judges ranks that run the same layers. `usual` takes out each rank's constant difference.
pub fn judge(profiles: &[&RankProfile], figures: &[&Figures], usual: &[f64]) -> Judged {
    let matched = collective::matched(profiles);
    let own_batches = own_batches(profiles, matched.is_some());
    let bound = if own_batches { OWN_BOUND } else { SHARED_BOUND };
    let gaps: Vec<Gap> = (0..figures.len()).map(|i| evidence::gap_of(figures, i, usual)).collect();
    let mut out: Vec<usize> =
        (0..gaps.len()).filter(|&i| stands_out(figures, &gaps, i, bound, own_batches)).collect();
    out.sort_by(|&a, &b| gaps[b].ms.total_cmp(&gaps[a].ms));
    let mut found = Judged {
        kind: Kind::NoFinding,
        at: None,
        usual: 1.0,
        gap: Gap::default(),
        also: out.get(1..).unwrap_or_default().to_vec(),
        own_batches,
        matched,
        reasons: Vec::new(),
        doubts: 0,
    };
    match out.first() {
        None => nothing_stands_out(profiles, figures, &gaps, bound, &mut found),
        Some(&at) => {
            found.at = Some(at);
            found.usual = usual[at];
            found.gap = gaps[at].clone();
            weigh(profiles, figures, at, &mut found);
            if few_whole_peers(profiles, at, &mut found) || waits_disagree(profiles, at, &mut found) {
                found.kind = Kind::InsufficientEvidence;
            } else if own_batches {
                own_batch_kind(profiles, figures, at, &mut found);
            } else {
                shared_batch_kind(profiles, figures, at, &mut found);
            }
        }
    }
    found
}

/// Whether the ranks have batches of their own. Names tell; processes without one share a batch
/// only if they take part in the same collectives.
fn own_batches(profiles: &[&RankProfile], matched: bool) -> bool {
    if profiles.iter().any(|p| matches!(p.who, Who::Pid(_))) {
        return !matched;
    }
    let distinct: BTreeSet<Option<u16>> = profiles.iter().map(|p| p.who.get(Axis::Dp)).collect();
    distinct.len() > 1 && distinct.len() == profiles.len()
}

fn stands_out(figures: &[&Figures], gaps: &[Gap], at: usize, bound: f64, own_batches: bool) -> bool {
    let gap = &gaps[at];
    if figures[at].steps < MIN_STEPS || gap.ms <= 0.0 {
        return false;
    }
    let within = gap.relative_within().is_some_and(|r| r >= bound) && gap.beyond_noise >= NOISE_BOUND;
    within && gap.relative() >= bound / 2.0
        || own_batches && more_prefill(figures, at) && gap.relative() >= LARGER - 1.0
}

/// Whether far more of its steps are prefill than its peers'.
fn more_prefill(figures: &[&Figures], at: usize) -> bool {
    let others: Vec<f64> = (0..figures.len()).filter(|&i| i != at).map(|i| figures[i].extend_share).collect();
    let steps = figures.iter().map(|f| f.steps).min().unwrap_or(0);
    steps >= 8 && figures[at].extend_share - evidence::median(&others).unwrap_or(1.0) >= 0.3
}

fn nothing_stands_out(
    profiles: &[&RankProfile],
    figures: &[&Figures],
    gaps: &[Gap],
    bound: f64,
    found: &mut Judged,
) {
    if let Some(few) = (0..figures.len()).find(|&i| figures[i].steps < MIN_STEPS) {
        found.kind = Kind::InsufficientEvidence;
        let (who, n) = (profiles[few].who, figures[few].steps);
        found.reasons.push(format!(
            "{who} shows {n} step{}; at least {MIN_STEPS} are needed on every rank",
            plural(n)
        ));
        return;
    }
    if let Some(odd) = (0..gaps.len()).find(|&i| gaps[i].within_ms.is_none()) {
        found.kind = Kind::InsufficientEvidence;
        let who = profiles[odd].who;
        found
            .reasons
            .push(format!("{who} and its peers ran different kinds of steps: they cannot be compared"));
        return;
    }
    if let Some(wide) = (0..gaps.len()).find(|&i| gaps[i].relative_within().is_some_and(|r| r >= 2.0 * bound))
    {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.push(format!(
            "{} needs {:.0} % more per step than its peers, but the ranks differ so much among each other that this may be chance",
            profiles[wide].who,
            gaps[wide].relative_within().unwrap_or(0.0) * 100.0
        ));
        return;
    }
    if let Some((who, held_up)) = late_without_cause(profiles, figures, found) {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.push(format!(
            "the others wait {held_up:.2} ms a step for {who} although its kernels are no slower: look at what keeps its host from launching them",
        ));
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// A rank for which all others wait, although nothing on its GPU is slower: how long they do,
/// milliseconds per step.
fn late_without_cause(profiles: &[&RankProfile], figures: &[&Figures], found: &Judged) -> Option<(Who, f64)> {
    let waits = waits_of(profiles, found)?;
    let least = (0..waits.len()).min_by(|&a, &b| waits[a].total_cmp(&waits[b]))?;
    let others: Vec<f64> = (0..waits.len()).filter(|&i| i != least).map(|i| waits[i]).collect();
    let work = evidence::median(&figures.iter().map(|f| f.work_ms).collect::<Vec<_>>())?;
    let held_up = evidence::median(&others)? - waits[least];
    (held_up >= 0.1 * work).then_some((profiles[least].who, held_up))
}

/// Milliseconds per step that each rank waits in collectives. Unmatched they still tell how long
/// each rank sat in communication, if its ranks are known to share a batch.
fn waits_of(profiles: &[&RankProfile], found: &Judged) -> Option<Vec<f64>> {
    if let Some(m) = &found.matched {
        return Some(m.ranks.iter().map(|r| r.wait_ms_per_step).collect());
    }
    let in_communication = |p: &&RankProfile| {
        let sum: i64 = p.collectives.iter().map(|c| c.end - c.start).sum();
        sum as f64 / 1e6 / p.steps.len().max(1) as f64
    };
    let known = !found.own_batches && profiles.iter().all(|p| !p.collectives.is_empty());
    known.then(|| profiles.iter().map(in_communication).collect())
}

/// Counts what is missing for full confidence.
fn weigh(profiles: &[&RankProfile], figures: &[&Figures], at: usize, found: &mut Judged) {
    let gap = &found.gap;
    if gap.relative() < 0.2 || gap.beyond_noise < 2.0 * NOISE_BOUND {
        found.doubts += 1;
    }
    if figures.iter().any(|f| f.steps < 8) {
        found.doubts += 1;
        let fewest = figures.iter().map(|f| f.steps).min().unwrap_or(0);
        found.reasons.push(format!("a short window: {fewest} steps on the rank with the fewest"));
    }
    if profiles.len() == 2 {
        found.doubts += 1;
        found.reasons.push("with two ranks the slower one may as well be the normal one".into());
    }
    let counted = profiles.iter().any(|p| p.source != StepSource::GpuAnnotations);
    if counted && found.matched.is_none() {
        found.doubts += 1;
    }
    if profiles[at].partial {
        found.doubts += 2;
    }
}

/// Whether so many of the peers' files end too early that their median is no measure.
fn few_whole_peers(profiles: &[&RankProfile], at: usize, found: &mut Judged) -> bool {
    let peers = || profiles.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, p)| p);
    let Some(cut) = peers().find(|p| p.partial) else { return false };
    found.doubts += 1;
    found.reasons.push(format!("a part of {}'s window is missing", cut.who));
    peers().filter(|p| !p.partial).count() < 2
}

/// Whether the waits contradict that the rank at `at` is the one the others wait for.
fn waits_disagree(profiles: &[&RankProfile], at: usize, found: &mut Judged) -> bool {
    let Some(waits) = waits_of(profiles, found) else { return false };
    let others: Vec<f64> = (0..waits.len()).filter(|&i| i != at).map(|i| waits[i]).collect();
    let typical = evidence::median(&others).unwrap_or(0.0);
    let who = profiles[at].who;
    // The gap must reappear as the others' waiting; a part may hide behind overlap.
    let expected = 0.25 * found.gap.ms;
    if typical - waits[at] >= expected {
        if found.matched.is_some() {
            found.reasons.push(format!(
                "{who} waits {:.2} ms a step in collectives, its peers {typical:.2} ms: they wait for it",
                waits[at]
            ));
        }
        return false;
    }
    found.reasons.push(format!(
        "its kernels say {who}, but it waits {:.2} ms a step in collectives and its peers {typical:.2} ms: if it held them up they would wait longer",
        waits[at]
    ));
    true
}

fn shared_batch_kind(profiles: &[&RankProfile], figures: &[&Figures], at: usize, found: &mut Judged) {
    let who = profiles[at].who;
    let launches = ratio_to_peers(figures, at, |f| f.launches);
    let moe = found.gap.families.get(&Family::Moe).copied().unwrap_or(0.0);
    if who.get(Axis::Ep).is_some() && moe >= 0.8 * found.gap.ms {
        found.kind = Kind::UnevenWork;
        found.reasons.push(format!("only the experts' kernels take longer on {who}: its experts are hot"));
    } else if launches.is_some_and(|r| !(1.0 / EQUAL..=EQUAL).contains(&r)) {
        found.kind = Kind::InsufficientEvidence;
        let more = launches.unwrap_or(1.0);
        found.reasons.push(format!(
            "{who} launches {more:.2} times the kernels of its peers per step: not the same calls"
        ));
    } else {
        found.kind = Kind::SlowRank;
        found
            .reasons
            .push(format!("{who} shares its batch with its peers and takes longer for the same calls"));
        if found.matched.is_none() {
            found.doubts += 1;
            found
                .reasons
                .push("the collectives could not be matched, so nobody's waiting bears it out".into());
        }
    }
}

fn own_batch_kind(profiles: &[&RankProfile], figures: &[&Figures], at: usize, found: &mut Judged) {
    let who = profiles[at].who;
    let same = evidence::same_calls(profiles, at);
    let batch = batch_ratio(figures, at);
    let launches = launch_ratio(figures, at);
    let mut larger = Vec::new();
    if let Some(r) = batch.filter(|r| *r >= LARGER) {
        larger.push(format!("its batches are {r:.1} times its peers'"));
    }
    if more_prefill(figures, at) {
        let mine = figures[at].extend_share * 100.0;
        larger.push(format!("{mine:.0} % of its steps are prefill, far more than on its peers"));
    }
    if let Some(r) = launches.filter(|r| *r >= LARGER) {
        larger.push(format!("it launches {r:.1} times its peers' kernels in a step of the same kind"));
    }
    if batch.is_none() && same.grid.is_some_and(|g| g >= LARGER) {
        larger.push(format!("its launches are {:.1} times as wide as its peers'", same.grid.unwrap_or(1.0)));
    }
    let equal = match batch {
        Some(r) => (1.0 / EQUAL..=EQUAL).contains(&r),
        None => same.grid.is_some_and(|g| (0.98..=1.02).contains(&g)),
    };
    let uniform = uniform_factor(&same, &found.gap);
    match (uniform, larger.is_empty()) {
        (Some(f), true) if equal => {
            found.kind = Kind::SlowRank;
            found.reasons.push(format!("all its kernels take about {f:.2} times as long at equal batches"));
            if batch.is_none() {
                found.doubts += 1;
            }
        }
        (Some(f), false) if f > batch.unwrap_or(1.0).max(1.2) * 1.1 => {
            found.kind = Kind::InsufficientEvidence;
            found.reasons.append(&mut larger);
            found
                .reasons
                .push(format!("but all its kernels are {f:.2} times slower, more than that explains"));
        }
        (_, false) => {
            found.kind = Kind::UnevenWork;
            found.reasons.append(&mut larger);
        }
        (None, true) if grows_only(&same, &found.gap) => {
            found.kind = Kind::UnevenWork;
            found.doubts += usize::from(batch.is_none());
            found
                .reasons
                .push("only kernels whose cost grows with requests and their context take longer".into());
        }
        _ => {
            found.kind = Kind::InsufficientEvidence;
            found.reasons.push(format!(
                "{who} needs more per step, but neither are its batches known to be larger nor are all its kernels slower by one factor at batches known to be equal"
            ));
        }
    }
}

/// The factor by which all kernels are slower, if it is about one.
fn uniform_factor(same: &SameCalls, gap: &Gap) -> Option<f64> {
    let (all, steady) = (same.all?, same.steady?);
    let wanted = 1.0 + gap.relative_within().unwrap_or(0.0);
    let close = |f: f64| (f - 1.0) >= 0.6 * (wanted - 1.0);
    (same.agreeing >= 0.7 && all >= 1.05 && close(all) && close(steady)).then_some(all)
}

/// Whether the gap comes from kernels whose cost grows with the work, and the others are as fast
/// as on the peers.
fn grows_only(same: &SameCalls, gap: &Gap) -> bool {
    let grown: f64 = gap.families.iter().filter(|(f, _)| f.grows_with_work()).map(|(_, ms)| ms).sum();
    let wanted = gap.relative_within().unwrap_or(0.0);
    grown >= 0.6 * gap.ms && same.steady.is_some_and(|s| s - 1.0 <= 0.35 * wanted)
}

/// The batch of the rank against its peers': requests of its decode steps, else tokens of its
/// prefill steps, else requests of unnamed steps.
fn batch_ratio(figures: &[&Figures], at: usize) -> Option<f64> {
    let of = |kind: StepKind, tokens: bool| {
        ratio_to_peers(figures, at, |f| {
            let k = f.kinds.get(&kind).filter(|k| k.steps >= MIN_STEPS);
            k.and_then(|k| if tokens { k.tokens } else { k.requests }).unwrap_or(f64::NAN)
        })
    };
    of(StepKind::Decode, false).or_else(|| of(StepKind::Extend, true)).or_else(|| of(StepKind::Step, false))
}

/// Launches per step of the same kind against the peers'.
fn launch_ratio(figures: &[&Figures], at: usize) -> Option<f64> {
    let main = figures[at].kinds.iter().max_by_key(|(_, k)| k.steps)?.0;
    ratio_to_peers(figures, at, |f| f.kinds.get(main).map_or(f64::NAN, |k| k.launches))
}

/// A figure of the rank against the median of its peers; `None` where either is not known.
fn ratio_to_peers(figures: &[&Figures], at: usize, of: impl Fn(&Figures) -> f64) -> Option<f64> {
    let mine = of(figures[at]);
    let others: Vec<f64> = (0..figures.len()).filter(|&i| i != at).map(|i| of(figures[i])).collect();
    let typical = evidence::median(&others).filter(|t| *t > 0.0)?;
    mine.is_finite().then_some(mine / typical)
}
