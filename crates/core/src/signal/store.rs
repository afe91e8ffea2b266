//! Every number of every rank, and the groups in which rules compare them.
//!
//! A series is one signal of one rank as one source sees it: sources are never mixed in a ring, and
//! which of them counts is decided when a group is read (`view`). Recording is the hot path of a
//! replay, hence the small cache of slots and the reused buffers. The store knows nothing of rules: it
//! reports which groups got samples, and gives their values.

mod batches;
mod lines;
mod query;
mod registry;
mod ring;
mod slot;
pub mod together;
mod view;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use self::ring::ENTRY_BYTES;
use crate::signal::catalog::{self, Catalog, DERIVED};
use crate::signal::fields::Fields;
use crate::signal::log_line::Profile;
use crate::signal::metrics::{Metrics, Role};
use crate::signal::sample::{Sample, Signal, Source, TargetId};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

pub use query::{LatestValue, LoadReport, SeriesStatus, StoredSeries};
use slot::{Measure, NONE, Series, Slot, SlotKey};
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
    /// Series of one server at most; what would be one more is dropped and counted.
    pub series: usize,
    /// Series that each further server adds to what all may have together.
    pub series_of_further: usize,
}

impl Default for Bounds {
    /// Five minutes, at most 8 MiB of rings.
    fn default() -> Self {
        Self {
            horizon: Duration::from_secs(300),
            watched_samples: 3_000,
            other_samples: 120,
            ring_bytes: 8 << 20,
            series: 50_000,
            series_of_further: 512,
        }
    }
}

/// A server as the store knows it.
#[derive(Clone, Debug)]
struct Target {
    name: Arc<str>,
    role: Role,
    /// Whether the operator declared the role; then no metrics page changes it.
    is_role_declared: bool,
    /// How many DP ranks it says it has, where that is to be believed: others are refused.
    dp_size: Option<u16>,
    /// Its slots, so that nothing about one server looks at those of the others.
    slots: Vec<u32>,
    /// How many series it has.
    series: usize,
}

/// Size of the cache of slots at first; it grows with the slots.
const RECENT: usize = 64;

/// All series, and the views on them.
#[derive(Debug)]
pub struct SignalStore {
    catalog: Arc<Catalog>,
    bounds: Bounds,
    targets: Vec<Target>,
    slots: Vec<Slot>,
    slot_of: HashMap<SlotKey, u32>,
    /// Slots by a cheap hash of their keys, its length a power of two: saves the lookup in `slot_of`.
    recent: Vec<u32>,
    series: Vec<Series>,
    views: Vec<View>,
    /// The labels that name members and groups, shared by all views, so that comparing two of them mostly means
    /// comparing addresses, and a server's are kept once however many rules look at it.
    ids: BTreeSet<Arc<Labels>>,
    touched: Vec<(ViewId, GroupId)>,
    generation: u64,
    /// Grows whenever groups are read, from 1.
    reads: u64,
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
            recent: vec![NONE; RECENT],
            series: Vec::new(),
            views: Vec::new(),
            ids: BTreeSet::new(),
            touched: Vec::new(),
            generation: 0,
            reads: 1,
            scratch: Scratch::default(),
            ring_bytes: 0,
            recorded: 0,
            dropped: 0,
        }
    }

    /// Replaces the catalog, after a reload; signals may only be added.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        self.catalog = catalog;
    }

    /// The names and units of its signals.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Records the numbers of one rank: a log line's, or its part of a page. `seen` is when they
    /// arrived, `at` when they were true.
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
        self.record_in(slot, fields, at, seen);
    }

    /// Records the numbers of a log line, which arrive when it is written, and keeps some of the lines.
    pub fn record_line(&mut self, target: TargetId, rank: Rank, fields: &Fields, at: Time, line: &[u8]) {
        let slot = self.slot(target, rank, Source::Log, None);
        self.record_in(slot, fields, at, at);
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.lines.offer(at, line);
        }
    }

    fn record_in(&mut self, slot: u32, fields: &Fields, at: Time, seen: Time) {
        if slot == NONE {
            self.dropped += fields.len() as u64;
            return;
        }
        if !self.slots[slot as usize].known.has_all(fields.present()) {
            for (signal, _) in fields.iter() {
                self.series(slot, signal);
            }
        }
        let this = &mut self.slots[slot as usize];
        let silent_after = this.cadence.silent_after();
        let was_idle = !this.cadence.is_reporting(seen) && fields.get(catalog::RUNNING_REQS) == Some(0.0);
        this.cadence.on_report(seen, was_idle);
        this.is_exporting = false;
        let places = std::mem::take(&mut self.slots[slot as usize].series);
        for (signal, number) in fields.iter() {
            let index = places.get(usize::from(signal.0)).copied().unwrap_or(NONE);
            self.take(index, number, at, silent_after);
        }
        self.slots[slot as usize].series = places;
        if self.slots[slot as usize].key.source == Source::Log
            && let Some(totals) = self.slots[slot as usize].batches.take(fields, at)
        {
            for (signal, total) in totals {
                let index = self.series(slot, signal);
                self.put(index, total, at, silent_after);
            }
        }
        for derived in DERIVED.iter().filter(|d| fields.present().has_all(d.operands)) {
            let operand = |signal| self.operand(slot, signal, fields, at);
            if let (Some(a), Some(b)) = (operand(derived.a), operand(derived.b))
                && let Some(value) = derived.of(a, b)
            {
                let index = self.series(slot, derived.signal);
                self.take(index, value, at, silent_after);
            }
        }
    }

    /// Takes a number, in the cheapest way possible.
    #[inline(always)]
    fn take(&mut self, index: u32, number: f64, at: Time, silent_after: Duration) {
        if !self.replaces(index, number, at) {
            self.put(index, number, at, silent_after);
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
        let silent_after = cadence.silent_after();
        cadence.on_report(seen, false);
        let index = self.series(slot, sample.signal);
        self.put(index, sample.value, sample.at, silent_after);
    }

    /// Notes what a rank's profiler does: while a rank writes its file it prints nothing, and that
    /// silence must not be taken for starvation.
    pub fn note_profile(&mut self, target: TargetId, rank: Rank, fact: &Profile<'_>) {
        let Some(known) = self.targets.get(usize::from(target.0)) else { return };
        for slot in &known.slots {
            let slot = &mut self.slots[*slot as usize];
            if slot.key.rank != rank {
                continue;
            }
            slot.is_exporting = matches!(fact, Profile::Stopping { .. });
        }
    }

    /// The clock was set by so many nanoseconds: what is kept was measured as long ago as before.
    pub fn shift(&mut self, by_ns: i64) {
        self.slots.iter_mut().for_each(|slot| slot.shift(by_ns));
        self.series.iter_mut().for_each(|series| series.shift(by_ns));
        self.views.iter_mut().flat_map(|view| &mut view.groups).for_each(|group| group.framed = None);
    }

    /// Which groups got a new sample since the last call, each once, in a fixed order.
    pub fn take_touched(&mut self, into: &mut Vec<(ViewId, GroupId)>) {
        self.reads += 1;
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

    /// Samples that were not recorded: too many series, or values that are not finite.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many series there are.
    #[cfg(test)]
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// The value of a signal at `at`: of a counter, its rate, where there is one.
    fn operand(&self, slot: u32, signal: Signal, fields: &Fields, at: Time) -> Option<f64> {
        let index = *self.slots[slot as usize].series.get(usize::from(signal.0))?;
        let series = self.series.get(index as usize)?;
        match series.measure {
            Measure::Gauge => fields.get(signal),
            _ => series.latest().filter(|l| l.0 == at).map(|l| l.1),
        }
    }

    /// Replaces a sample of the same time, if its groups are already marked as touched; whether it did.
    /// A log whose stamps are whole seconds has dozens of samples of one time.
    #[inline(always)]
    fn replaces(&mut self, index: u32, number: f64, at: Time) -> bool {
        let Some(series) = self.series.get_mut(index as usize) else { return false };
        let replaces = series.announced == self.reads
            && matches!(series.measure, Measure::Gauge)
            && series.ring.replace(at, number);
        self.recorded += u64::from(replaces);
        replaces
    }

    /// Takes a number as its source gave it; [`Measure`] makes a sample of it.
    #[inline]
    fn put(&mut self, index: u32, number: f64, at: Time, silent_after: Duration) {
        let Some(series) = self.series.get_mut(index as usize) else {
            self.dropped += 1;
            return;
        };
        if let Some(value) = series.measure.value(at, number, silent_after) {
            self.keep(index, value, at);
        }
    }

    fn keep(&mut self, index: u32, value: f64, at: Time) {
        let series = &mut self.series[index as usize];
        if !series.ring.absorb(at, value) {
            let is_watched = !series.groups.is_empty();
            let most = if is_watched { self.bounds.watched_samples } else { self.bounds.other_samples };
            let is_at_limit = series.ring.is_full() && self.ring_bytes >= self.bounds.ring_bytes;
            let most = if is_at_limit { series.ring.len() } else { most };
            let before = series.ring.bytes();
            series.ring.begin(at, value, self.bounds.horizon, most);
            self.ring_bytes = self.ring_bytes + series.ring.bytes() - before;
        }
        self.recorded += 1;
        if series.announced == self.reads {
            return;
        }
        series.announced = self.reads;
        for &(view, group) in &series.groups {
            let group_state = &mut self.views[view as usize].groups[group as usize];
            group_state.framed = None;
            if !group_state.is_touched {
                group_state.is_touched = true;
                self.touched.push((ViewId(view), GroupId(group)));
            }
        }
    }
}

const _: () = assert!(ENTRY_BYTES == 16, "the bounds above are computed with sixteen bytes a sample");

#[cfg(test)]
mod tests;
