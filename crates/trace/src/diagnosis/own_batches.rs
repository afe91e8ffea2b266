//! The kind of a difference in GPU work among ranks with batches of their own (DP): more to do, or slower.
//!
//! The steps of a window follow each other within tens of milliseconds and share nearly the same batch, so
//! more of them do not make a difference of batches more certain: a window is one draw of what random
//! arrival puts on each rank. A batch of `n` requests that arrived at random deviates by `sqrt(n)`
//! (Poisson), the sum of their contexts, which deviate by 0.7 of their mean, by `sqrt(1.5 n)`. Only
//! growth beyond [`BEYOND_CHANCE`] such deviations is a finding. What kernels alone say needs
//! [`enough::FEWEST`] steps.

use super::{Diagnosis, EQUAL, LARGER, batch_ratio, batch_size, launch_ratio, more_prefill, ratio_to_peers};
use crate::enough::{self, TooFewSteps};
use crate::kernel::Family;
use crate::profile::RankProfile;
use crate::stats::{Gap, RankStats, SameCalls, median, same_calls};
use crate::verdict::Kind;

/// Growth below this many deviations of random arrival is no finding.
const BEYOND_CHANCE: f64 = 3.0;
/// The size of a batch that nothing tells.
const UNTOLD_BATCH: f64 = 12.0;

/// Longer kernels that are a smaller share of the peers' step cost nobody time.
const OF_STEP: f64 = 0.05;
/// Recording CPU activity makes steps about this many times as long (two to four were measured).
const CPU_ACTIVITY: f64 = 3.0;

/// The peers' step, milliseconds, without what recording CPU activity adds to it.
fn step_ms(profiles: &[&RankProfile], stats: &[&RankStats], at: usize) -> f64 {
    let wall = |i: usize| {
        let slowed = if profiles[i].activities.cpu { CPU_ACTIVITY } else { 1.0 };
        stats[i].wall_ms / slowed
    };
    median(&(0..stats.len()).filter(|&i| i != at).map(wall).collect::<Vec<_>>()).unwrap_or(0.0)
}

/// The largest growth of batches, and of contexts in equal batches, that random arrival explains where the
/// `peers` have batches of `n` requests.
fn by_chance(n: Option<f64>, peers: usize) -> (f64, f64) {
    let n = n.unwrap_or(UNTOLD_BATCH).max(1.0);
    let one = (1.0 + 1.0 / peers.max(1) as f64) / n;
    (1.0 + BEYOND_CHANCE * one.sqrt(), 1.0 + BEYOND_CHANCE * (1.5 * one).sqrt())
}

/// What shows that a rank has larger batches than its peers, a sentence each.
#[derive(Debug, Default)]
struct LargerBatches {
    /// Beyond what random arrival explains.
    shown: Vec<String>,
    /// Within it.
    by_chance: Vec<String>,
}

impl LargerBatches {
    /// Of rank `at`, whose batches may be up to `chance` times its peers' by random arrival.
    fn of(stats: &[&RankStats], at: usize, same: &SameCalls, chance: f64) -> Self {
        let mut found = Self::default();
        let batch = batch_ratio(stats, at);
        if let Some((r, batches)) = batch.filter(|(r, _)| *r >= LARGER) {
            found.add(r, chance, format!("its {batches} are {r:.1} times its peers'"));
        }
        if more_prefill(stats, at) {
            let mine = stats[at].extend_share * 100.0;
            found.shown.push(format!("{mine:.0} % of its steps are prefill, far more than on its peers"));
        }
        if let Some(r) = launch_ratio(stats, at).filter(|r| *r >= LARGER) {
            let more = format!("it launches {r:.1} times its peers' kernels in a step of the same kind");
            found.shown.push(more);
        }
        if let Some(r) = same.width.or(same.grid).filter(|r| batch.is_none() && *r >= LARGER) {
            found.add(r, chance, format!("its launches are {r:.1} times as wide as its peers'"));
        }
        found
    }

    fn add(&mut self, ratio: f64, chance: f64, what: String) {
        if ratio >= chance {
            self.shown.push(what);
        } else {
            self.by_chance.push(format!("{what}, but random arrival alone makes up to {chance:.1} times"));
        }
    }
}

/// The kind of the difference among ranks with batches of their own.
pub fn kind_with_own_batches(
    profiles: &[&RankProfile],
    stats: &[&RankStats],
    at: usize,
    found: &mut Diagnosis,
) {
    let rank = profiles[at].rank;
    let same = same_calls(profiles, at);
    let batch = batch_ratio(stats, at);
    let (batch_chance, context_chance) = by_chance(batch_size(stats, at), stats.len() - 1);
    let LargerBatches { shown, by_chance } = LargerBatches::of(stats, at, &same, batch_chance);
    if !shown.is_empty() {
        return with_larger_batches(shown, uniform_factor(&same, &found.gap), batch.map(|(r, _)| r), found);
    }
    let fewest = stats.iter().map(|f| f.steps).min().unwrap_or(0);
    let has_few_steps = fewest < enough::FEWEST;
    if has_few_steps || !by_chance.is_empty() {
        found.conclude(Kind::InsufficientEvidence, by_chance);
        found.too_few = has_few_steps.then_some(TooFewSteps { steps: fewest, needed: enough::FEWEST });
        return;
    }
    let has_equal_batches = match batch {
        Some((r, _)) => (1.0 / EQUAL..=EQUAL).contains(&r),
        None => same.grid.is_some_and(|g| (0.98..=1.02).contains(&g)),
    };
    let (kind, reason) = match uniform_factor(&same, &found.gap) {
        Some(factor) if has_equal_batches => {
            found.doubts += usize::from(batch.is_none());
            (Kind::SlowRank, format!("all its kernels take about {factor:.2} times as long at equal batches"))
        }
        None if grows_only(&same, &found.gap) => {
            let growth = growth(stats, at);
            if growth < context_chance {
                let reason = format!(
                    "kernels whose cost grows with requests and their context take {growth:.1} times as long, but random arrival alone makes up to {context_chance:.1} times"
                );
                (Kind::InsufficientEvidence, reason)
            } else if found.gap.ms < OF_STEP * step_ms(profiles, stats, at) {
                let reason = format!(
                    "{rank}'s kernels take longer, but by less than {:.0} % of its peers' steps: nobody loses time by it",
                    OF_STEP * 100.0
                );
                (Kind::InsufficientEvidence, reason)
            } else {
                found.doubts += usize::from(batch.is_none());
                let reason = "only kernels whose cost grows with requests and their context take longer";
                (Kind::UnevenWork, reason.to_owned())
            }
        }
        _ => {
            let reason = format!(
                "{rank} needs more per step, but neither are its batches known to be larger nor are all its kernels slower by one factor at batches known to be equal"
            );
            (Kind::InsufficientEvidence, reason)
        }
    };
    found.conclude(kind, vec![reason]);
}

/// The kind where batches are known to be larger, by `reasons`: `ratio` times, where that is known, while all
/// kernels take `uniform` times as long, where they agree.
fn with_larger_batches(
    reasons: Vec<String>,
    uniform: Option<f64>,
    ratio: Option<f64>,
    found: &mut Diagnosis,
) {
    if let Some(factor) = uniform.filter(|f| *f > ratio.unwrap_or(1.0).max(1.2) * 1.1) {
        found.conclude(Kind::InsufficientEvidence, reasons);
        found
            .reasons
            .push(format!("but all its kernels are {factor:.2} times slower, more than that explains"));
        return;
    }
    found.conclude(Kind::UnevenWork, reasons);
    // Requests pile up behind a host that stands still.
    if let Some(p) = found.host.and_then(|h| h.pauses).filter(|p| p.ms > found.gap.ms) {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.push(format!(
            "its GPU also stood idle for {:.1} ms at once, which is {:.1} ms a step and more than its batches cost: they may have piled up behind that, and more steps would tell",
            p.longest_ms, p.ms
        ));
    }
}

/// The factor by which all kernels are slower, if it is about the same for all of them.
fn uniform_factor(same: &SameCalls, gap: &Gap) -> Option<f64> {
    let (all, steady) = (same.all?, same.steady?);
    let wanted = 1.0 + gap.relative_within().unwrap_or(0.0);
    let close = |f: f64| (f - 1.0) >= 0.6 * (wanted - 1.0);
    (same.agreeing >= 0.7 && all >= 1.05 && close(all) && close(steady)).then_some(all)
}

/// Whether the gap comes from kernels whose cost grows with the batch, while the others are as fast
/// as on the peers.
fn grows_only(same: &SameCalls, gap: &Gap) -> bool {
    let grown: f64 = gap.families.iter().filter(|(f, _)| f.grows_with_work()).map(|(_, ms)| ms).sum();
    let wanted = gap.relative_within().unwrap_or(0.0);
    grown >= 0.6 * gap.ms && same.steady.is_some_and(|s| s - 1.0 <= 0.35 * wanted)
}

/// The time of the kernels that grow most with requests and their context, over that of the peers.
fn growth(stats: &[&RankStats], at: usize) -> f64 {
    let growing = Family::ALL.into_iter().filter(|family| family.grows_with_work());
    let time = |family: Family| {
        ratio_to_peers(stats, at, |f| f.families.get(&family).copied().unwrap_or(f64::NAN))
            .map(|ratio| (ratio, stats[at].families.get(&family).copied().unwrap_or(0.0)))
    };
    growing.filter_map(time).max_by(|a, b| a.1.total_cmp(&b.1)).map_or(1.0, |(ratio, _)| ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_arrival_explains_less_of_larger_batches() {
        let (of_8, contexts) = by_chance(Some(8.0), 3);
        assert!((of_8 - 2.22).abs() < 0.01 && (contexts - 2.5).abs() < 0.01, "{of_8} {contexts}");
        assert!(by_chance(Some(200.0), 3).0 < 1.3);
        assert_eq!(by_chance(None, 3), by_chance(Some(UNTOLD_BATCH), 3));
    }
}
