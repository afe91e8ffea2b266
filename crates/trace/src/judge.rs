//! From figures to a verdict about ranks that may be compared with each other.
//!
//! The order of the questions: does one rank stand out beyond noise? Do the waits in collectives
//! agree? Then, was it given more to do, or did it do the same more slowly? What no answer fits is
//! insufficient evidence.

use std::collections::BTreeSet;

use crate::collective::{self, Matched};
use crate::evidence::{self, Figures, Gap, MIN_STEPS};
use crate::kind;
use crate::rank::Axis;
use crate::step::RankProfile;
use crate::trace::{StepSource, Who};
use crate::verdict::Kind;

/// Of ranks that share a batch, a gap below this share of the peers' work is no finding.
const SHARED_BOUND: f64 = 0.10;
/// Of ranks with batches of their own: these differ a little all the time.
const OWN_BOUND: f64 = 0.15;
/// How many times the noise a gap must be.
const NOISE_BOUND: f64 = 4.0;
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
                kind::of_own_batches(profiles, figures, at, &mut found);
            } else {
                kind::of_shared_batch(profiles, figures, at, &mut found);
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
        || own_batches && kind::more_prefill(figures, at) && gap.relative() >= kind::LARGER - 1.0
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
