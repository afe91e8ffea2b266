//! What can be read from the store besides frames: the samples behind a firing, when ranks reported
//! their work, and what arrives from which source.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::SignalStore;
use super::slot::{NONE, Series, Slot};
use crate::signal::catalog;
use crate::signal::sample::SampleEvidence;
use crate::signal::sample::{Signal, Source, TargetId};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// The samples of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSeries {
    pub signal: Signal,
    pub rank: Rank,
    /// Where it came from.
    pub source: Source,
    /// When each was true, and how much.
    pub samples: Box<[(Time, f64)]>,
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
    /// What it is of: rank and extra labels.
    pub of: Labels,
    /// How much.
    pub value: f64,
    /// When it was true.
    pub at: Time,
    /// Whether the rank has gone silent.
    pub silent: bool,
}

impl SignalStore {
    /// The series of the members of a group, kept since `since`: of those that carry all of `labels` (the group's),
    /// each with the labels in `names` (those by which its members differ, the server among them); a series that lacks
    /// one is no member's.
    pub fn series_of_members(
        &self,
        labels: &Labels,
        names: &Labels,
        wanted: impl Fn(Signal) -> bool,
        since: Time,
    ) -> Vec<(Labels, StoredSeries)> {
        let of_member = |series: &Series| {
            let slot = &self.slots[series.slot as usize];
            let member = slot.labels.pick(names.0.keys().map(|name| &**name));
            if !wanted(series.signal) || member.0.len() < names.0.len() {
                return None;
            }
            Some((member, self.stored(series, since)?))
        };
        self.series_with(labels).filter_map(of_member).collect()
    }

    /// The same of all series that carry all of `labels`, whoever's they are.
    pub fn series_since(&self, labels: &Labels, since: Time) -> Vec<StoredSeries> {
        self.series_with(labels).filter_map(|series| self.stored(series, since)).collect()
    }

    /// What is kept of a series since `since`; `None` where that is nothing.
    fn stored(&self, series: &Series, since: Time) -> Option<StoredSeries> {
        let key = &self.slots[series.slot as usize].key;
        let samples: Box<[_]> = series.ring.iter_since(since).collect();
        let (signal, rank, source) = (series.signal, key.rank, key.source);
        (!samples.is_empty()).then_some(StoredSeries { signal, rank, source, samples })
    }

    /// The series that carry all of `labels`, in their order; of one server's where the labels name it.
    fn series_with<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Series> + 'a {
        let named = match labels.get("target") {
            Some(LabelValue::Text(name)) => self.targets.iter().find(|t| t.name == *name),
            _ => None,
        };
        let (one, all) = match named {
            Some(target) => (self.series_of(&target.slots), 0),
            None => (Vec::new(), self.series.len()),
        };
        let series = one.into_iter().map(|index| &self.series[index as usize]).chain(&self.series[..all]);
        series.filter(move |series| self.slots[series.slot as usize].labels.contains(labels))
    }

    /// The indexes of the slots' series, in their order.
    fn series_of(&self, slots: &[u32]) -> Vec<u32> {
        let all = slots.iter().flat_map(|slot| &self.slots[*slot as usize].series);
        let mut all: Vec<u32> = all.copied().filter(|index| *index != NONE).collect();
        all.sort_unstable();
        all
    }

    fn slots_of(&self, target: TargetId) -> impl Iterator<Item = &Slot> + '_ {
        let slots = self.targets.get(usize::from(target.0)).map_or(&[][..], |t| &t.slots);
        slots.iter().map(|slot| &self.slots[*slot as usize])
    }

    /// The labels of a server's ranks of which there is any number, without the server's own.
    pub fn ranks_of(&self, target: TargetId) -> Vec<Labels> {
        let has_number = |slot: &&Slot| {
            let series = slot.series.iter().filter_map(|index| self.series.get(*index as usize));
            series.into_iter().any(|s| s.latest().is_some())
        };
        self.slots_of(target).filter(has_number).map(rank_labels).collect()
    }

    /// What is kept since `since` of one signal of one server: a line for each rank and source, each in
    /// the order of time.
    pub fn lines_of(
        &self,
        target: TargetId,
        signal: Signal,
        since: Time,
    ) -> impl Iterator<Item = (Rank, Source, impl Iterator<Item = (Time, f64)> + '_)> + '_ {
        self.slots_of(target).filter_map(move |slot| {
            let index = *slot.series.get(usize::from(signal.0))?;
            let series = self.series.get(index as usize)?;
            Some((slot.key.rank, slot.key.source, series.ring.iter_since(since)))
        })
    }

    /// For each rank of a server that reported its load since `since`, source by source: when it did so
    /// last, and when it last had any work.
    pub fn last_work(
        &self,
        target: TargetId,
        since: Time,
    ) -> impl Iterator<Item = (Rank, Time, Option<Time>)> + '_ {
        // One source says it in several numbers: an empty queue beside a full batch is work.
        self.slots_of(target).filter_map(move |slot| {
            let said = [catalog::RUNNING_REQS, catalog::QUEUE_REQS, catalog::LOAD].into_iter();
            let said = said.filter_map(|signal| {
                let index = *slot.series.get(usize::from(signal.0))?;
                let series = self.series.get(index as usize)?;
                let (at, _) = series.latest().filter(|l| l.0 >= since)?;
                Some((at, series.ring.last_since(since, |value| value > 0.0)))
            });
            let (seen, worked) = said.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))?;
            Some((slot.key.rank, seen, worked))
        })
    }

    /// The sample of `signal` nearest to `at`, of the member that carries all of `labels`, and its log
    /// line where it was read from one.
    pub fn nearest(&self, labels: &Labels, signal: Signal, at: Time) -> Option<SampleEvidence> {
        let far = |t: Time| t.nanos().abs_diff(at.nanos());
        let of_member = self.series_with(labels).filter(|s| s.signal == signal);
        let samples = of_member.flat_map(|s| s.ring.iter_since(at - NEAR).map(move |(t, v)| (s.slot, t, v)));
        let (slot, t, value) = samples
            .min_by_key(|(_, t, _)| far(*t))
            .filter(|(_, t, _)| u128::from(far(*t)) <= NEAR.as_nanos())?;
        let slot = &self.slots[slot as usize];
        let line =
            slot.lines.nearest(t).filter(|(l, _)| l.nanos().abs_diff(t.nanos()) as u128 <= SAME.as_nanos());
        Some(SampleEvidence { at: t, value, source: slot.key.source, line: line.map(|(_, text)| text) })
    }

    /// The reports of work of a server's ranks at or after `since`, rank by rank, each in the order of
    /// time.
    pub fn load_reports(&self, target: TargetId, since: Time) -> impl Iterator<Item = LoadReport> + '_ {
        let lines = self.lines_of(target, catalog::RUNNING_REQS, since);
        lines.flat_map(move |(rank, source, line)| {
            let decoded = self.decoded(target, (rank, source), since);
            let is_alive = move |at: &Time, running: f64| {
                running == 0.0
                    || decoded.as_ref().is_none_or(|all| all.get(at).is_none_or(|rate| *rate > 0.0))
            };
            line.filter(move |(at, running)| is_alive(at, *running))
                .map(move |(at, running)| (rank, source, at, running > 0.0))
        })
    }

    /// The tokens that a rank decoded, by its server's counter, where one is read. A page shows the last
    /// gauges of a rank that stands still; its counters give it away.
    fn decoded(&self, target: TargetId, who: (Rank, Source), since: Time) -> Option<BTreeMap<Time, f64>> {
        let mut lines = self.lines_of(target, catalog::DECODE_TOKENS, since);
        let (_, _, own) = lines.find(|(rank, source, _)| (*rank, *source) == who)?;
        Some(own.collect())
    }

    /// What arrives, by server, signal and source.
    pub fn series_status(&self, now: Time) -> Vec<SeriesStatus> {
        self.series_status_of(0..self.targets.len(), now)
    }

    /// The same of some servers, by their places.
    pub fn series_status_of(&self, servers: Range<usize>, now: Time) -> Vec<SeriesStatus> {
        let slots = self.targets.get(servers).into_iter().flatten().flat_map(|target| &target.slots);
        let series = slots.flat_map(|slot| &self.slots[*slot as usize].series);
        let known = series.map(|index| *index as usize).filter(|index| *index < self.series.len());
        let mut order: Vec<usize> = known.filter(|index| self.series[*index].latest().is_some()).collect();
        order.sort_unstable();
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
            let of = rank_labels(slot);
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

/// A slot's labels without those that all of its server's have.
fn rank_labels(slot: &Slot) -> Labels {
    let mut labels = slot.labels.clone();
    labels.0.retain(|name, _| !matches!(&**name, "target" | "role"));
    labels
}
