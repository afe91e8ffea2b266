//! The last minutes of the signals that rules watch, as the page draws them: a line for each rank.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use crate::signal::catalog;
use crate::signal::sample::{Signal, Source, TargetId};
use crate::signal::store::SignalStore;
use crate::status::{History, HistoryLine, Scope, resampled};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;
use skewtrap_trace::time::Time;

/// As far back as the store reaches; [`crate::status::ChartHistory`] adds what was before.
const DRAWN: Duration = Duration::from_secs(300);
const DRAWN_STEP: Duration = Duration::from_secs(2);
/// At most this many signals are drawn, the load first, the rest in the rules' order.
const DRAWN_SIGNALS: usize = 6;

/// The places of the servers that are asked about.
pub(super) fn places_of(core: &Core, scope: &Scope) -> Range<usize> {
    scope.places(core.servers.iter().map(|server| &server.name))
}

/// The last minutes of the load, and of whatever else a rule watches, on some servers; with `only`, the
/// lines of that signal alone.
pub(super) fn history_of(
    core: &Core,
    store: &SignalStore,
    scope: &Scope,
    only: Option<&str>,
    now: Time,
) -> Vec<History> {
    // The same times at every look, so that a value that was drawn stays where it is.
    let step = DRAWN_STEP.as_nanos() as i64;
    let now = Time::from_nanos(now.nanos() - now.nanos().rem_euclid(step));
    let axes_of = |place: usize| Axes::among(store.ranks_of(TargetId(place as u16)).iter());
    let places = places_of(core, scope);
    let servers: Vec<_> = places.map(|i| (i, &core.servers[i].name, axes_of(i))).collect();
    let watched = core.engine.rules().flat_map(|r| r.trigger.conditions.iter().map(|c| c.signal));
    let mut signals: Vec<Signal> = std::iter::once(catalog::LOAD).chain(watched).collect();
    let mut seen = BTreeSet::new();
    signals.retain(|s| seen.insert(*s));
    signals.truncate(DRAWN_SIGNALS);
    let lines = |signal| {
        let of = |(place, name, axes): &(usize, &Arc<str>, Axes)| {
            lines_of((TargetId(*place as u16), name), axes, signal, store, now)
        };
        servers.iter().flat_map(of).collect()
    };
    let drawn = signals.into_iter().map(|signal| {
        let (name, step_s) = (store.catalog().name_of(signal), DRAWN_STEP.as_secs_f64());
        History { signal: name.into(), end: now, step_s, lines: lines(signal) }
    });
    let mut drawn: Vec<History> = drawn.filter(|history| !history.lines.is_empty()).collect();
    // The others' names are still of use: they can be asked for.
    for history in drawn.iter_mut().filter(|history| only.is_some_and(|only| *history.signal != *only)) {
        history.lines = Vec::new();
    }
    drawn
}

/// A line per rank, from the best source that has it.
fn lines_of(
    (target, name): (TargetId, &Arc<str>),
    axes: &Axes,
    signal: Signal,
    store: &SignalStore,
    now: Time,
) -> Vec<HistoryLine> {
    let count = (DRAWN.as_secs() / DRAWN_STEP.as_secs()) as usize;
    let mut best: BTreeMap<_, (Source, Vec<(Time, f64)>)> = BTreeMap::new();
    for (rank, source, points) in store.lines_of(target, signal, now - DRAWN) {
        let mut points = points.peekable();
        if points.peek().is_none() {
            continue;
        }
        let line = best.entry(axes.distinguishing(rank.labels())).or_insert((source, Vec::new()));
        if source < line.0 {
            *line = (source, Vec::new());
        }
        if source == line.0 {
            line.1.extend(points);
        }
    }
    let line = |(rank, (_, points)): (Labels, (Source, Vec<(Time, f64)>))| HistoryLine {
        target: name.clone(),
        rank,
        values: resampled(points, now, DRAWN_STEP, count),
    };
    best.into_iter().map(line).collect()
}

/// The axes of a server on which all its ranks have the same index. `/v1/loads` does not name them,
/// `/metrics` does; without them, the numbers of both for one rank are shown together.
#[derive(Debug, Default)]
pub(super) struct Axes(BTreeSet<Arc<str>>);

impl Axes {
    /// A data-parallel rank is named even where there is only one.
    pub(super) fn among<'a>(ranks: impl Iterator<Item = &'a Labels>) -> Self {
        let mut seen: BTreeMap<&Arc<str>, BTreeSet<&LabelValue>> = BTreeMap::new();
        for (name, value) in ranks.flat_map(|rank| &rank.0) {
            seen.entry(name).or_default().insert(value);
        }
        let others = &Axis::ALL[1..];
        let is_axis = |name: &str| others.iter().any(|axis| axis.label() == name);
        let same = seen.into_iter().filter(|(name, values)| values.len() == 1 && is_axis(name));
        Self(same.map(|(name, _)| name.clone()).collect())
    }

    /// The labels that distinguish this rank from the others.
    pub(super) fn distinguishing(&self, mut rank: Labels) -> Labels {
        rank.0.retain(|name, _| !self.0.contains(name));
        rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_trace::rank::Rank;

    fn shown(ranks: &[Rank]) -> Vec<String> {
        let labels: Vec<Labels> = ranks.iter().map(|r| r.labels()).collect();
        let axes = Axes::among(labels.iter());
        let shown: BTreeSet<String> =
            labels.into_iter().map(|l| axes.distinguishing(l).to_string()).collect();
        shown.into_iter().collect()
    }

    #[test]
    fn a_rank_that_two_sources_name_differently_is_one_rank() {
        let full = |dp| Rank::dp(dp).with(Axis::Tp, 0).with(Axis::Pp, 0).with(Axis::Ep, 0);
        assert_eq!(shown(&[Rank::dp(0), Rank::dp(1), full(0), full(1)]), ["dp_rank=0", "dp_rank=1"]);
        assert_eq!(shown(&[Rank::dp(0), full(0)]), ["dp_rank=0"]);
    }

    #[test]
    fn an_axis_that_tells_ranks_apart_stays() {
        let ranks = [Rank::dp(0).with(Axis::Tp, 0), Rank::dp(0).with(Axis::Tp, 1)];
        assert_eq!(shown(&ranks), ["dp_rank=0 tp_rank=0", "dp_rank=0 tp_rank=1"]);
    }
}
