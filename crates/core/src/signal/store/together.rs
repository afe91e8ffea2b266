//! The series of the ranks of one member, put together: a server of four DP ranks has the requests of all of them.

use std::collections::BTreeMap;

use crate::signal::catalog::{Entry, Fold, Kind};
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// A course of one signal, in the order of time.
pub type Points = Vec<(Time, f64)>;

/// One course of the series of one member's ranks, all of one signal and source. TP peers repeat what their DP rank
/// says: of them the longest counts. DP ranks are added up or averaged, as the signal folds, while all of
/// them are known.
pub fn together(ranks: BTreeMap<Rank, Points>, entry: Option<&Entry>) -> Points {
    let mut of_dp: BTreeMap<Option<u16>, Points> = BTreeMap::new();
    for (rank, points) in ranks {
        let longest = of_dp.entry(rank.get(Axis::Dp)).or_default();
        if points.len() > longest.len() {
            *longest = points;
        }
    }
    if of_dp.len() < 2 {
        return of_dp.into_values().next().unwrap_or_default();
    }
    let (is_rate, is_sum) = entry.map_or((false, true), |e| (e.kind == Kind::Counter, e.fold == Fold::Sum));
    let mut times: Vec<Time> = of_dp.values().flatten().map(|point| point.0).collect();
    times.sort_unstable();
    times.dedup();
    let share = if is_sum { 1.0 } else { 1.0 / of_dp.len() as f64 };
    let at = |time: Time| -> Option<f64> {
        of_dp.values().map(|points| if is_rate { up_to(points, time) } else { since(points, time) }).sum()
    };
    times.into_iter().filter_map(|time| Some((time, at(time)? * share))).collect()
}

/// A gauge holds until it is told again.
fn since(points: &Points, time: Time) -> Option<f64> {
    points.partition_point(|point| point.0 <= time).checked_sub(1).map(|i| points[i].1)
}

/// A rate holds since it was told before.
fn up_to(points: &Points, time: Time) -> Option<f64> {
    points.get(points.partition_point(|point| point.0 < time)).map(|point| point.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::catalog::{self, BUILT_IN};
    use crate::signal::sample::Signal;

    fn of(signal: Signal, ranks: &[(Rank, &[(u32, f64)])]) -> Vec<(u32, f64)> {
        let at = |s: u32| Time::from_epoch_s(f64::from(s));
        let ranks = ranks
            .iter()
            .map(|(rank, points)| (*rank, points.iter().map(|(s, value)| (at(*s), *value)).collect()));
        let points = together(ranks.collect(), BUILT_IN.get(usize::from(signal.0)));
        points.into_iter().map(|(t, value)| (t.signed_s_since(at(0)).round() as u32, value)).collect()
    }

    #[test]
    fn requests_of_dp_ranks_are_added_up_shares_are_averaged_and_tp_peers_count_once() {
        let ranks: &[(Rank, &[(u32, f64)])] =
            &[(Rank::dp(0), &[(1, 2.0), (3, 4.0)]), (Rank::dp(1), &[(2, 10.0), (3, 20.0)])];
        assert_eq!(of(catalog::RUNNING_REQS, ranks), [(2, 12.0), (3, 24.0)]);
        assert_eq!(of(catalog::KV_USAGE, ranks), [(2, 6.0), (3, 12.0)]);
        let peers: &[(Rank, &[(u32, f64)])] = &[
            (Rank::dp(0).with(Axis::Tp, 0), &[(1, 2.0), (2, 3.0)]),
            (Rank::dp(0).with(Axis::Tp, 1), &[(1, 2.0)]),
        ];
        assert_eq!(of(catalog::RUNNING_REQS, peers), [(1, 2.0), (2, 3.0)]);
    }

    #[test]
    fn a_rate_holds_since_it_was_told_before() {
        let ranks: &[(Rank, &[(u32, f64)])] =
            &[(Rank::dp(0), &[(2, 5.0), (4, 6.0)]), (Rank::dp(1), &[(1, 1.0), (3, 2.0), (5, 3.0)])];
        assert_eq!(of(catalog::ADMISSIONS, ranks), [(1, 6.0), (2, 7.0), (3, 8.0), (4, 9.0)]);
    }
}
