//! What can be read from the store besides frames: the samples behind a firing, when ranks reported
//! their work, and what arrives from which source.

use std::time::Duration;

use serde::Serialize;

use super::SignalStore;
use crate::signal::catalog;
use crate::signal::sample::ShownBy;
use crate::signal::sample::{Signal, Source, TargetId};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// A sample with its identity, as it goes into the evidence of a bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSample {
    /// When it was true.
    pub at: Time,
    /// Of what.
    pub signal: Signal,
    /// Whose.
    pub rank: Rank,
    /// How much.
    pub value: f64,
    /// Where it came from.
    pub source: Source,
}

/// A rank reported its work: which rank, by which source, when, and whether it had any.
pub type LoadReport = (Rank, Source, Time, bool);

/// A sample this far from the onset does not show it.
const NEAR: Duration = Duration::from_secs(30);
/// A line this far from a sample is not the one that it was read from.
const SAME: Duration = Duration::from_secs(2);

/// What arrives of one signal from one source of one server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeriesStatus {
    /// The server's name.
    pub target: String,
    /// The signal's name.
    pub signal: String,
    /// The unit of its values.
    pub unit: String,
    /// Where it comes from.
    pub source: Source,
    /// How many ranks have it.
    pub ranks: usize,
    /// Seconds since the last report of any of its ranks.
    pub age_s: f64,
    /// Whether a better source of the same signal reports, so that this one does not count.
    pub overruled: bool,
    /// Each rank's latest value.
    pub latest: Vec<LatestValue>,
}

/// One rank's latest value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatestValue {
    /// Whose: rank and extra labels.
    pub of: Labels,
    /// How much.
    pub value: f64,
    /// When it was true.
    pub at: Time,
    /// Whether the rank has gone silent.
    pub silent: bool,
}

impl SignalStore {
    /// Every kept sample since `since` of the series that carry all of `labels` (a group's), series
    /// by series, each in the order of time.
    pub fn samples<'a>(&'a self, labels: &'a Labels, since: Time) -> impl Iterator<Item = StoredSample> + 'a {
        self.series.iter().flat_map(move |series| {
            let slot = &self.slots[series.slot as usize];
            let belongs = slot.labels.contains(labels);
            let (signal, rank, source) = (series.signal, slot.key.rank, slot.key.source);
            let samples = belongs.then(|| series.ring.iter_since(since)).into_iter().flatten();
            samples.map(move |(at, value)| StoredSample { at, signal, rank, value, source })
        })
    }

    /// For each rank of a server that reported its load since `since`: when it did so last, and when
    /// it last had any work.
    pub fn last_work(
        &self,
        target: TargetId,
        since: Time,
    ) -> impl Iterator<Item = (Rank, Time, Option<Time>)> + '_ {
        let slots = self.slots.iter().filter(move |s| s.key.target == target);
        slots.flat_map(move |slot| {
            [catalog::RUNNING_REQS, catalog::QUEUE_REQS, catalog::LOAD].into_iter().filter_map(
                move |signal| {
                    let index = *slot.series.get(usize::from(signal.0))?;
                    let series = self.series.get(index as usize)?;
                    let (at, _) = series.latest().filter(|l| l.0 >= since)?;
                    Some((slot.key.rank, at, series.ring.last_since(since, |value| value > 0.0)))
                },
            )
        })
    }

    /// The sample of `signal` nearest to `at`, of the member that carries all of `labels`, and its log
    /// line where it was read from one.
    pub fn nearest(&self, labels: &Labels, signal: Signal, at: Time) -> Option<ShownBy> {
        let far = |t: Time| t.nanos().abs_diff(at.nanos());
        let of_signal = self.series.iter().filter(|s| s.signal == signal);
        let of_member = of_signal.filter(|s| self.slots[s.slot as usize].labels.contains(labels));
        let samples = of_member.flat_map(|s| s.ring.iter_since(at - NEAR).map(move |(t, v)| (s.slot, t, v)));
        let (slot, t, value) = samples
            .min_by_key(|(_, t, _)| far(*t))
            .filter(|(_, t, _)| u128::from(far(*t)) <= NEAR.as_nanos())?;
        let slot = &self.slots[slot as usize];
        let line =
            slot.lines.nearest(t).filter(|(l, _)| l.nanos().abs_diff(t.nanos()) as u128 <= SAME.as_nanos());
        Some(ShownBy { at: t, value, source: slot.key.source, line: line.map(|(_, text)| text) })
    }

    /// The reports of work of a server's ranks at or after `since`, series by series, each in the order
    /// of time.
    pub fn load_reports(&self, target: TargetId, since: Time) -> impl Iterator<Item = LoadReport> + '_ {
        let of_work = self.series.iter().filter(|s| s.signal == catalog::RUNNING_REQS);
        let of_target =
            of_work.map(|s| (s, &self.slots[s.slot as usize].key)).filter(move |(_, k)| k.target == target);
        of_target.flat_map(move |(series, key)| {
            series.ring.iter_since(since).map(|(at, value)| (key.rank, key.source, at, value > 0.0))
        })
    }

    /// What arrives, by server, signal and source.
    pub fn series_status(&self, now: Time) -> Vec<SeriesStatus> {
        let mut order: Vec<usize> =
            (0..self.series.len()).filter(|i| self.series[*i].latest().is_some()).collect();
        order.sort_by_key(|i| {
            let (series, key) = (&self.series[*i], &self.slots[self.series[*i].slot as usize].key);
            (key.target, series.signal, key.source, key.rank)
        });
        let identity = |i: &usize| self.identity(*i);
        let mut all: Vec<SeriesStatus> = Vec::new();
        for same in order.chunk_by(|a, b| identity(a) == identity(b)) {
            let better = all.last().is_some_and(|last: &SeriesStatus| {
                let (target, signal, _) = self.identity(same[0]);
                last.target == self.target_text(target)
                    && last.signal == self.catalog.name_of(signal)
                    && !last.latest.iter().all(|r| r.silent)
            });
            let mut status = self.status_of(same, now);
            status.overruled = better;
            all.push(status);
        }
        all
    }

    fn identity(&self, series: usize) -> (TargetId, Signal, Source) {
        let key = &self.slots[self.series[series].slot as usize].key;
        (key.target, self.series[series].signal, key.source)
    }

    fn target_text(&self, target: TargetId) -> String {
        self.target_name(target).map_or_else(String::new, |n| n.to_string())
    }

    fn status_of(&self, same: &[usize], now: Time) -> SeriesStatus {
        let (target, signal, source) = self.identity(same[0]);
        let reading = |i: &usize| {
            let slot = &self.slots[self.series[*i].slot as usize];
            let (at, value) = self.series[*i].latest()?;
            let mut of = slot.labels.clone();
            of.0.retain(|name, _| !matches!(&**name, "target" | "role"));
            Some(LatestValue { of, value, at, silent: !slot.cadence.is_reporting(now) })
        };
        let seen =
            same.iter().filter_map(|i| self.slots[self.series[*i].slot as usize].cadence.last_report());
        SeriesStatus {
            target: self.target_text(target),
            signal: self.catalog.name_of(signal).to_owned(),
            unit: self.catalog.unit_of(signal).to_owned(),
            source,
            ranks: same.len(),
            age_s: seen.max().map_or(f64::INFINITY, |seen| now.since(seen).as_secs_f64()),
            overruled: false,
            latest: same.iter().filter_map(reading).collect(),
        }
    }
}
