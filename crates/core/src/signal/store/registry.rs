//! Which servers and ranks there are: added when they first appear, moved when a server turns out to
//! have another role, forgotten when they are gone.

use std::sync::Arc;

use super::lines::Lines;
use super::slot::{Cadence, Measure, NONE, Rate, Series, Slot, SlotKey};
use super::{Bounds, SignalStore, Target};
use crate::signal::catalog::{self, Kind};
use crate::signal::metrics::Role;
use crate::signal::sample::{Signal, SignalSet, Source, TargetId};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// The most slots of one server: a thousand ranks as four sources see them.
const MOST_SLOTS: usize = 4096;

impl SignalStore {
    /// Makes a server known; its name and role become labels of all its series. Without a `role`,
    /// the servers' own `engine_type` counts, `unified` until it is seen.
    pub fn add_target(&mut self, name: Arc<str>, role: Option<Role>) -> TargetId {
        let id = TargetId(self.targets.len() as u16);
        let is_role_declared = role.is_some();
        self.targets.push(Target {
            name,
            role: role.unwrap_or(Role::Unified),
            is_role_declared,
            dp_size: None,
            slots: Vec::new(),
            series: 0,
        });
        id
    }

    /// The name of a server.
    pub fn target_name(&self, target: TargetId) -> Option<&Arc<str>> {
        self.targets.get(usize::from(target.0)).map(|t| &t.name)
    }

    /// Notes the role that the server reports (in its metrics, loads or server info). A declared role
    /// is kept.
    pub fn note_role(&mut self, target: TargetId, role: Role) {
        let Some(known) = self.targets.get_mut(usize::from(target.0)) else { return };
        if known.is_role_declared || known.role == role {
            return;
        }
        known.role = role;
        for slot in known.slots.clone() {
            let labels = self.labels_of(&self.slots[slot as usize].key);
            self.slots[slot as usize].labels = labels;
        }
        self.regroup();
    }

    /// From now on samples of ranks beyond the number that the server says it has are refused, and
    /// counted as dropped; `None` where it does not say.
    pub fn limit_ranks(&mut self, target: TargetId, dp_size: Option<u16>) {
        if let Some(known) = self.targets.get_mut(usize::from(target.0)) {
            known.dp_size = dp_size;
        }
    }

    /// Notes how many DP ranks the server says it has: one that never reports is then known to be
    /// missing, and ranks beyond are forgotten.
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

    /// Forgets ranks that have not reported for four times as long as rings reach back: pods come and
    /// go. To be called about once a minute.
    pub fn sweep(&mut self, now: Time) {
        let horizon = self.bounds.horizon * 4;
        let old = |s: &Slot| {
            s.expected_since.is_none()
                && s.cadence.last_report().is_some_and(|seen| now.since(seen) > horizon)
        };
        let gone: Vec<bool> = self.slots.iter().map(old).collect();
        if gone.contains(&true) {
            self.forget(&gone);
        }
    }

    /// The slot of a rank; [`NONE`] when the target is unknown.
    pub(super) fn slot(
        &mut self,
        target: TargetId,
        rank: Rank,
        source: Source,
        extra: Option<&Arc<Labels>>,
    ) -> u32 {
        let cached = self.recent_place(target, rank, source);
        if extra.is_none() {
            // A key has two places: of thousands many share their first one with another.
            for place in [cached, cached ^ 1] {
                let index = self.recent[place];
                if let Some(slot) = self.slots.get(index as usize)
                    && slot.key.rank == rank
                    && (slot.key.target, slot.key.source) == (target, source)
                    && slot.key.extra.is_none()
                {
                    return index;
                }
            }
        }
        let key = SlotKey { target, source, extra: extra.cloned(), rank };
        let found = match self.slot_of.get(&key) {
            Some(&slot) => slot,
            None => self.new_slot(key),
        };
        if extra.is_none() {
            self.recent[cached ^ 1] = std::mem::replace(&mut self.recent[cached], found);
        }
        found
    }

    fn new_slot(&mut self, key: SlotKey) -> u32 {
        let Some(target) = self.targets.get(usize::from(key.target.0)) else { return NONE };
        let is_beyond = target.dp_size.zip(key.rank.get(Axis::Dp)).is_some_and(|(size, rank)| rank >= size);
        if is_beyond || target.slots.len() >= MOST_SLOTS || self.has_all_series(target) {
            return NONE;
        }
        let index = self.slots.len() as u32;
        let (labels, series) = (self.labels_of(&key), Vec::new());
        self.targets[usize::from(key.target.0)].slots.push(index);
        self.slot_of.insert(key.clone(), index);
        let cadence = Cadence::default();
        let (lines, batches) = (Lines::default(), Default::default());
        self.slots.push(Slot {
            key,
            labels,
            series,
            known: SignalSet::default(),
            cadence,
            lines,
            batches,
            is_exporting: false,
            expected_since: None,
        });
        if self.slots.len() * 4 > self.recent.len() {
            self.recent = vec![NONE; self.recent.len() * 2];
        }
        index
    }

    /// Whether a server may have no further series: it has as many as one may, or all have as many as they may
    /// together and it has what each may have in any case.
    fn has_all_series(&self, target: &Target) -> bool {
        let Bounds { series, series_of_further, .. } = self.bounds;
        let together = series + self.targets.len().saturating_sub(1) * series_of_further;
        target.series >= series || target.series >= series_of_further && self.series.len() >= together
    }

    /// The index of a slot in the cache.
    fn recent_place(&self, target: TargetId, rank: Rank, source: Source) -> usize {
        let of_target = (u64::from(target.0) << 3 | source as u64).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (rank.mixed() ^ of_target).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.recent.len() - 1)
    }

    fn labels_of(&self, key: &SlotKey) -> Labels {
        let target = &self.targets[usize::from(key.target.0)];
        let mut labels = key.rank.labels();
        if let Some(extra) = &key.extra {
            labels.0.extend(extra.0.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        // Last, so that no label of a query or a pattern makes a series another server's.
        labels.0.insert("target".into(), LabelValue::Text(target.name.clone()));
        labels.0.insert("role".into(), LabelValue::Text(target.role.word().into()));
        labels
    }

    /// The series of a signal; [`NONE`] when there are too many.
    pub(super) fn series(&mut self, slot: u32, signal: Signal) -> u32 {
        let place = usize::from(signal.0);
        match self.slots[slot as usize].series.get(place) {
            Some(&index) if index != NONE => return index,
            _ => {}
        }
        let target = usize::from(self.slots[slot as usize].key.target.0);
        if self.has_all_series(&self.targets[target]) {
            return NONE;
        }
        self.targets[target].series += 1;
        let index = self.series.len() as u32;
        let this = &mut self.slots[slot as usize];
        this.series.resize(this.series.len().max(place + 1), NONE);
        this.series[place] = index;
        this.known.insert(signal);
        let source = this.key.source;
        let measure = match self.catalog.kind_of(signal) {
            Kind::Counter => Measure::Counter(Rate::default()),
            Kind::Gauge if signal == catalog::GEN_THROUGHPUT && source == Source::Log => {
                Measure::LoggedThroughput(None)
            }
            Kind::Gauge => Measure::Gauge,
        };
        self.series.push(Series::new(slot, signal, measure));
        self.join_views(index);
        index
    }

    /// Drops slots with their series and puts the rest together again.
    fn forget(&mut self, gone: &[bool]) {
        let mut slots = std::mem::take(&mut self.slots);
        let mut series: Vec<Option<Series>> =
            std::mem::take(&mut self.series).into_iter().map(Some).collect();
        self.slot_of.clear();
        self.targets.iter_mut().for_each(|target| (target.slots, target.series) = (Vec::new(), 0));
        self.recent.fill(NONE);
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
            self.targets[usize::from(slot.key.target.0)].series += 1;
        }
        self.targets[usize::from(slot.key.target.0)].slots.push(index);
        self.slot_of.insert(slot.key.clone(), index);
        self.slots.push(slot);
    }
}
