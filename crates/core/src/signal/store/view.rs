//! The groups that a rule compares: which series belong to one, and what each member's value is.
//!
//! - Several series of one member are reports of one rank (by TP peers, by several sources): the best
//!   source that is fresh wins, then the first rank; they are never summed. Only where a rule
//!   compares whole servers are the different DP ranks of each put together.
//! - A member that went silent while others of its server report is 0 and stale. A server of which no
//!   rank reports has no data, which is not zero.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::SignalStore;
use super::slot::{SILENT_AT_LEAST, Series, Slot};
use crate::signal::catalog::{self, Fold, Silence};
use crate::signal::frame::{Frame, Member};
use crate::signal::sample::{Signal, Source, TargetId};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;
use skewtrap_trace::time::Time;

/// A rank that the server counts but that never reports is missing after this time.
const NEVER_SEEN: Duration = Duration::from_secs(10);
/// Numbers that a server itself calls older than this are stale.
const OLD: Duration = Duration::from_secs(5);

/// A signal, compared across some labels within others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

/// One group of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

#[derive(Debug)]
pub(super) struct View {
    pub(super) signal: Signal,
    across: Vec<Arc<str>>,
    within: Vec<Arc<str>>,
    pub(super) groups: Vec<Group>,
    by_labels: BTreeMap<Arc<Labels>, u32>,
    /// Whether frames also have their values in order.
    is_ordered: bool,
    /// Series of the signal that lack a label of `across`, and the label.
    lacking: BTreeMap<Arc<str>, usize>,
}

#[derive(Debug)]
pub(super) struct Group {
    labels: Arc<Labels>,
    /// Whether its labels name a server, so that it has ranks of no other.
    is_of_one_server: bool,
    members: Vec<Candidates>,
    pub(super) is_touched: bool,
    /// For which time and smoothing the frame was made; `None` once there are newer numbers.
    pub(super) framed: Option<(Time, Duration)>,
    frame: Frame,
    shown: Vec<u32>,
}

/// The series that can give one member's value, best first.
#[derive(Debug)]
struct Candidates {
    id: Arc<Labels>,
    series: Vec<u32>,
}

/// Buffers of a read, reused.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    readings: Vec<(u32, Reading)>,
    reporting: Vec<TargetId>,
}

/// What one part of a member shows.
#[derive(Clone, Copy, Debug)]
struct Reading {
    value: f64,
    at: Time,
    is_fresh: bool,
    is_stale: bool,
}

impl SignalStore {
    /// The view of a signal, made when it is not there yet.
    pub fn subscribe(&mut self, signal: Signal, across: &[Arc<str>], within: &[Arc<str>]) -> ViewId {
        let same = |v: &View| v.signal == signal && v.across == across && v.within == within;
        if let Some(there) = self.views.iter().position(same) {
            return ViewId(there as u32);
        }
        let id = ViewId(self.views.len() as u32);
        self.views.push(View {
            signal,
            across: across.to_vec(),
            within: within.to_vec(),
            groups: Vec::new(),
            by_labels: BTreeMap::new(),
            is_ordered: false,
            lacking: BTreeMap::new(),
        });
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].expected_since.is_some() {
                self.series(slot, signal);
            }
        }
        self.regroup();
        id
    }

    /// From now on the frames of a view have their values in order as well: a statistic wants them so.
    pub fn keep_in_order(&mut self, view: ViewId) {
        self.views[view.0 as usize].is_ordered = true;
    }

    /// No view's values are put in order any more, before those are asked for that rules want now.
    pub fn keep_none_in_order(&mut self) {
        self.views.iter_mut().for_each(|view| view.is_ordered = false);
    }

    /// The groups of a view with their labels, in the order of their ids. Ids last until a server's
    /// role or size changes; the labels last for ever.
    pub fn groups(&self, view: ViewId) -> impl Iterator<Item = (GroupId, &Labels)> {
        self.views[view.0 as usize].groups.iter().enumerate().map(|(i, g)| (GroupId(i as u32), &*g.labels))
    }

    /// The group with these labels.
    pub fn group(&self, view: ViewId, labels: &Labels) -> Option<GroupId> {
        self.views[view.0 as usize].by_labels.get(labels).map(|i| GroupId(*i))
    }

    /// The labels of a group, shared by all views and rules.
    pub fn group_labels(&self, view: ViewId, group: GroupId) -> &Arc<Labels> {
        &self.views[view.0 as usize].groups[group.0 as usize].labels
    }

    /// The signal of a view.
    pub fn signal_of(&self, view: ViewId) -> Signal {
        self.views[view.0 as usize].signal
    }

    /// Labels of `across` that series of the view's signal lack, and how many do: why a view has no
    /// group although its signal arrives.
    pub fn lacking(&self, view: ViewId) -> &BTreeMap<Arc<str>, usize> {
        &self.views[view.0 as usize].lacking
    }

    /// The values of a group at `now`, each averaged over the time `smooth` before (zero for the latest
    /// value). Empty when no server of the group reports.
    pub fn frame(&mut self, view: ViewId, group: GroupId, now: Time, smooth: Duration) -> &Frame {
        let (views, slots, series) = (&mut self.views, &self.slots, &self.series);
        let View { signal, groups, is_ordered, .. } = &mut views[view.0 as usize];
        let group = &mut groups[group.0 as usize];
        // Many rules read one group at one time.
        if group.framed == Some((now, smooth)) {
            return &group.frame;
        }
        group.framed = Some((now, smooth));
        self.reads += 1;
        let Scratch { readings, reporting } = &mut self.scratch;
        readings.clear();
        let (silence, fold) =
            catalog::entry(*signal).map_or((Silence::Zero, Fold::Sum), |e| (e.silence, e.fold));
        find_reporting(group, slots, series, now, reporting);
        for (index, member) in group.members.iter().enumerate() {
            let parts = Parts { slots, series, reporting, silence, now, smooth };
            if let Some(reading) = parts.member(&member.series, fold) {
                readings.push((index as u32, reading));
            }
        }
        show(group, readings);
        if *is_ordered {
            group.frame.sort();
        }
        &group.frame
    }

    /// Puts a new series into the views that it belongs to.
    pub(super) fn join_views(&mut self, index: u32) {
        let Self { views, slots, series, ids, .. } = self;
        let this = &series[index as usize];
        let mut joined = Vec::new();
        for (number, view) in views.iter_mut().enumerate().filter(|(_, v)| v.signal == this.signal) {
            if let Some((group, place)) = view.join(index, &slots[this.slot as usize].labels, ids) {
                let key = |i: &u32| order(&slots[series[*i as usize].slot as usize]);
                let member = &mut view.groups[group as usize].members[place];
                member.series.sort_by(|a, b| key(a).cmp(&key(b)));
                joined.push((number as u32, group));
            }
        }
        series[index as usize].groups = joined;
    }

    /// Sorts every series into the views again; frames stay as they are until the next read.
    pub(super) fn regroup(&mut self) {
        for view in &mut self.views {
            view.groups.clear();
            view.by_labels.clear();
            view.lacking.clear();
        }
        self.ids.clear();
        self.touched.clear();
        self.generation += 1;
        self.reads += 1;
        for index in 0..self.series.len() as u32 {
            self.join_views(index);
        }
    }
}

impl View {
    /// Adds a series to its group and member there; `None` when it lacks a label of `across`.
    fn join(&mut self, index: u32, labels: &Labels, ids: &mut BTreeSet<Arc<Labels>>) -> Option<(u32, usize)> {
        if let Some(missing) = self.across.iter().find(|name| labels.get(name).is_none()) {
            *self.lacking.entry(missing.clone()).or_default() += 1;
            return None;
        }
        let within = interned(labels.pick(self.within.iter().map(|n| &**n)), ids);
        let next = self.groups.len() as u32;
        let group = *self.by_labels.entry(within.clone()).or_insert(next);
        if group == next {
            let frame = Frame::default();
            self.groups.push(Group {
                is_of_one_server: within.get("target").is_some(),
                labels: within,
                members: Vec::new(),
                is_touched: false,
                framed: None,
                frame,
                shown: Vec::new(),
            });
        }
        let id = interned(labels.pick(self.across.iter().map(|n| &**n)), ids);
        let members = &mut self.groups[group as usize].members;
        let place = members.partition_point(|m| m.id < id);
        if members.get(place).is_none_or(|m| m.id != id) {
            members.insert(place, Candidates { id, series: Vec::new() });
            // The indexes behind it moved: the next read must not take them for the same members.
            self.groups[group as usize].shown.clear();
        }
        self.groups[group as usize].members[place].series.push(index);
        Some((group, place))
    }
}

/// One allocation for the same labels, whichever view they are in.
fn interned(labels: Labels, known: &mut BTreeSet<Arc<Labels>>) -> Arc<Labels> {
    if let Some(there) = known.get(&labels) {
        return there.clone();
    }
    let new = Arc::new(labels);
    known.insert(new.clone());
    new
}

/// The order in which the series of one member are tried: part by part, the best source first.
fn order(slot: &Slot) -> (TargetId, Option<u16>, Option<&LabelsKey>, Source, skewtrap_trace::rank::Rank) {
    let key = &slot.key;
    (key.target, key.rank.get(Axis::Dp), key.extra.as_deref().map(|l| &l.0), key.source, key.rank)
}

type LabelsKey = BTreeMap<Arc<str>, LabelValue>;

/// Which servers have a rank in this group that reports.
fn find_reporting(
    group: &Group,
    slots: &[Slot],
    series: &[Series],
    now: Time,
    reporting: &mut Vec<TargetId>,
) {
    reporting.clear();
    for &index in group.members.iter().flat_map(|m| &m.series) {
        let this = &series[index as usize];
        let slot = &slots[this.slot as usize];
        if this.latest().is_some()
            && reporting.last() != Some(&slot.key.target)
            && slot.cadence.is_reporting(now)
        {
            reporting.push(slot.key.target);
            if group.is_of_one_server {
                return;
            }
        }
    }
}

/// Reads members out of their series.
struct Parts<'a> {
    slots: &'a [Slot],
    series: &'a [Series],
    reporting: &'a [TargetId],
    silence: Silence,
    now: Time,
    smooth: Duration,
}

impl Parts<'_> {
    /// The reading of a member: that of its only part, or its parts put together.
    fn member(&self, series: &[u32], fold: Fold) -> Option<Reading> {
        if let [_] = series {
            return self.part(series);
        }
        let mut whole: Option<Reading> = None;
        let mut parts = 0.0;
        let same_part = |a: &u32, b: &u32| {
            let (a, b) = (order(self.slot(*a)), order(self.slot(*b)));
            (a.0, a.1, a.2) == (b.0, b.1, b.2)
        };
        for part in series.chunk_by(same_part) {
            let Some(reading) = self.part(part) else { continue };
            parts += 1.0;
            whole = Some(match whole {
                None => reading,
                Some(so_far) => Reading {
                    value: so_far.value + reading.value,
                    at: so_far.at.max(reading.at),
                    is_fresh: so_far.is_fresh || reading.is_fresh,
                    is_stale: so_far.is_stale && reading.is_stale,
                },
            });
        }
        let mut whole = whole?;
        if fold == Fold::Mean && parts > 1.0 {
            whole.value /= parts;
        }
        Some(whole)
    }

    /// The reading of one rank: the first of its series that is fresh, else the latest.
    fn part(&self, series: &[u32]) -> Option<Reading> {
        let target = self.slot(*series.first()?).key.target;
        if !self.reporting.contains(&target) {
            return None;
        }
        let readings = || series.iter().filter_map(|i| self.reading(*i));
        let best = readings().find(|w| w.is_fresh).or_else(|| readings().max_by_key(|w| w.at));
        match best {
            Some(reading) if reading.is_fresh => Some(reading),
            Some(reading) => self.silent(reading.at),
            None => {
                let since = series.iter().filter_map(|i| self.slot(*i).expected_since).min()?;
                let silent_after = NEVER_SEEN.max(SILENT_AT_LEAST);
                (self.now.since(since) >= silent_after).then(|| self.silent(since))?
            }
        }
    }

    fn silent(&self, at: Time) -> Option<Reading> {
        let zero = Reading { value: 0.0, at, is_fresh: false, is_stale: true };
        (self.silence == Silence::Zero).then_some(zero)
    }

    /// The reading of one series; a rank that writes a profile keeps its last one.
    fn reading(&self, index: u32) -> Option<Reading> {
        let series = &self.series[index as usize];
        let slot = self.slot(index);
        let (at, latest) = series.latest()?;
        let is_reporting = slot.cadence.is_reporting(self.now);
        let value = if self.smooth.is_zero() {
            latest
        } else {
            series.ring.mean(self.now - self.smooth, self.now).unwrap_or(latest)
        };
        let seen = slot.cadence.last_report().unwrap_or(at);
        let is_old = slot.key.source == Source::Loads && seen.since(at) > OLD;
        let is_stale = is_old || !is_reporting;
        Some(Reading { value, at, is_fresh: is_reporting || slot.is_exporting, is_stale })
    }

    fn slot(&self, series: u32) -> &Slot {
        &self.slots[self.series[series as usize].slot as usize]
    }
}

/// Writes the readings into the group's frame; the labels are only copied when the members change.
fn show(group: &mut Group, readings: &[(u32, Reading)]) {
    if !group.shown.iter().eq(readings.iter().map(|w| &w.0)) || group.frame.members.len() != readings.len() {
        group.shown = readings.iter().map(|w| w.0).collect();
        let member = |i: &u32| Member {
            id: group.members[*i as usize].id.clone(),
            value: 0.0,
            at: Time::default(),
            stale: false,
        };
        group.frame.members = group.shown.iter().map(member).collect();
    }
    for (member, (_, reading)) in group.frame.members.iter_mut().zip(readings) {
        (member.value, member.at, member.stale) = (reading.value, reading.at, reading.is_stale);
    }
    group.frame.sum_up();
}
