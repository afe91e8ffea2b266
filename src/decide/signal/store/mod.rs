//! Every number of every rank, and the groups in which rules compare them.
//!
//! A series is one signal of one rank as one source sees it: sources are never mixed in a ring, and
//! which of them counts is decided when a group is looked at (`view`). Recording is the hot path of
//! a replay, hence the small cache of slots and the reused buffers. Nothing here knows what a rule
//! is; it tells which groups were touched, and shows them.

mod evidence;
mod slot;
mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::decide::labels::{LabelValue, Labels};
use crate::decide::signal::catalog::{self, Catalog, DERIVED, Kind};
use crate::decide::signal::fields::Fields;
use crate::decide::signal::log_line::Profile;
use crate::decide::signal::metrics::{Metrics, Role};
use crate::decide::signal::rank::{Axis, Rank};
use crate::decide::signal::ring::ENTRY_BYTES;
use crate::decide::signal::sample::{Sample, Signal, Source, TargetId};
use crate::decide::time::Time;

pub use evidence::{Evidence, Reading, Standing};
use slot::{Cadence, NONE, Series, Slot, SlotKey};
pub use slot::{SILENT_AT_LEAST, SILENT_AT_MOST};
pub use view::{GroupId, ViewId};
use view::{Scratch, View};

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How far back a ring reaches.
    pub horizon: Duration,
    /// Samples in one ring of a signal that a rule watches.
    pub watched_samples: usize,
    /// Samples in one ring of any other signal.
    pub other_samples: usize,
    /// Bytes of all rings together; when they are used up, old samples make room for new ones.
    pub ring_bytes: usize,
    /// Series at most; what would be one more is dropped and counted.
    pub series: usize,
}

impl Default for Bounds {
    /// Five minutes, at most 12 MiB of rings.
    fn default() -> Self {
        Self {
            horizon: Duration::from_secs(300),
            watched_samples: 3_000,
            other_samples: 120,
            ring_bytes: 12 << 20,
            series: 50_000,
        }
    }
}

/// A server as the store knows it.
#[derive(Clone, Debug)]
struct Target {
    name: Arc<str>,
    role: Role,
    /// Whether the operator said so; then no metrics page changes it.
    is_role_declared: bool,
}

/// Slots that were used last, by a cheap hash: a log's lines come from a handful of ranks.
const RECENT: usize = 64;

/// All series, and the views on them.
#[derive(Debug)]
pub struct SignalStore {
    catalog: Arc<Catalog>,
    bounds: Bounds,
    targets: Vec<Target>,
    slots: Vec<Slot>,
    slot_of: HashMap<SlotKey, u32>,
    recent: [u32; RECENT],
    series: Vec<Series>,
    views: Vec<View>,
    touched: Vec<(ViewId, GroupId)>,
    generation: u64,
    scratch: Scratch,
    ring_bytes: usize,
    recorded: u64,
    dropped: u64,
}

impl SignalStore {
    /// An empty store.
    pub fn new(catalog: Arc<Catalog>, bounds: Bounds) -> Self {
        Self {
            catalog,
            bounds,
            targets: Vec::new(),
            slots: Vec::new(),
            slot_of: HashMap::new(),
            recent: [NONE; RECENT],
            series: Vec::new(),
            views: Vec::new(),
            touched: Vec::new(),
            generation: 0,
            scratch: Scratch::default(),
            ring_bytes: 0,
            recorded: 0,
            dropped: 0,
        }
    }

    /// Makes a server known; its name and role become labels of all its series. Without a `role`,
    /// the servers' own `engine_type` counts, `unified` until it is seen.
    pub fn add_target(&mut self, name: Arc<str>, role: Option<Role>) -> TargetId {
        let id = TargetId(self.targets.len() as u16);
        let is_role_declared = role.is_some();
        self.targets.push(Target { name, role: role.unwrap_or(Role::Unified), is_role_declared });
        id
    }

    /// The name of a server.
    pub fn target_name(&self, target: TargetId) -> Option<&Arc<str>> {
        self.targets.get(usize::from(target.0)).map(|t| &t.name)
    }

    /// The server says its role (its metrics, loads or server info). A declared role stands.
    pub fn note_role(&mut self, target: TargetId, role: Role) {
        let Some(known) = self.targets.get_mut(usize::from(target.0)) else { return };
        if known.is_role_declared || known.role == role {
            return;
        }
        known.role = role;
        for i in 0..self.slots.len() {
            if self.slots[i].key.target == target {
                self.slots[i].labels = self.labels_of(&self.slots[i].key);
            }
        }
        self.regroup();
    }

    /// Takes another catalog, in which signals were only added (a reload).
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        self.catalog = catalog;
    }

    /// The names and units of its signals.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Records the numbers of one rank: a log line's, or its part of a page. `seen` is when they
    /// came, `at` for when they were true.
    pub fn record(
        &mut self,
        target: TargetId,
        rank: Rank,
        source: Source,
        fields: &Fields,
        at: Time,
        seen: Time,
    ) {
        let slot = self.slot(target, rank, source, None);
        if slot == NONE {
            self.dropped += fields.len() as u64;
            return;
        }
        let this = &mut self.slots[slot as usize];
        let patience = this.cadence.patience();
        let was_idle = !this.cadence.is_speaking(seen) && fields.get(catalog::RUNNING_REQS) == Some(0.0);
        this.cadence.spoke(seen, was_idle);
        this.is_exporting = false;
        for (signal, value) in fields.iter() {
            self.put(slot, signal, value, at, patience);
        }
        for derived in DERIVED.iter().filter(|d| fields.has_both(d.a, d.b)) {
            if let (Some(a), Some(b)) =
                (self.value_at(slot, derived.a, at), self.value_at(slot, derived.b, at))
                && let Some(value) = derived.of(a, b)
            {
                self.put_value(slot, derived.signal, value, at);
            }
        }
    }

    /// Records a whole metrics page.
    pub fn record_page(&mut self, target: TargetId, metrics: &Metrics, at: Time) {
        for (rank, fields) in metrics.ranks() {
            self.record(target, rank, Source::Metrics, fields, at, at);
        }
        if let Some(role) = metrics.role() {
            self.note_role(target, role);
        }
    }

    /// Records one number of a pattern or a query.
    pub fn record_sample(&mut self, target: TargetId, source: Source, sample: &Sample, seen: Time) {
        let slot = self.slot(target, sample.rank, source, sample.extra.as_ref());
        if slot == NONE || !sample.value.is_finite() {
            self.dropped += 1;
            return;
        }
        let cadence = &mut self.slots[slot as usize].cadence;
        let patience = cadence.patience();
        cadence.spoke(seen, false);
        self.put(slot, sample.signal, sample.value, sample.at, patience);
    }

    /// Hears that a rank's profiler did something: while a rank writes its file it prints nothing,
    /// and that silence must not read as starvation.
    pub fn note_profile(&mut self, target: TargetId, rank: Rank, fact: &Profile<'_>) {
        for slot in self.slots.iter_mut().filter(|s| s.key.target == target && s.key.rank == rank) {
            slot.is_exporting = matches!(fact, Profile::Stopping { .. });
        }
    }

    /// Is told (by the server's own information) how many DP ranks there are: one that never says
    /// a word is then known to be missing, and ranks beyond are forgotten.
    pub fn expect_ranks(&mut self, target: TargetId, dp_size: u16, now: Time) {
        let beyond =
            |s: &Slot| s.key.target == target && s.key.rank.get(Axis::Dp).is_some_and(|i| i >= dp_size);
        let gone: Vec<bool> = self.slots.iter().map(beyond).collect();
        if gone.contains(&true) {
            self.forget(&gone);
        }
        if dp_size < 2 {
            return;
        }
        for index in 0..dp_size {
            let slot = self.slot(target, Rank::dp(index), Source::Log, None);
            if slot == NONE {
                continue;
            }
            self.slots[slot as usize].expected_since.get_or_insert(now);
            for view in 0..self.views.len() {
                self.series(slot, self.views[view].signal);
            }
        }
    }

    /// Forgets ranks that said nothing for as long as rings reach back, and three times that: pods
    /// come and go. Call it now and then.
    pub fn sweep(&mut self, now: Time) {
        let horizon = self.bounds.horizon * 4;
        let old = |s: &Slot| {
            s.expected_since.is_none() && s.cadence.seen().is_some_and(|seen| now.since(seen) > horizon)
        };
        let gone: Vec<bool> = self.slots.iter().map(old).collect();
        if gone.contains(&true) {
            self.forget(&gone);
        }
    }

    /// Which groups got a new sample since the last call, each once, in a fixed order.
    pub fn take_touched(&mut self, into: &mut Vec<(ViewId, GroupId)>) {
        into.clear();
        into.append(&mut self.touched);
        into.sort_unstable();
        for (view, group) in into.iter() {
            self.views[view.0 as usize].groups[group.0 as usize].is_touched = false;
        }
    }

    /// Grows whenever group ids may mean something else than before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Samples that were recorded.
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Samples that found no place: too many series, or not finite.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many series there are.
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    /// Bytes of all rings.
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    fn value_at(&self, slot: u32, signal: Signal, at: Time) -> Option<f64> {
        let series = *self.slots[slot as usize].series.get(usize::from(signal.0))?;
        self.series.get(series as usize)?.last.filter(|l| l.0 == at).map(|l| l.1)
    }

    /// Takes a number as its source gave it: a counter becomes a rate, and the throughput that
    /// SGLang prints first after a pause (longer than `patience`) is left out, because it averages
    /// over the pause.
    fn put(&mut self, slot: u32, signal: Signal, value: f64, at: Time, patience: Duration) {
        let index = self.series(slot, signal);
        if index == NONE {
            self.dropped += 1;
            return;
        }
        let source = self.slots[slot as usize].key.source;
        let series = &mut self.series[index as usize];
        let before = series.reported.replace(at);
        if signal == catalog::GEN_THROUGHPUT
            && source == Source::Log
            && before.is_none_or(|before| at.since(before) > patience)
        {
            return;
        }
        let value = if series.is_counter { series.rate.step(at, value) } else { Some(value) };
        if let Some(value) = value {
            self.keep(index, value, at);
        }
    }

    fn put_value(&mut self, slot: u32, signal: Signal, value: f64, at: Time) {
        let index = self.series(slot, signal);
        if index != NONE {
            self.keep(index, value, at);
        }
    }

    fn keep(&mut self, index: u32, value: f64, at: Time) {
        let series = &mut self.series[index as usize];
        series.last = Some((at, value));
        if !series.ring.absorb(at, value) {
            let is_watched = !series.groups.is_empty();
            let most = if is_watched { self.bounds.watched_samples } else { self.bounds.other_samples };
            let is_at_limit = series.ring.is_full() && self.ring_bytes >= self.bounds.ring_bytes;
            let most = if is_at_limit { series.ring.len() } else { most };
            let before = series.ring.bytes();
            series.ring.push(at, value, self.bounds.horizon, most);
            self.ring_bytes = self.ring_bytes + series.ring.bytes() - before;
        }
        self.recorded += 1;
        for &(view, group) in &series.groups {
            let group_state = &mut self.views[view as usize].groups[group as usize];
            group_state.framed = None;
            if !group_state.is_touched {
                group_state.is_touched = true;
                self.touched.push((ViewId(view), GroupId(group)));
            }
        }
    }

    /// The slot of a rank; [`NONE`] when the target is unknown.
    fn slot(&mut self, target: TargetId, rank: Rank, source: Source, extra: Option<&Arc<Labels>>) -> u32 {
        let cached = recent_place(target, rank, source);
        if extra.is_none()
            && let Some(slot) = self.slots.get(self.recent[cached] as usize)
            && slot.key.rank == rank
            && (slot.key.target, slot.key.source) == (target, source)
            && slot.key.extra.is_none()
        {
            return self.recent[cached];
        }
        let key = SlotKey { target, source, extra: extra.cloned(), rank };
        let found = match self.slot_of.get(&key) {
            Some(&slot) => slot,
            None => self.new_slot(key),
        };
        if extra.is_none() {
            self.recent[cached] = found;
        }
        found
    }

    fn new_slot(&mut self, key: SlotKey) -> u32 {
        if usize::from(key.target.0) >= self.targets.len() || self.series.len() >= self.bounds.series {
            return NONE;
        }
        let index = self.slots.len() as u32;
        let (labels, series) = (self.labels_of(&key), Vec::new());
        self.slot_of.insert(key.clone(), index);
        let cadence = Cadence::default();
        self.slots.push(Slot { key, labels, series, cadence, is_exporting: false, expected_since: None });
        index
    }

    fn labels_of(&self, key: &SlotKey) -> Labels {
        let target = &self.targets[usize::from(key.target.0)];
        let mut labels = key.rank.labels();
        labels.0.insert("target".into(), LabelValue::Text(target.name.clone()));
        labels.0.insert("role".into(), LabelValue::Text(target.role.word().into()));
        if let Some(extra) = &key.extra {
            labels.0.extend(extra.0.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        labels
    }

    /// The series of a signal; [`NONE`] when there are too many.
    fn series(&mut self, slot: u32, signal: Signal) -> u32 {
        let place = usize::from(signal.0);
        match self.slots[slot as usize].series.get(place) {
            Some(&index) if index != NONE => return index,
            _ if self.series.len() >= self.bounds.series => return NONE,
            _ => {}
        }
        let by_signal = &mut self.slots[slot as usize].series;
        if by_signal.len() <= place {
            by_signal.resize(place + 1, NONE);
        }
        let index = self.series.len() as u32;
        by_signal[place] = index;
        let is_counter = self.catalog.kind_of(signal) == Kind::Counter;
        self.series.push(Series::new(slot, signal, is_counter));
        self.join_views(index);
        index
    }

    /// Drops slots with their series and puts the rest together again.
    fn forget(&mut self, gone: &[bool]) {
        let mut slots = std::mem::take(&mut self.slots);
        let mut series: Vec<Option<Series>> =
            std::mem::take(&mut self.series).into_iter().map(Some).collect();
        self.slot_of.clear();
        self.recent = [NONE; RECENT];
        for (slot, is_gone) in slots.drain(..).zip(gone) {
            if !is_gone {
                self.adopt(slot, &mut series);
            }
        }
        self.ring_bytes = self.series.iter().map(|s| s.ring.bytes()).sum();
        self.regroup();
    }

    fn adopt(&mut self, mut slot: Slot, from: &mut [Option<Series>]) {
        let index = self.slots.len() as u32;
        for place in &mut slot.series {
            let Some(mut series) = from.get_mut(*place as usize).and_then(Option::take) else { continue };
            series.slot = index;
            *place = self.series.len() as u32;
            self.series.push(series);
        }
        self.slot_of.insert(slot.key.clone(), index);
        self.slots.push(slot);
    }
}

/// Where the cache keeps a slot.
fn recent_place(target: TargetId, rank: Rank, source: Source) -> usize {
    let index = |axis| usize::from(rank.get(axis).map_or(0, |i| i.wrapping_add(1)));
    let mixed = index(Axis::Dp) + index(Axis::Tp) * 5 + index(Axis::Pp) * 11 + index(Axis::Ep) * 17;
    (mixed + source as usize * 23 + usize::from(target.0) * 29) % RECENT
}

const _: () = assert!(ENTRY_BYTES == 16, "the bounds above are computed with sixteen bytes a sample");

#[cfg(test)]
mod tests;
