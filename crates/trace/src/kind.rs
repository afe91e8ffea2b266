//! Which kind of difference: was the rank that stands out given more to do, or did it do the same
//! more slowly? What neither fits is insufficient evidence.

use crate::evidence::{self, Figures, Gap, MIN_STEPS, SameCalls};
use crate::judge::Judged;
use crate::kernel::Family;
use crate::rank::Axis;
use crate::step::RankProfile;
use crate::trace::StepKind;
use crate::verdict::Kind;

/// A factor that no noise explains: batches, grids, launches.
pub const LARGER: f64 = 1.25;
/// Batches within this factor are equal.
const EQUAL: f64 = 1.15;

/// Whether far more of its steps are prefill than its peers'.
pub fn more_prefill(figures: &[&Figures], at: usize) -> bool {
    let others: Vec<f64> = (0..figures.len()).filter(|&i| i != at).map(|i| figures[i].extend_share).collect();
    let steps = figures.iter().map(|f| f.steps).min().unwrap_or(0);
    steps >= 8 && figures[at].extend_share - evidence::median(&others).unwrap_or(1.0) >= 0.3
}

/// Of ranks that share a batch.
pub fn of_shared_batch(profiles: &[&RankProfile], figures: &[&Figures], at: usize, found: &mut Judged) {
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

/// Of ranks with batches of their own.
pub fn of_own_batches(profiles: &[&RankProfile], figures: &[&Figures], at: usize, found: &mut Judged) {
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
