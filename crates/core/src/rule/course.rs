//! The recent course of a blamed member against its peers, out of the store: what the onset of a
//! rule without a detector of its own is found in.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::finding::Side;
use crate::onset::{self, Manner, Onset, Strand};
use crate::signal::catalog;
use crate::signal::sample::Signal;
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// How far back an onset is looked for.
const BACK: Duration = Duration::from_secs(120);
/// Distance of two points of the course.
const STEP: Duration = Duration::from_secs(1);

/// From when on the store is asked for the course that ends `now`.
pub(super) fn looked_back_to(settled: Time, now: Time) -> Time {
    (now - BACK).max(settled)
}

/// Since when `member` of `group` left its peers on `signal`, as far as the store remembers; not
/// before `settled`.
pub(super) fn onset_of(
    store: &SignalStore,
    group: &Labels,
    signal: Signal,
    member: &Labels,
    side: Side,
    (settled, now): (Time, Time),
) -> Option<Onset> {
    let since = looked_back_to(settled, now);
    // Sources name a rank by more or fewer axes: what they say of one member belongs together.
    let mut members: BTreeMap<Labels, BTreeMap<_, Vec<(Time, f64)>>> = BTreeMap::new();
    for e in store.evidence(group, since).filter(|e| e.signal == signal) {
        let labels = e.rank.labels().pick(member.0.keys().map(|name| &**name));
        if labels.0.len() == member.0.len() {
            members.entry(labels).or_default().entry((e.source, e.rank)).or_default().push((e.at, e.value));
        }
    }
    // Of several series the one with the most samples tells the course best.
    let longest = |series: BTreeMap<_, Vec<_>>| series.into_values().max_by_key(Vec::len);
    let series: Vec<(bool, Vec<(Time, f64)>)> = members
        .into_iter()
        .filter_map(|(labels, series)| Some((labels == *member, longest(series)?)))
        .collect();
    // A speed changes at once; loads, queues and caches fill.
    let manner = if signal == catalog::GEN_THROUGHPUT { Manner::Jumps } else { Manner::Accumulates };
    let (times, values): (Vec<Time>, Vec<f64>) = differences(&series, since, now).into_iter().unzip();
    onset::locate(&times, &[Strand { values, manner, memory: None, weight: 1.0 }], side)
}

/// Step by step: the blamed member's value less the mean of its peers', each as of then, on a scale
/// on which counts have one variance. Begins where every member has spoken.
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
