//! Reads what the sources hand over: numbers go into the store, everything else to the core.
//!
//! In a replay the core's clock moves within a chunk of recorded lines, so every step is announced:
//! first that something of time `at` is about to be recorded (timers that end before are due), then
//! what it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use memchr::memchr;

use crate::signal::exposition::{Page, PageError};
use crate::signal::fields::Fields;
use crate::signal::iteration_stats;
use crate::signal::log_line::{BatchKind, LineContent, Profile};
use crate::signal::log_reader::{Arrival, LogReader, MAX_LINE};
use crate::signal::metrics::Metrics;
use crate::signal::observation::{Observation, Problem, ReportedProblem, SourceId};
use crate::signal::pattern::Pattern;
use crate::signal::sample::{Sample, Source, TargetId};
use crate::signal::source::SourceStats;
use crate::signal::store::SignalStore;
use crate::signal::user_metric::{ExtraPage, UserMetric, UserMetrics};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// One step of taking an observation in.
#[derive(Debug)]
pub enum IntakeStep<'a> {
    /// Something of this time is about to be recorded; what was due before may run first.
    Due,
    /// The numbers of one rank, all that one line, entry or page has of it; they are recorded too.
    Read {
        /// Of which server.
        target: TargetId,
        rank: Rank,
        /// What they were read from.
        report: Report,
        /// The numbers.
        fields: &'a Fields,
    },
    /// Samples were recorded.
    Recorded,
    /// A rank's profiler did something.
    Profile {
        /// Of which server.
        target: TargetId,
        rank: Rank,
        profile: &'a Profile<'a>,
    },
    /// The server reports that it is dying.
    Fatal {
        /// Which server.
        target: TargetId,
        /// Which rank printed it.
        rank: Rank,
        /// The line that it printed.
        text: &'a [u8],
    },
    /// The server reported its version.
    Version {
        /// Which server.
        target: TargetId,
        version: &'a str,
    },
    /// The page of the server says when its process was started.
    Started {
        /// Which server.
        target: TargetId,
        /// When, in seconds since the epoch, by the server's clock.
        started: f64,
    },
    /// A source's problem began, changed or (`None`) ended.
    Problem {
        /// Of which server.
        target: TargetId,
        source: SourceId,
        /// Its name: an address, or a file.
        name: Arc<str>,
        /// What is wrong now.
        problem: Option<&'a Problem>,
    },
    /// The stamps of a log began or (`None`) ceased to differ from the arrival of its lines by more than can be right.
    Stamps {
        /// Of which server.
        target: TargetId,
        source: SourceId,
        /// By how much, in words.
        disagreement: Option<String>,
    },
}

/// What a rank's numbers were read from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Report {
    /// SGLang's line about a prefill batch.
    Prefill,
    /// SGLang's line about so many decode steps.
    Decode,
    /// SGLang's line about so many requests that were put back into the queue.
    Retraction(f64),
    /// An entry of `/v1/loads`.
    Loads {
        /// When the rank published it, by the server's clock, in seconds, where it says so.
        published_s: Option<f64>,
        /// How old it was then when the answer was made.
        age: Duration,
    },
    /// A metrics page, or samples of one time.
    Page,
}

/// What has been read so far.
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

/// The signals that the user defines and the core reads itself.
#[derive(Clone, Debug, Default)]
pub struct UserSignals {
    /// From log lines.
    pub patterns: Vec<Pattern>,
    /// From metrics pages.
    pub metrics: Vec<UserMetric>,
}

/// The readers that keep state: one for each log, and one for pages.
#[derive(Debug)]
pub struct Intake {
    zone: TimeZone,
    logs: BTreeMap<SourceId, LogReader>,
    names: BTreeMap<SourceId, Arc<str>>,
    problems: BTreeMap<SourceId, ReportedProblem>,
    stats: BTreeMap<SourceId, SourceStats>,
    patterns: Vec<Pattern>,
    metrics: Metrics,
    own: UserMetrics,
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
            stats: BTreeMap::new(),
            patterns: Vec::new(),
            metrics: Metrics::default(),
            own: UserMetrics::default(),
            counts: Counts::default(),
        }
    }

    /// The stamps of this log are of another zone than those of the others.
    pub fn set_zone(&mut self, source: SourceId, zone: TimeZone) {
        self.logs.insert(source, LogReader::new(zone));
    }

    /// Sets the name (path or URL) under which the problems of a source are reported.
    pub fn name_source(&mut self, source: SourceId, name: Arc<str>) {
        self.names.insert(source, name);
    }

    /// Replaces the user's signals.
    pub fn set_own(&mut self, own: UserSignals) {
        self.patterns = own.patterns;
        self.own.set_metrics(own.metrics);
    }

    /// Sets which sources are pages beside the server's own.
    pub fn set_pages(&mut self, pages: Vec<ExtraPage>) {
        self.own.set_pages(pages);
    }

    /// What has been read so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What a source has delivered so far.
    pub fn stats_of(&self, source: SourceId) -> SourceStats {
        self.stats.get(&source).copied().unwrap_or_default()
    }

    /// What is wrong with a source now.
    pub fn problem_of(&self, source: SourceId) -> Option<&Problem> {
        self.problems.get(&source).and_then(ReportedProblem::current)
    }

    /// By how much a log's stamps differ from their arrival, when that cannot be right, in words.
    pub fn stamp_disagreement(&self, source: SourceId) -> Option<String> {
        self.logs.get(&source).and_then(LogReader::disagreement)
    }

    /// Reads an observation into `store`; `step` is called for everything on the way, in the order of
    /// time.
    pub fn take(
        &mut self,
        observation: &Observation,
        store: &mut SignalStore,
        mut step: impl FnMut(&mut SignalStore, Time, IntakeStep<'_>),
    ) {
        let (recorded, unused) = (store.recorded(), store.dropped() + self.counts.bad);
        let true_at = self.read(observation, store, &mut step);
        let samples = store.recorded() - recorded;
        let stats = self.stats.entry(observation.source()).or_default();
        stats.dropped += store.dropped() + self.counts.bad - unused;
        if samples > 0 {
            let fresh_at = observation.fresh_at();
            stats.samples += samples;
            stats.last = fresh_at.or(true_at).or(stats.last);
            stats.lag = fresh_at.zip(true_at).map(|(arrived, true_at)| arrived.since(true_at));
        }
    }

    /// Reads an observation; returns when its last sample was true, where the source says so.
    fn read(
        &mut self,
        observation: &Observation,
        store: &mut SignalStore,
        mut step: &mut impl FnMut(&mut SignalStore, Time, IntakeStep<'_>),
    ) -> Option<Time> {
        match observation {
            Observation::Lines { target, source, lines, arrival } => {
                return self.lines(*target, *source, lines, *arrival, store, &mut step);
            }
            Observation::Page { target, source, body, at } => {
                if let Some(read) = self.own_signals(*target, *source, body, *at, store) {
                    self.counts.pages += 1;
                    step(store, *at, IntakeStep::Recorded);
                    self.problem(*target, *source, read.err(), *at, store, &mut step);
                    return None;
                }
                let mut metrics = std::mem::take(&mut self.metrics);
                let read = metrics.read(body);
                self.page((*target, *source), (&metrics, read), *at, store, step);
                self.metrics = metrics;
            }
            Observation::ReadPage { target, source, page, at } => {
                self.page((*target, *source), (&page.metrics, page.read.clone()), *at, store, step);
            }
            Observation::Loads { target, source, body, at } => {
                step(store, *at, IntakeStep::Due);
                let read = self.loads(*target, *source, body, *at, store, &mut step);
                step(store, *at, IntakeStep::Recorded);
                let age = read.as_ref().ok().copied().flatten();
                self.problem(*target, *source, read.err(), *at, store, &mut step);
                return age.map(|age| *at - age);
            }
            Observation::Samples { target, samples, at, .. } => {
                step(store, *at, IntakeStep::Due);
                for (rank, fields) in &by_rank(samples) {
                    let read =
                        IntakeStep::Read { target: *target, rank: *rank, report: Report::Page, fields };
                    step(store, *at, read);
                }
                for sample in samples {
                    store.record_sample(*target, Source::Prometheus, sample, *at);
                }
                step(store, *at, IntakeStep::Recorded);
                return samples.last().map(|s| s.at);
            }
            Observation::Host { target, samples, at, .. } => {
                step(store, *at, IntakeStep::Due);
                for sample in samples {
                    store.record_sample(*target, Source::Host, sample, *at);
                }
                step(store, *at, IntakeStep::Recorded);
            }
            Observation::State { target, source, problem, at, .. } => {
                step(store, *at, IntakeStep::Due);
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
        step: &mut impl FnMut(&mut SignalStore, Time, IntakeStep<'_>),
    ) -> Option<Time> {
        let mut last = None;
        let reader = self.logs.entry(source).or_insert_with(|| LogReader::new(self.zone.clone()));
        let (unreadable, disagreed) = (reader.unreadable(), reader.disagrees());
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
            let dated = reader.read(line, arrival);
            let (at, rank) = (dated.at, dated.line.rank);
            match &dated.line.content {
                LineContent::Batch(_) | LineContent::Balancedness => {
                    self.counts.batch_lines += 1;
                    step(store, at, IntakeStep::Due);
                    let report = match &dated.line.content {
                        LineContent::Batch(batch) if batch.kind == BatchKind::Prefill => {
                            Some(Report::Prefill)
                        }
                        LineContent::Batch(batch) if batch.kind == BatchKind::Decode => Some(Report::Decode),
                        _ => None,
                    };
                    let fields = reader.fields();
                    if let Some(report) = report {
                        step(store, at, IntakeStep::Read { target, rank, report, fields });
                    }
                    store.record_line(target, rank, fields, at, line);
                    last = Some(at);
                    step(store, at, IntakeStep::Recorded);
                }
                LineContent::Retraction(requests) => {
                    step(store, at, IntakeStep::Due);
                    let (report, fields) = (Report::Retraction(*requests), reader.fields());
                    step(store, at, IntakeStep::Read { target, rank, report, fields });
                }
                LineContent::Profile(profile) => {
                    step(store, at, IntakeStep::Due);
                    store.note_profile(target, rank, profile);
                    step(store, at, IntakeStep::Profile { target, rank, profile });
                }
                LineContent::Fatal(text) => step(store, at, IntakeStep::Fatal { target, rank, text }),
                LineContent::Other => {}
            }
            for sample in self.patterns.iter().filter_map(|p| p.read(line, rank, at)) {
                step(store, at, IntakeStep::Due);
                store.record_sample(target, Source::Pattern, &sample, at);
                last = Some(at);
                step(store, at, IntakeStep::Recorded);
            }
        }
        self.counts.bad += reader.unreadable() - unreadable;
        if let (Arrival::Live(at) | Arrival::Backlog(at), true) = (arrival, reader.disagrees() != disagreed) {
            let disagreement = reader.disagreement();
            step(store, at, IntakeStep::Stamps { target, source, disagreement });
        }
        last
    }

    fn page(
        &mut self,
        (target, source): (TargetId, SourceId),
        (metrics, read): (&Metrics, Result<Page, PageError>),
        at: Time,
        store: &mut SignalStore,
        mut step: &mut impl FnMut(&mut SignalStore, Time, IntakeStep<'_>),
    ) {
        step(store, at, IntakeStep::Due);
        self.counts.pages += 1;
        let problem = match read {
            Ok(page) => {
                self.counts.bad += page.bad as u64;
                if let Some(started) = metrics.started() {
                    step(store, at, IntakeStep::Started { target, started });
                }
                for (rank, fields) in metrics.ranks() {
                    step(store, at, IntakeStep::Read { target, rank, report: Report::Page, fields });
                }
                store.record_page(target, metrics, at);
                None
            }
            Err(error) => {
                self.counts.bad += 1;
                Some(Problem::BadPage { url: self.name(source), error })
            }
        };
        step(store, at, IntakeStep::Recorded);
        self.problem(target, source, problem, at, store, &mut step);
    }

    /// Reads the user's signals from a page. Where it is a page beside the server's own, nothing else is on
    /// it, and the result is that of reading it.
    fn own_signals(
        &mut self,
        target: TargetId,
        source: SourceId,
        body: &[u8],
        at: Time,
        store: &mut SignalStore,
    ) -> Option<Result<(), Problem>> {
        let mut result = Ok(());
        if self.own.wants(target, source) {
            match self.own.read((target, source), body, at) {
                Ok((samples, beyond)) => {
                    self.counts.bad += beyond;
                    for sample in &samples {
                        store.record_sample(target, Source::Page, sample, at);
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        // On the server's own page an error is reported by the reader of the engine's metrics.
        self.own.is_further_page(source).then(|| {
            result.map_err(|error| {
                self.counts.bad += 1;
                Problem::BadPage { url: self.name(source), error }
            })
        })
    }

    /// Reads an answer; returns the age of the oldest of its loads.
    fn loads(
        &mut self,
        target: TargetId,
        source: SourceId,
        body: &[u8],
        at: Time,
        store: &mut SignalStore,
        step: &mut impl FnMut(&mut SignalStore, Time, IntakeStep<'_>),
    ) -> Result<Option<Duration>, Problem> {
        self.counts.pages += 1;
        let loads = match iteration_stats::read_loads(body) {
            Ok(loads) => loads,
            Err(error) => {
                self.counts.bad += 1;
                return Err(Problem::BadLoads { url: self.name(source), error });
            }
        };
        self.counts.bad += loads.bad;
        for load in &loads.ranks {
            let (rank, fields) = (load.rank, &load.fields);
            let report = Report::Loads { published_s: load.published_s, age: load.age };
            step(store, at, IntakeStep::Read { target, rank, report, fields });
            store.record(target, load.rank, Source::Loads, &load.fields, at - load.age, at);
        }
        if let Some(role) = loads.ranks.iter().find_map(|r| r.role) {
            store.note_role(target, role);
        }
        if let Some(version) = &loads.version {
            step(store, at, IntakeStep::Version { target, version });
        }
        Ok(loads.ranks.iter().map(|r| r.age).max())
    }

    /// Reports a change of a source's state, and only a change.
    fn problem(
        &mut self,
        target: TargetId,
        source: SourceId,
        now: Option<Problem>,
        at: Time,
        store: &mut SignalStore,
        step: &mut impl FnMut(&mut SignalStore, Time, IntakeStep<'_>),
    ) {
        let reported = self.problems.entry(source).or_default();
        if reported.changes_to(now) {
            let name = self.names.get(&source).cloned().unwrap_or_else(|| "the source".into());
            step(store, at, IntakeStep::Problem { target, source, name, problem: reported.current() });
        }
    }

    fn name(&self, source: SourceId) -> Arc<str> {
        self.names.get(&source).cloned().unwrap_or_else(|| "the source".into())
    }
}

/// The samples that bear no labels of their own, by rank.
fn by_rank(samples: &[Sample]) -> BTreeMap<Rank, Fields> {
    let mut ranks: BTreeMap<Rank, Fields> = BTreeMap::new();
    for sample in samples.iter().filter(|s| s.extra.is_none()) {
        ranks.entry(sample.rank).or_default().set(sample.signal, sample.value);
    }
    ranks
}

#[cfg(test)]
mod tests;
