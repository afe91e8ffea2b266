//! What changed since a capture of the same ranks at a time without trouble: of the blamed rank, or of all ranks where
//! all of them changed alike.
//!
//! Kernels are compared per step and family. Host time is compared only under the same activities of the
//! profiler, which slow hosts, and neither is where the steps of the two captures are delimited by different
//! kernels. One capture is one draw of the load, so nothing here blames a rank: the change stands beside the
//! verdict, with the growth of the batch, which may explain it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::Family;
use crate::ms::Ms;
use crate::profile::RankProfile;
use crate::rank::RankId;
use crate::split::Split;
use crate::stats::{RankStats, median, same_calls};
use crate::step::{MIN_STEPS, StepSource};

/// Steps of all ranks that take this many times as long have changed beyond what the load does from window to window.
const ALL_LONGER: f64 = 1.5;
/// Batches within this factor are equal.
const EQUAL: f64 = 1.15;
/// A change of a family, or of the host, below this share of the step before is not told.
const OF_STEP: f64 = 0.02;
/// The most parts that a sentence names.
const MOST_NAMED: usize = 3;

/// What changed since the baseline. Times are milliseconds per step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Since {
    /// The rank; `null` where it is all of them, as the median of each figure.
    pub rank: Option<RankId>,
    /// Where a step's time went before.
    pub before_ms: Split,
    /// And where it goes now.
    pub now_ms: Split,
    /// Kernel time now beyond that before, by family.
    pub families_ms: BTreeMap<Family, f64>,
    /// Whether host times may be compared: both captures recorded the same activities.
    pub is_host_comparable: bool,
    /// The factor by which batches are larger now; `null` where nothing tells.
    pub batch_growth: Option<f64>,
}

impl Since {
    /// One sentence, as in: Since the baseline DP2's steps take 24.7 ms instead of 3.13: host time +20.8 ms,
    /// attention +0.15 ms; its batches are 7.6 times as large.
    pub fn sentence(&self) -> String {
        let whose =
            self.rank.map_or_else(|| "the steps of all ranks".to_owned(), |rank| format!("{rank}'s steps"));
        let total = |split: &Split| if self.is_host_comparable { split.wall() } else { split.work };
        let (before, now) = (total(&self.before_ms), total(&self.now_ms));
        let what = if self.is_host_comparable { "take" } else { "need GPU work of" };
        let mut parts: Vec<(&str, f64)> = self
            .families_ms
            .iter()
            .filter(|(family, _)| **family != Family::Communication)
            .map(|(family, ms)| (family.name(), *ms))
            .collect();
        if self.is_host_comparable {
            parts.push(("host time", self.now_ms.host - self.before_ms.host));
            parts.push(("waiting in collectives", self.now_ms.collectives - self.before_ms.collectives));
        }
        parts.retain(|(_, ms)| ms.abs() >= OF_STEP * before);
        parts.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        let told = |(part, ms): &(&str, f64)| {
            format!("{part} {}{}", if *ms < 0.0 { "-" } else { "+" }, Ms(ms.abs()))
        };
        let named: Vec<String> = parts.iter().take(MOST_NAMED).map(told).collect();
        let named = if named.is_empty() { "nothing of it changed".to_owned() } else { named.join(", ") };
        let batches = match self.batch_growth {
            Some(growth) if (1.0 / EQUAL..=EQUAL).contains(&growth) => "at equal batches".to_owned(),
            Some(growth) => format!("batches are {growth:.1} times as large"),
            None => "whether batches grew is not told".to_owned(),
        };
        format!(
            "Since the baseline {whose} {what} {} instead of {}: {named}; {batches}.",
            Ms(now),
            Ms(before)
        )
    }
}

/// What changed on the blamed rank; without one, on all ranks, if the steps of each take [`ALL_LONGER`] times
/// as long at equal batches.
pub(crate) fn since(
    before: &[RankProfile],
    profiles: &[RankProfile],
    stats: &[RankStats],
    blamed: Option<RankId>,
) -> Option<Since> {
    let before_of = |rank: RankId| before.iter().find(|b| b.rank == rank);
    if let Some(rank) = blamed {
        let at = profiles.iter().position(|p| p.rank == rank)?;
        return change(&profiles[at], &stats[at], before_of(rank)?);
    }
    let changes: Option<Vec<Since>> = profiles
        .iter()
        .zip(stats)
        .filter(|(p, _)| p.rows > 0)
        .map(|(p, s)| change(p, s, before_of(p.rank)?))
        .collect();
    let changes = changes.filter(|all| all.len() > 1)?;
    let is_longer = |c: &Since| c.is_host_comparable && c.now_ms.wall() >= ALL_LONGER * c.before_ms.wall();
    let is_equal = |c: &Since| c.batch_growth.is_some_and(|growth| growth <= EQUAL);
    if !changes.iter().all(|c| is_longer(c) && is_equal(c)) {
        return None;
    }
    let middle =
        |of: &dyn Fn(&Since) -> f64| median(&changes.iter().map(of).collect::<Vec<_>>()).unwrap_or(0.0);
    let family = |family: Family| (family, middle(&|c| c.families_ms.get(&family).copied().unwrap_or(0.0)));
    Some(Since {
        rank: None,
        before_ms: Split::from_parts(|part| middle(&|c| c.before_ms.part(part))),
        now_ms: Split::from_parts(|part| middle(&|c| c.now_ms.part(part))),
        families_ms: Family::ALL.into_iter().map(family).filter(|(_, ms)| *ms != 0.0).collect(),
        is_host_comparable: true,
        batch_growth: median(&changes.iter().filter_map(|c| c.batch_growth).collect::<Vec<_>>()),
    })
}

fn change(now: &RankProfile, stats: &RankStats, before: &RankProfile) -> Option<Since> {
    let then = RankStats::new(before);
    let told = |p: &RankProfile, s: &RankStats| p.source != StepSource::PerSecond && s.steps >= MIN_STEPS;
    if !told(now, stats) || !told(before, &then) || now.period != before.period {
        return None;
    }
    let of = |s: &RankStats, family: &Family| s.families.get(family).copied().unwrap_or(0.0);
    let families = Family::ALL.into_iter().map(|family| (family, of(stats, &family) - of(&then, &family)));
    let requests = stats.requests.zip(then.requests.filter(|n| *n > 0.0)).map(|(now, then)| now / then);
    Some(Since {
        rank: Some(now.rank),
        before_ms: then.split,
        now_ms: stats.split,
        families_ms: families.filter(|(_, ms)| *ms != 0.0).collect(),
        is_host_comparable: now.activities == before.activities,
        batch_growth: requests.or_else(|| same_calls(&[now, before], 0).width),
    })
}
