//! From what the sources hand over to numbers in the store, and to facts for the core.
//!
//! The core's clock moves inside a chunk of recorded lines, so every step is announced: first that
//! something of time `at` is about to be recorded (timers that end before are due), then what came.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use memchr::memchr;

use crate::signal::loads;
use crate::signal::log_line::{Profile, Says};
use crate::signal::log_reader::{Arrival, LogReader, MAX_LINE};
use crate::signal::metrics::Metrics;
use crate::signal::observation::{Observation, Problem, SourceId};
use crate::signal::pattern::Pattern;
use crate::signal::sample::{Source, TargetId};
use crate::signal::source::Given;
use crate::signal::store::SignalStore;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// One step of taking an observation in.
#[derive(Debug)]
pub enum Step<'a> {
    /// Something of this time comes next; what was due before it may run first.
    Due,
    /// Samples were recorded.
    Recorded,
    /// A rank's profiler did something.
    Profile {
        /// Of which server.
        target: TargetId,
        /// Which rank.
        rank: Rank,
        /// What.
        profile: &'a Profile<'a>,
    },
    /// The server says that it dies.
    Fatal {
        /// Which server.
        target: TargetId,
        /// Which rank said it.
        rank: Rank,
        /// Its words.
        text: &'a [u8],
    },
    /// The server told its version.
    Version {
        /// Which server.
        target: TargetId,
        /// Its version.
        version: &'a str,
    },
    /// A source's problem began, changed or (`None`) ended.
    Problem {
        /// Of which server.
        target: TargetId,
        /// Which source.
        source: SourceId,
        /// What is wrong now.
        problem: Option<&'a Problem>,
    },
}

/// What was taken in so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Log lines.
    pub lines: u64,
    /// Log lines that reported load.
    pub batch_lines: u64,
    /// Pages and answers.
    pub pages: u64,
    /// Lines of pages that are no samples, pages that are no pages, values that are no numbers, and
    /// log lines that were cut.
    pub bad: u64,
}

/// Readers with a memory: one for each log, one for pages.
#[derive(Debug)]
pub struct Intake {
    zone: TimeZone,
    logs: BTreeMap<SourceId, LogReader>,
    names: BTreeMap<SourceId, Arc<str>>,
    problems: BTreeMap<SourceId, Problem>,
    given: BTreeMap<SourceId, Given>,
    patterns: Vec<Pattern>,
    metrics: Metrics,
    counts: Counts,
}

impl Intake {
    /// An intake for logs whose stamps are of `zone`.
    pub fn new(zone: TimeZone) -> Self {
        Self {
            zone,
            logs: BTreeMap::new(),
            names: BTreeMap::new(),
            problems: BTreeMap::new(),
            given: BTreeMap::new(),
            patterns: Vec::new(),
            metrics: Metrics::default(),
            counts: Counts::default(),
        }
    }

    /// Gives a source the name (path or URL) under which its problems are told.
    pub fn name_source(&mut self, source: SourceId, name: Arc<str>) {
        self.names.insert(source, name);
    }

    /// Replaces the user's patterns.
    pub fn set_patterns(&mut self, patterns: Vec<Pattern>) {
        self.patterns = patterns;
    }

    /// What was taken in so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What a source gave so far.
    pub fn given(&self, source: SourceId) -> Given {
        self.given.get(&source).copied().unwrap_or_default()
    }

    /// What is wrong with a source now.
    pub fn problem_of(&self, source: SourceId) -> Option<&Problem> {
        self.problems.get(&source)
    }

    /// By how many seconds a log's stamps disagree with their arrival, when that cannot be right.
    pub fn stamp_disagreement_s(&self, source: SourceId) -> Option<i64> {
        self.logs.get(&source).and_then(LogReader::disagreement_s)
    }

    /// Takes an observation in; `step` hears of everything on the way, in the order of time.
    pub fn take(
        &mut self,
        observation: &Observation,
        store: &mut SignalStore,
        mut step: impl FnMut(&mut SignalStore, Time, Step<'_>),
    ) {
        let (recorded, unused) = (store.recorded(), store.dropped() + self.counts.bad);
        let true_at = self.read(observation, store, &mut step);
        let samples = store.recorded() - recorded;
        let given = self.given.entry(observation.source()).or_default();
        given.dropped += store.dropped() + self.counts.bad - unused;
        if samples > 0 {
            let came = observation.came();
            given.samples += samples;
            given.last = came.or(true_at).or(given.last);
            given.lag = came.zip(true_at).map(|(came, true_at)| came.since(true_at));
        }
    }

    /// Reads an observation; for when its last sample was true, where the source says so.
    fn read(
        &mut self,
        observation: &Observation,
        store: &mut SignalStore,
        mut step: &mut impl FnMut(&mut SignalStore, Time, Step<'_>),
    ) -> Option<Time> {
        match observation {
            Observation::Lines { target, source, lines, arrival } => {
                return self.lines(*target, *source, lines, *arrival, store, &mut step);
            }
            Observation::Page { target, source, body, at } => {
                step(store, *at, Step::Due);
                let problem = self.page(*target, *source, body, *at, store);
                step(store, *at, Step::Recorded);
                self.problem(*target, *source, problem, *at, store, &mut step);
            }
            Observation::Loads { target, source, body, at } => {
                step(store, *at, Step::Due);
                let read = self.loads(*target, *source, body, *at, store, &mut step);
                step(store, *at, Step::Recorded);
                let age = read.as_ref().ok().copied().flatten();
                self.problem(*target, *source, read.err(), *at, store, &mut step);
                return age.map(|age| *at - age);
            }
            Observation::Samples { target, samples, at, .. } => {
                step(store, *at, Step::Due);
                for sample in samples {
                    store.record_sample(*target, Source::Prometheus, sample, *at);
                }
                step(store, *at, Step::Recorded);
                return samples.last().map(|s| s.at);
            }
            Observation::State { target, source, problem, at, .. } => {
                step(store, *at, Step::Due);
                self.problem(*target, *source, problem.clone(), *at, store, &mut step);
            }
        }
        None
    }

    fn lines(
        &mut self,
        target: TargetId,
        source: SourceId,
        lines: &[u8],
        arrival: Arrival,
        store: &mut SignalStore,
        step: &mut impl FnMut(&mut SignalStore, Time, Step<'_>),
    ) -> Option<Time> {
        let mut last = None;
        let reader = self.logs.entry(source).or_insert_with(|| LogReader::new(self.zone.clone()));
        let unreadable = reader.unreadable();
        let mut rest = lines;
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let mut line = &rest[..end];
            rest = &rest[(end + 1).min(rest.len())..];
            self.counts.lines += 1;
            if end > MAX_LINE {
                line = &line[..MAX_LINE];
                self.counts.bad += 1;
            }
            let heard = reader.read(line, arrival);
            let (at, rank) = (heard.at, heard.line.rank);
            match &heard.line.says {
                Says::Batch(_) | Says::Balancedness => {
                    self.counts.batch_lines += 1;
                    step(store, at, Step::Due);
                    store.record_line(target, rank, reader.fields(), at, line);
                    last = Some(at);
                    step(store, at, Step::Recorded);
                }
                Says::Profile(profile) => {
                    step(store, at, Step::Due);
                    store.note_profile(target, rank, profile);
                    step(store, at, Step::Profile { target, rank, profile });
                }
                Says::Fatal(text) => step(store, at, Step::Fatal { target, rank, text }),
                Says::Other => {}
            }
            for sample in self.patterns.iter().filter_map(|p| p.read(line, rank, at)) {
                step(store, at, Step::Due);
                store.record_sample(target, Source::Pattern, &sample, at);
                last = Some(at);
                step(store, at, Step::Recorded);
            }
        }
        self.counts.bad += reader.unreadable() - unreadable;
        last
    }

    fn page(
        &mut self,
        target: TargetId,
        source: SourceId,
        body: &[u8],
        at: Time,
        store: &mut SignalStore,
    ) -> Option<Problem> {
        self.counts.pages += 1;
        match self.metrics.read(body) {
            Ok(page) => {
                self.counts.bad += page.bad as u64;
                store.record_page(target, &self.metrics, at);
                None
            }
            Err(error) => {
                self.counts.bad += 1;
                Some(Problem::BadPage { url: self.name(source), error })
            }
        }
    }

    /// Reads an answer; how old the oldest of its loads is.
    fn loads(
        &mut self,
        target: TargetId,
        source: SourceId,
        body: &[u8],
        at: Time,
        store: &mut SignalStore,
        step: &mut impl FnMut(&mut SignalStore, Time, Step<'_>),
    ) -> Result<Option<Duration>, Problem> {
        self.counts.pages += 1;
        let loads = match loads::read(body) {
            Ok(loads) => loads,
            Err(error) => {
                self.counts.bad += 1;
                return Err(Problem::BadLoads { url: self.name(source), error });
            }
        };
        self.counts.bad += loads.bad;
        for load in &loads.ranks {
            store.record(target, load.rank, Source::Loads, &load.fields, at - load.age, at);
        }
        if let Some(role) = loads.ranks.iter().find_map(|r| r.role) {
            store.note_role(target, role);
        }
        if let Some(version) = &loads.version {
            step(store, at, Step::Version { target, version });
        }
        Ok(loads.ranks.iter().map(|r| r.age).max())
    }

    /// Tells a change of a source's state, and only a change.
    fn problem(
        &mut self,
        target: TargetId,
        source: SourceId,
        now: Option<Problem>,
        at: Time,
        store: &mut SignalStore,
        step: &mut impl FnMut(&mut SignalStore, Time, Step<'_>),
    ) {
        if !Problem::is_news(now.as_ref(), self.problems.get(&source)) {
            return;
        }
        step(store, at, Step::Problem { target, source, problem: now.as_ref() });
        match now {
            Some(problem) => drop(self.problems.insert(source, problem)),
            None => drop(self.problems.remove(&source)),
        }
    }

    fn name(&self, source: SourceId) -> Arc<str> {
        self.names.get(&source).cloned().unwrap_or_else(|| "the source".into())
    }
}

#[cfg(test)]
mod tests;
