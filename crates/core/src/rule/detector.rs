//! Feeds the frames of one group to the detector of departures, member by member in a fixed order.

use std::sync::Arc;

use super::departure::{Departure, Evidence, Work};
use crate::onset::Onset;
use crate::signal::catalog;
use crate::signal::frame::{Frame, Member};
use crate::signal::sample::Signal;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Which frames the detector reads, by their indexes: the compared signal, and what sharpens the
/// comparison where it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DetectorInputs {
    /// The compared signal.
    pub load: usize,
    /// Tokens held.
    pub tokens: Option<usize>,
    /// Tokens a second.
    pub throughput: Option<usize>,
    /// Running requests, which share that throughput.
    pub running: Option<usize>,
}

impl DetectorInputs {
    /// With the optional inputs for a load; `probe_of` gives the index of a signal's probe.
    pub fn with_optional(self, probe_of: &mut dyn FnMut(Signal) -> usize) -> Self {
        Self {
            load: self.load,
            tokens: Some(probe_of(catalog::USED_TOKENS)),
            throughput: Some(probe_of(catalog::GEN_THROUGHPUT)),
            running: Some(probe_of(catalog::RUNNING_REQS)),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct GroupDetector {
    departure: Departure,
    members: Vec<Arc<Labels>>,
    works: Vec<Work>,
}

impl GroupDetector {
    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.departure.shift(by_ns);
        Time::shift_all(self.works.iter_mut().map(|work| &mut work.at), by_ns);
    }

    /// Takes in the frames as of `now`. What they show becomes usual only if it `may_learn`.
    pub fn observe(&mut self, inputs: DetectorInputs, frames: &[Frame], now: Time, may_learn: bool) {
        let load = &frames[inputs.load];
        if !load.members.iter().map(|m| &m.id).eq(&self.members) {
            self.members = load.members.iter().map(|m| m.id.clone()).collect();
            self.departure = Departure::default();
        }
        let find = |probe: Option<usize>, place: usize, id: &Arc<Labels>| {
            let members = &frames[probe?].members;
            let there = members.get(place).filter(|m| m.id == *id);
            there.or_else(|| members.iter().find(|m| m.id == *id)).filter(|m| !m.stale)
        };
        self.works.clear();
        for (place, m) in load.members.iter().enumerate() {
            let tokens = find(inputs.tokens, place, &m.id);
            let throughput = find(inputs.throughput, place, &m.id);
            let running = find(inputs.running, place, &m.id);
            let speed = match (throughput, running) {
                (Some(t), Some(r)) if r.value > 0.0 && !m.stale => Some(t.value / r.value),
                _ => None,
            };
            let at = |m: Option<&Member>| m.map_or(Time::default(), |m| m.at);
            let at = m.at.max(at(tokens)).max(at(throughput));
            self.works.push(Work { load: m.value, tokens: tokens.map(|t| t.value), speed, at });
        }
        self.departure.observe(now, &self.works, may_learn);
    }

    /// The farthest departure; `None` while too little has been seen.
    pub fn evidence(&self) -> Option<Evidence> {
        self.departure.evidence().copied()
    }

    /// Whether enough has been seen for a verdict.
    pub fn is_warm(&self) -> bool {
        self.departure.is_warm()
    }

    /// Since when the blamed member has departed; not before `since`.
    pub fn onset(&self, evidence: &Evidence, since: Time) -> Option<Onset> {
        self.departure.onset(evidence, since)
    }
}
