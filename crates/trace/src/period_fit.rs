//! Checks steps that were found by a period, without annotations.

use std::collections::HashMap;

use crate::collective::MatchedCollectives;
use crate::period::median;
use crate::profile::RankProfile;
use crate::step::{MIN_STEPS, StepKind, StepSource};

/// The largest share of a rank's steps that may be pieces of one.
const MOST_PIECES: f64 = 0.1;

/// Of so many steps of ranks that meet in collectives one may be counted on one rank and not on another.
const MOST_UNEVEN: usize = 20;

/// The share of the steps of a rank that must have about as many kernels as the others of their kind.
const MIN_FITTING: f64 = 0.9;

/// What speaks against the period of the ranks without annotations, if anything does: steps of one kind
/// run about equally many kernels, on each rank and on all of them, so a period that cuts elsewhere shows.
pub(crate) fn misfit(profiles: &[&RankProfile]) -> Option<String> {
    if let Some(why) = pieces(profiles) {
        return Some(why);
    }
    let counted: Vec<&&RankProfile> = profiles.iter().filter(|p| p.source == StepSource::Period).collect();
    let mut usual: HashMap<StepKind, (u32, u32)> = HashMap::new();
    for p in &counted {
        let mut fitting = 0;
        for kind in StepKind::ALL {
            let rows: Vec<i64> =
                p.steps.iter().filter(|s| s.kind == kind).map(|s| i64::from(s.rows)).collect();
            let Some(typical) = median(&rows) else { continue };
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

/// The same of ranks that meet in collectives: these lie in as many steps of each rank, but for
/// one at each end.
pub(crate) fn misfit_in_lockstep(profiles: &[&RankProfile], matched: &MatchedCollectives) -> Option<String> {
    let by_period = |i: &usize| profiles[*i].source == StepSource::Period;
    let steps = |i: usize| matched.ranks[i].steps;
    let most = (0..profiles.len()).filter(by_period).max_by_key(|&i| steps(i))?;
    let fewest = (0..profiles.len()).filter(by_period).min_by_key(|&i| steps(i))?;
    (steps(most) > steps(fewest) + 2 + steps(fewest) / MOST_UNEVEN).then(|| {
        format!(
            "the period that stands for a step fits badly: the same collectives lie in {} steps of {} and in {} of {}",
            steps(most),
            profiles[most].rank,
            steps(fewest),
            profiles[fewest].rank
        )
    })
}

/// Whether the period cuts steps to pieces: each step of a model runs its attention, so "steps" without any beside
/// such that have some, and with less than half of their kernels, are parts of them.
pub(crate) fn pieces(profiles: &[&RankProfile]) -> Option<String> {
    profiles.iter().filter(|p| p.source == StepSource::Period).find_map(|p| {
        let rows_where = |has_attention: bool| -> Vec<i64> {
            let of = |kind| matches!(kind, StepKind::Extend | StepKind::Decode);
            p.steps.iter().filter(|s| of(s.kind) == has_attention).map(|s| i64::from(s.rows)).collect()
        };
        let (whole, without) = (rows_where(true), rows_where(false));
        let share = without.len() as f64 / p.steps.len().max(1) as f64;
        let are_pieces = median(&without)? * 2 < median(&whole)? && share > MOST_PIECES;
        are_pieces.then(|| {
            format!(
                "the period that stands for {}'s steps cuts them to pieces: {:.0} % of them run no attention, and the \
                 others do; more steps, or CPU activity with its annotations, would tell them apart",
                p.rank,
                100.0 * share
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Step;
    use crate::rank::{Rank, RankId};
    use crate::trace::Activities;

    fn profile(steps: &[(StepKind, u32)]) -> RankProfile {
        let step = |&(kind, rows): &(StepKind, u32)| Step {
            start: 0,
            wall_ns: 1_000_000,
            busy_ns: 500_000,
            work_ns: 500_000,
            longest_gap_ns: 0,
            rows,
            launches: rows,
            kind,
            requests: None,
            tokens: None,
        };
        RankProfile {
            rank: RankId::Rank(Rank::dp(0)),
            epoch_ns: 0,
            window: (0, 1),
            rows: 1,
            host_pace_ns: None,
            knows_launches: true,
            activities: Activities::default(),
            busy_ns: 1,
            steps: steps.iter().map(step).collect(),
            source: StepSource::Period,
            period: None,
            kernels: Vec::new(),
            collectives: Vec::new(),
            streams: Vec::new(),
            world_size: None,
            notes: Vec::new(),
            partial: false,
        }
    }

    #[test]
    fn steps_without_attention_beside_such_with_some_are_pieces_of_steps() {
        use StepKind::{Decode, Extend, Step as Other};
        // As of a real window of three steps, by a kernel that runs twice in each.
        let cut = profile(&[(Decode, 135), (Other, 8), (Other, 8), (Decode, 135), (Other, 8)]);
        let why = misfit(&[&cut]).expect("it fits badly");
        assert!(why.contains("cuts them to pieces: 60 % of them run no attention"), "{why}");
        let whole = [
            vec![(Decode, 135), (Decode, 138), (Decode, 135), (Extend, 147)],
            // Nothing tells attention in the names of their kernels.
            vec![(Other, 135), (Other, 138), (Other, 135)],
            // Only that of its prefill steps has a name that nobody knows: they are as large as the others.
            vec![(Decode, 135), (Other, 150), (Decode, 135), (Other, 150)],
        ];
        for steps in whole {
            assert_eq!(misfit(&[&profile(&steps)]), None, "{steps:?}");
        }
    }
}
