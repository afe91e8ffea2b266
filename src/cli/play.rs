//! Plays numbers through the store and the rules in simulated time: what `test`, `tune` and
//! `check --against` stand on. Captures, limits and messages have no part in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::decide::rule::{Change, Engine, Rule};
use crate::decide::signal::catalog::Catalog;
use crate::decide::signal::fields::Fields;
use crate::decide::signal::loads;
use crate::decide::signal::log_line::Says;
use crate::decide::signal::log_reader::{Arrival, LogReader};
use crate::decide::signal::metrics::Metrics;
use crate::decide::signal::observation::{Observation, SourceId};
use crate::decide::signal::rank::Rank;
use crate::decide::signal::sample::{Sample, Source, TargetId};
use crate::decide::signal::store::{Bounds, SignalStore};
use crate::decide::time::Time;

/// How often time passes.
const TICK: Duration = Duration::from_millis(250);
/// A gap longer than this is not walked to its end.
const WALKED_GAP: Duration = Duration::from_secs(120);

/// Rules on some servers, in simulated time.
#[derive(Debug)]
pub struct Player {
    rules: Option<Vec<Rule>>,
    store: SignalStore,
    engine: Engine,
    logs: BTreeMap<SourceId, LogReader>,
    metrics: Metrics,
    zone: TimeZone,
    started: Option<Time>,
    now: Time,
    /// What changed so far.
    pub changes: Vec<Change>,
}

impl Player {
    /// A player that has seen nothing yet.
    pub fn new(rules: Vec<Rule>, catalog: Arc<Catalog>, targets: &[Arc<str>], zone: TimeZone) -> Self {
        let mut store = SignalStore::new(catalog, Bounds::default());
        for name in targets {
            store.add_target(name.clone(), None);
        }
        Self {
            rules: Some(rules),
            store,
            engine: Engine::default(),
            logs: BTreeMap::new(),
            metrics: Metrics::default(),
            zone,
            started: None,
            now: Time::default(),
            changes: Vec::new(),
        }
    }

    /// When it began; `None` before the first number.
    pub fn started(&self) -> Option<Time> {
        self.started
    }

    /// Up to when it has played.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The rules and where they stand.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What was recorded.
    pub fn store(&self) -> &SignalStore {
        &self.store
    }

    /// For what only servers say: how many ranks there are, and of which role.
    pub fn store_mut(&mut self) -> &mut SignalStore {
        &mut self.store
    }

    /// Lets time pass up to `at`.
    pub fn until(&mut self, at: Time) {
        if self.started.is_none() {
            self.started = Some(at);
            self.now = at;
            self.engine = Engine::new(self.rules.take().unwrap_or_default(), &mut self.store, at);
        }
        let end = at.min(self.now + WALKED_GAP);
        while end.since(self.now) > TICK {
            self.now = self.now + TICK;
            self.engine.tick(&mut self.store, self.now, &mut self.changes);
        }
        self.now = self.now.max(at);
    }

    /// Takes what a recording holds. What cannot be read counts for nothing, as it would live.
    pub fn observe(&mut self, seen: &Observation) {
        match seen {
            Observation::Lines { target, source, lines, .. } => {
                for line in lines.split(|b| *b == b'\n') {
                    self.line(*target, *source, line);
                }
            }
            Observation::Page { target, body, at, .. } => {
                self.until(*at);
                if self.metrics.read(body).is_ok() {
                    self.store.record_page(*target, &self.metrics, *at);
                }
                self.pulse(*at);
            }
            Observation::Loads { target, body, at, .. } => {
                self.until(*at);
                let read = loads::read(body).unwrap_or_default();
                for rank in read.ranks {
                    self.store.record(*target, rank.rank, Source::Loads, &rank.fields, *at - rank.age, *at);
                    if let Some(role) = rank.role {
                        self.store.note_role(*target, role);
                    }
                }
                self.pulse(*at);
            }
            Observation::Samples { target, samples, at, .. } => {
                self.until(*at);
                samples.iter().for_each(|s| self.store.record_sample(*target, Source::Prometheus, s, *at));
                self.pulse(*at);
            }
            Observation::State { .. } => {}
        }
    }

    fn line(&mut self, target: TargetId, source: SourceId, line: &[u8]) {
        let zone = &self.zone;
        let reader = self.logs.entry(source).or_insert_with(|| LogReader::new(zone.clone()));
        let heard = reader.read(line, Arrival::Recorded);
        let (at, rank) = (heard.at, heard.line.rank);
        if at == Time::default() {
            return;
        }
        match &heard.line.says {
            Says::Batch(_) | Says::Balancedness => {
                let fields = reader.fields().clone();
                self.until(at);
                self.fields(target, rank, Source::Log, &fields, at);
                self.pulse(at);
            }
            Says::Profile(fact) => self.store.note_profile(target, rank, fact),
            Says::Fatal(_) | Says::Other => {}
        }
    }

    /// Records numbers of one rank; [`Self::pulse`] looks at them.
    pub fn fields(&mut self, target: TargetId, rank: Rank, source: Source, fields: &Fields, at: Time) {
        self.store.record(target, rank, source, fields, at, at);
    }

    /// Records one number of a signal of the user's.
    pub fn sample(&mut self, target: TargetId, sample: &Sample) {
        self.store.record_sample(target, Source::Prometheus, sample, sample.at);
    }

    /// Looks at what was recorded.
    pub fn pulse(&mut self, at: Time) {
        self.now = self.now.max(at);
        self.engine.on_samples(&mut self.store, self.now, &mut self.changes);
    }
}
