//! The kind of a difference in GPU work among ranks with batches of their own (DP): more to do, or slower.
//!
//! The steps of a window follow each other within tens of milliseconds and share nearly the same batch, so
//! more of them do not make a difference of batches more certain: a window is one draw of what random
//! arrival puts on each rank. A batch of `n` requests that arrived at random deviates by `sqrt(n)`
//! (Poisson), the sum of their contexts, which deviate by 0.7 of their mean, by `sqrt(1.5 n)`. Only
//! growth beyond [`BEYOND_CHANCE`] such deviations is a finding. What kernels alone say needs
//! [`enough::FEWEST`] steps.

use super::{Diagnosis, EQUAL, LARGER, batch_ratio, batch_size, launch_ratio, more_prefill, ratio_to_peers};
use crate::enough;
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
    let launches = launch_ratio(stats, at);
    let (batch_chance, context_chance) = by_chance(batch_size(stats, at), stats.len() - 1);
    let fewest = stats.iter().map(|f| f.steps).min().unwrap_or(0);
    let mut larger = Vec::new();
    let mut by_chance = Vec::new();
    if let Some((r, batches)) = batch.filter(|(r, _)| (LARGER..batch_chance).contains(r)) {
        by_chance.push(format!(
            "its {batches} are {r:.1} times its peers', but random arrival alone makes up to {batch_chance:.1} times"
        ));
    }
    if let Some((r, batches)) = batch.filter(|(r, _)| *r >= LARGER.max(batch_chance)) {
        larger.push(format!("its {batches} are {r:.1} times its peers'"));
    }
    if more_prefill(stats, at) {
        let mine = stats[at].extend_share * 100.0;
        larger.push(format!("{mine:.0} % of its steps are prefill, far more than on its peers"));
    }
    if let Some(r) = launches.filter(|r| *r >= LARGER) {
        larger.push(format!("it launches {r:.1} times its peers' kernels in a step of the same kind"));
    }
    if let Some(g) = same.width.or(same.grid).filter(|g| batch.is_none() && *g >= LARGER) {
        if g >= batch_chance {
            larger.push(format!("its launches are {g:.1} times as wide as its peers'"));
        } else {
            by_chance.push(format!(
                "its launches are {g:.1} times as wide as its peers', but random arrival alone makes up to {batch_chance:.1} times"
            ));
        }
    }
    let equal = match batch {
        Some((r, _)) => (1.0 / EQUAL..=EQUAL).contains(&r),
        None => same.grid.is_some_and(|g| (0.98..=1.02).contains(&g)),
    };
    let uniform = uniform_factor(&same, &found.gap);
    if larger.is_empty() && fewest < enough::FEWEST {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.append(&mut by_chance);
        found.reasons.push(format!(
            "{fewest} steps may show a passing moment of {rank}: {} on every rank would tell more",
            enough::FEWEST
        ));
        return;
    }
    if larger.is_empty() && !by_chance.is_empty() {
        found.kind = Kind::InsufficientEvidence;
        found.reasons.append(&mut by_chance);
        return;
    }
    match (uniform, larger.is_empty()) {
        (Some(f), true) if equal => {
            found.kind = Kind::SlowRank;
            found.reasons.push(format!("all its kernels take about {f:.2} times as long at equal batches"));
            if batch.is_none() {
                found.doubts += 1;
            }
        }
        (Some(f), false) if f > batch.map_or(1.0, |(r, _)| r).max(1.2) * 1.1 => {
            found.kind = Kind::InsufficientEvidence;
            found.reasons.append(&mut larger);
            found
                .reasons
                .push(format!("but all its kernels are {f:.2} times slower, more than that explains"));
        }
        (_, false) => {
            found.kind = Kind::UnevenWork;
            found.reasons.append(&mut larger);
            // Requests pile up behind a host that stands still.
            if let Some(p) = found.host.and_then(|h| h.pauses).filter(|p| p.ms > found.gap.ms) {
                found.kind = Kind::InsufficientEvidence;
                found.reasons.push(format!(
                    "its GPU also stood idle for {:.1} ms at once, which is {:.1} ms a step and more than its batches cost: they may have piled up behind that, and more steps would tell",
                    p.longest_ms, p.ms
                ));
            }
        }
        (None, true) if grows_only(&same, &found.gap) && growth(stats, at) < context_chance => {
            found.kind = Kind::InsufficientEvidence;
            found.reasons.push(format!(
                "kernels whose cost grows with requests and their context take {:.1} times as long, but random arrival alone makes up to {context_chance:.1} times",
                growth(stats, at)
            ));
        }
        (None, true)
            if grows_only(&same, &found.gap) && found.gap.ms < OF_STEP * step_ms(profiles, stats, at) =>
        {
            found.kind = Kind::InsufficientEvidence;
            found.reasons.push(format!(
                "{rank}'s kernels take longer, but by less than {:.0} % of its peers' steps: nobody loses time by it",
                OF_STEP * 100.0
            ));
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
                "{rank} needs more per step, but neither are its batches known to be larger nor are all its kernels slower by one factor at batches known to be equal"
            ));
        }
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
