//! Checks steps that were found by a period, without annotations.

use std::collections::HashMap;

use crate::profile::RankProfile;
use crate::stats::MIN_STEPS;
use crate::step::{StepKind, StepSource};

/// The share of the steps of a rank that must have about as many kernels as the others of their kind.
const MIN_FITTING: f64 = 0.9;

/// What speaks against the period of the ranks without annotations, if anything does: steps of one kind
/// run about equally many kernels, on each rank and on all of them, so a period that cuts elsewhere shows.
pub(crate) fn misfit(profiles: &[&RankProfile]) -> Option<String> {
    let counted: Vec<&&RankProfile> = profiles.iter().filter(|p| p.source == StepSource::Period).collect();
    let mut usual: HashMap<StepKind, (u32, u32)> = HashMap::new();
    for p in &counted {
        let mut fitting = 0;
        for kind in StepKind::ALL {
            let rows: Vec<i64> =
                p.steps.iter().filter(|s| s.kind == kind).map(|s| i64::from(s.rows)).collect();
            let Some(typical) = middle(&rows) else { continue };
            fitting += rows.iter().filter(|&&n| 4 * n >= 3 * typical && 4 * n <= 5 * typical).count();
            if rows.len() >= MIN_STEPS {
                let typical = u32::try_from(typical).unwrap_or(u32::MAX);
                let range = usual.entry(kind).or_insert((typical, typical));
                *range = (range.0.min(typical), range.1.max(typical));
            }
        }
        let share = fitting as f64 / p.steps.len().max(1) as f64;
        if share < MIN_FITTING {
            return Some(format!(
                "the period that stands for {}'s steps fits badly: {:.0} % of them run another number of kernels than usual",
                p.rank,
                100.0 * (1.0 - share)
            ));
        }
    }
    let apart = usual.values().find(|(low, high)| 2 * high > 3 * low)?;
    Some(format!(
        "the period that stands for a step fits badly: it has {} kernels on one rank and {} on another",
        apart.0, apart.1
    ))
}

fn middle(values: &[i64]) -> Option<i64> {
    let mut sorted = values.to_vec();
    let at = sorted.len() / 2;
    (!sorted.is_empty()).then(|| *sorted.select_nth_unstable(at).1)
}
