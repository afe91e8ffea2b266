//! The onset of a firing and the numbers that show it, from the samples that the store remembers.
//!
//! The detectors of departures and of factors locate their onsets themselves; for every other statistic
//! the recent course of the blamed member against its peers is rebuilt here, and [`onset::locate`] searches
//! for the break.

use std::collections::BTreeMap;
use std::time::Duration;

use super::change::Change;
use super::compiled::CompiledRule;
use super::group::Group;
use crate::finding::{Finding, Side, Statistic};
use crate::onset::{self, MemberCourse, Onset, QuantityKind};
use crate::signal::catalog;
use crate::signal::sample::Signal;
use crate::signal::store::SignalStore;
use crate::signal::store::together::{Points, together};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;

/// How far back an onset is searched for.
const BACK: Duration = Duration::from_secs(120);
/// Distance of two points of the course.
const STEP: Duration = Duration::from_secs(1);

/// A change whose finding, if it has one, has the onset and the evidence that `store` shows.
pub(super) fn with_evidence(
    mut change: Change,
    compiled: &CompiledRule,
    group: &Group,
    store: &SignalStore,
) -> Change {
    let (now, since) = (change.at, change.since);
    let (Some(finding), Some(numbers)) = (&mut change.finding, &change.numbers) else { return change };
    let condition = &compiled.rule.trigger.conditions[numbers.condition];
    let locates_itself = matches!(condition.statistic, Statistic::Departure)
        || condition.statistic == Statistic::Factors && finding.impact.is_some();
    if !locates_itself {
        let (signal, span) = (condition.signal, (group.last_cleared, now));
        let found = onset_of(store, &group.labels, signal, &finding.rank, finding.side, span);
        match found.filter(|o| o.at <= since) {
            Some(onset) => (finding.onset, finding.onset_error_s) = (onset.at, onset.error_s),
            // It began at the latest when the trigger began to hold; the samples do not show how much
            // sooner.
            None => {
                let from = earliest(group.last_cleared, now);
                finding.onset_error_s = since.signed_s_since(from).max(1.0);
            }
        }
    }
    finding.add_numbers(evidence_of(finding, &condition.signal_name));
    change
}

/// The numbers in a sentence: `load of DP2: 61, its peers 20 19 21`.
fn evidence_of(finding: &Finding, signal: &str) -> Option<String> {
    let blamed = finding.members.iter().find(|m| m.rank == finding.rank)?;
    let mut text = format!("{signal} of {}: {}, its peers", rank_name(&finding.rank), short(blamed.value));
    for m in finding.members.iter().filter(|m| m.rank != finding.rank).take(16) {
        text.push(' ');
        text.push_str(&short(m.value));
    }
    Some(text)
}

fn short(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.3}") }
}

/// The earliest time at which an onset is searched for: none lies before the group last cleared.
fn earliest(last_cleared: Time, now: Time) -> Time {
    (now - BACK).max(last_cleared)
}

/// Since when `member` of `group` has left its peers on `signal`, as far as the store remembers; not
/// before `last_cleared`.
fn onset_of(
    store: &SignalStore,
    group: &Labels,
    signal: Signal,
    member: &Labels,
    side: Side,
    (last_cleared, now): (Time, Time),
) -> Option<Onset> {
    let since = earliest(last_cleared, now);
    // Sources name a rank by more or fewer axes, and a server has several; the series of one member are collected here.
    let mut members: BTreeMap<Labels, BTreeMap<_, BTreeMap<_, Points>>> = BTreeMap::new();
    for (labels, series) in store.series_of_members(group, member, |of| of == signal, since) {
        let of_source = members.entry(labels).or_default().entry(series.source).or_default();
        of_source.insert(series.rank, series.samples.into());
    }
    let entry = catalog::BUILT_IN.get(usize::from(signal.0));
    // Of several sources of one member, the one with the most samples shows the course best.
    let longest = |sources: BTreeMap<_, BTreeMap<_, Points>>| {
        sources.into_values().map(|ranks| together(ranks, entry)).max_by_key(Vec::len)
    };
    let series: Vec<(bool, Points)> = members
        .into_iter()
        .filter_map(|(labels, sources)| Some((labels == *member, longest(sources)?)))
        .collect();
    // A speed changes at once; loads, queues and caches fill.
    let quantity =
        if signal == catalog::GEN_THROUGHPUT { QuantityKind::Jumps } else { QuantityKind::Accumulates };
    let (times, values): (Vec<Time>, Vec<f64>) = differences(&series, since, now).into_iter().unzip();
    let onset = onset::locate(&times, &[MemberCourse { values, quantity, memory: None, weight: 1.0 }], side)?;
    let own = series.iter().find(|(is_blamed, _)| *is_blamed).map_or(&[][..], |(_, points)| points);
    Some(Onset { error_s: onset.error_s.max(0.5 * apart_s(own, onset.at)), ..onset })
}

/// The seconds between the two of `points` between which `at` lies: the values are held from one to the next, so what
/// began between them is seen with the later one.
fn apart_s(points: &[(Time, f64)], at: Time) -> f64 {
    let next = points.partition_point(|point| point.0 <= at);
    match (next.checked_sub(1).and_then(|last| points.get(last)), points.get(next)) {
        (Some(last), Some(next)) => next.0.signed_s_since(last.0),
        _ => 0.0,
    }
}

/// At each step, the blamed member's value less the mean of its peers' values as of then, on a scale
/// on which counts have a variance of one (Anscombe 1948). Begins where every member has a value.
fn differences(series: &[(bool, Vec<(Time, f64)>)], since: Time, now: Time) -> Vec<(Time, f64)> {
    let blamed = series.iter().filter(|(b, _)| *b).count();
    if blamed != 1 || series.len() < 2 {
        return Vec::new();
    }
    let value_at = |samples: &[(Time, f64)], t: Time| {
        let next = samples.partition_point(|s| s.0 <= t);
        next.checked_sub(1).map(|i| 2.0 * (samples[i].1.max(0.0) + 0.375).sqrt())
    };
    let peers = (series.len() - 1) as f64;
    let mut course = Vec::new();
    let mut t = since;
    while t <= now {
        let values: Option<Vec<(bool, f64)>> =
            series.iter().map(|(b, s)| value_at(s, t).map(|v| (*b, v))).collect();
        if let Some(values) = values {
            let own: f64 = values.iter().filter(|v| v.0).map(|v| v.1).sum();
            let others: f64 = values.iter().filter(|v| !v.0).map(|v| v.1).sum();
            course.push((t, own - others / peers));
        }
        t = t + STEP;
    }
    course
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::signal::catalog::Catalog;
    use crate::signal::fields::Fields;
    use crate::signal::sample::{Source, TargetId};
    use crate::signal::store::Bounds;
    use skewtrap_trace::rank::Rank;

    /// The onset of what DP1 shows from second 60 on, where ranks are read every so many seconds.
    fn onset_where_read_every(seconds: u32) -> Onset {
        let at = |s: u32| Time::from_epoch_s(1_000.0 + f64::from(s));
        let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
        store.add_target("server".into(), None);
        for s in (0..=80).step_by(seconds as usize) {
            for rank in 0..2 {
                let mut fields = Fields::default();
                fields.set(catalog::QUEUE_REQS, if rank == 1 && s >= 60 { 50.0 } else { 1.0 });
                store.record(TargetId(0), Rank::dp(rank), Source::Loads, &fields, at(s), at(s));
            }
        }
        let (group, member) = (Labels::default(), Rank::dp(1).labels());
        onset_of(&store, &group, catalog::QUEUE_REQS, &member, Side::High, (at(0), at(75))).expect("an onset")
    }

    #[test]
    fn what_is_held_from_one_reading_to_the_next_began_between_them() {
        let at = Time::from_epoch_s;
        let points: Vec<(Time, f64)> = [10.0, 13.0, 16.0, 17.0].map(|s| (at(s), 1.0)).into();
        assert_eq!([10.0, 12.9, 15.0, 16.5].map(|s| apart_s(&points, at(s))), [3.0, 3.0, 3.0, 1.0]);
        assert_eq!([9.0, 17.0].map(|s| apart_s(&points, at(s))), [0.0, 0.0], "none before, none after");
    }

    #[test]
    fn an_onset_is_known_to_half_the_time_between_two_readings() {
        for (every, least) in [(1, 0.5), (3, 1.5), (5, 2.5)] {
            let onset = onset_where_read_every(every);
            assert!(onset.error_s >= least, "{every}: {onset:?}");
        }
    }
}
