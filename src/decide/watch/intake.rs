//! From what the sources saw to numbers in the store and facts about servers. Counts everything it
//! drops, and says each kind of trouble once a change, not once a line.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;

use super::event::Effect;
use super::server::Server;
use crate::decide::capture::line::ProfileLine;
use crate::decide::signal::catalog;
use crate::decide::signal::exposition::PageError;
use crate::decide::signal::fields::Fields;
use crate::decide::signal::loads::{self, LoadsError};
use crate::decide::signal::log_line::{Profile, Says};
use crate::decide::signal::log_reader::{Arrival, LogReader};
use crate::decide::signal::metrics::Metrics;
use crate::decide::signal::observation::{Observation, SourceId};
use crate::decide::signal::rank::Rank;
use crate::decide::signal::sample::{Source, TargetId};
use crate::decide::signal::store::SignalStore;
use crate::decide::time::Time;

/// What one source has given so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Samples.
    pub samples: u64,
    /// Lines, pages or samples that could not be read.
    pub dropped: u64,
    /// When it last gave a sample.
    pub last: Option<Time>,
    /// How old that was when it came.
    pub lag_s: Option<f64>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// The readers of all sources.
#[derive(Debug)]
pub struct Intake {
    zone: TimeZone,
    logs: BTreeMap<SourceId, LogReader>,
    pages: BTreeMap<SourceId, Metrics>,
    tallies: BTreeMap<SourceId, Tally>,
    /// Whether ranks' work is kept for pre-flight; a replay has no use for it.
    keeps_work: bool,
    /// Lines of logs so far.
    pub lines: u64,
}

impl Intake {
    /// Readers for logs whose stamps are of `zone`.
    pub fn new(zone: TimeZone, keeps_work: bool) -> Self {
        Self {
            zone,
            logs: BTreeMap::new(),
            pages: BTreeMap::new(),
            tallies: BTreeMap::new(),
            keeps_work,
            lines: 0,
        }
    }

    /// What each source has given.
    pub fn tallies(&self) -> &BTreeMap<SourceId, Tally> {
        &self.tallies
    }

    /// Samples that could not be read, over all sources.
    pub fn dropped(&self) -> u64 {
        self.tallies.values().map(|t| t.dropped).sum()
    }

    /// Takes everything but log lines, which come one at a time through [`Self::line`].
    pub fn take(
        &mut self,
        seen: Observation,
        store: &mut SignalStore,
        server: &mut Server,
        out: &mut Vec<Effect>,
    ) {
        match seen {
            Observation::Lines { .. } => {}
            Observation::Page { target, source, body, at } => {
                self.page(target, source, &body, at, store, server, out);
            }
            Observation::Loads { target, source, body, at } => {
                self.loads(target, source, &body, at, store, server, out);
            }
            Observation::Samples { target, source, samples, at } => {
                for sample in &samples {
                    store.record_sample(target, Source::Prometheus, sample, at);
                }
                self.gave(source, samples.len() as u64, at, 0.0);
            }
            Observation::State { source, problem, at, .. } => {
                self.trouble(source, problem.map(|p| p.to_string()), &server.name, at, out);
            }
        }
    }

    /// Takes one line of a log; returns when it was written.
    #[expect(clippy::too_many_arguments, reason = "the hot path: a struct of borrows would only rename them")]
    pub fn line(
        &mut self,
        target: TargetId,
        source: SourceId,
        line: &[u8],
        arrival: Arrival,
        store: &mut SignalStore,
        server: &mut Server,
        out: &mut Vec<Effect>,
    ) -> Time {
        self.lines += 1;
        let zone = &self.zone;
        let reader = self.logs.entry(source).or_insert_with(|| LogReader::new(zone.clone()));
        let heard = reader.read(line, arrival);
        let (at, rank) = (heard.at, heard.line.rank);
        match heard.line.says {
            Says::Other => {}
            Says::Batch(_) | Says::Balancedness => {
                let fields = reader.fields();
                store.record(target, rank, Source::Log, fields, at, at);
                if self.keeps_work {
                    work_seen(server, rank, fields, at);
                }
                let count = fields.len() as u64;
                let lag = if let Arrival::Live(arrived) = arrival { arrived.signed_s_since(at) } else { 0.0 };
                self.gave(source, count, at, lag);
            }
            Says::Profile(profile) => {
                store.note_profile(target, rank, &profile);
                let line = profile_line(profile);
                if let Some(incident) = server.profile_line(rank, &line, at) {
                    out.push(Effect::ProfileLine { incident, rank, line });
                }
            }
            Says::Fatal(text) => {
                out.push(Effect::Dying { target, line: String::from_utf8_lossy(text).into_owned() });
            }
        }
        at
    }

    #[expect(clippy::too_many_arguments, reason = "as for a line")]
    fn page(
        &mut self,
        target: TargetId,
        source: SourceId,
        body: &[u8],
        at: Time,
        store: &mut SignalStore,
        server: &mut Server,
        out: &mut Vec<Effect>,
    ) {
        let metrics = self.pages.entry(source).or_default();
        match metrics.read(body) {
            Ok(page) => {
                if let Some(role) = metrics.role() {
                    store.note_role(target, role);
                }
                store.record_page(target, metrics, at);
                let mut count = 0;
                for (rank, fields) in metrics.ranks() {
                    count += fields.len() as u64;
                    if self.keeps_work {
                        work_seen(server, rank, fields, at);
                    }
                }
                self.tallies.entry(source).or_default().dropped += page.bad as u64;
                self.gave(source, count, at, 0.0);
                self.trouble(source, None, &server.name, at, out);
            }
            Err(error) => self.bad_page(source, &error, &server.name, at, out),
        }
    }

    fn bad_page(&mut self, source: SourceId, error: &PageError, name: &str, at: Time, out: &mut Vec<Effect>) {
        self.tallies.entry(source).or_default().dropped += 1;
        self.trouble(source, Some(error.to_string()), name, at, out);
    }

    #[expect(clippy::too_many_arguments, reason = "as for a line")]
    fn loads(
        &mut self,
        target: TargetId,
        source: SourceId,
        body: &[u8],
        at: Time,
        store: &mut SignalStore,
        server: &mut Server,
        out: &mut Vec<Effect>,
    ) {
        let loads = match loads::read(body) {
            Ok(loads) => loads,
            Err(error) => return self.bad_loads(source, &error, &server.name, at, out),
        };
        let mut count = 0;
        let mut oldest = 0.0_f64;
        for load in &loads.ranks {
            if let Some(role) = load.role {
                store.note_role(target, role);
            }
            let published = at - load.age;
            store.record(target, load.rank, Source::Loads, &load.fields, published, at);
            count += load.fields.len() as u64;
            oldest = oldest.max(load.age.as_secs_f64());
            if self.keeps_work {
                work_seen(server, load.rank, &load.fields, published);
            }
        }
        self.gave(source, count, at, oldest);
        self.trouble(source, None, &server.name, at, out);
    }

    fn bad_loads(
        &mut self,
        source: SourceId,
        error: &LoadsError,
        name: &str,
        at: Time,
        out: &mut Vec<Effect>,
    ) {
        self.tallies.entry(source).or_default().dropped += 1;
        self.trouble(source, Some(error.to_string()), name, at, out);
    }

    fn gave(&mut self, source: SourceId, samples: u64, at: Time, lag_s: f64) {
        let tally = self.tallies.entry(source).or_default();
        tally.samples += samples;
        tally.last = Some(at);
        tally.lag_s = Some(lag_s);
    }

    /// Says a trouble when it begins, becomes another, or ends.
    fn trouble(
        &mut self,
        source: SourceId,
        problem: Option<String>,
        server: &str,
        at: Time,
        out: &mut Vec<Effect>,
    ) {
        let tally = self.tallies.entry(source).or_default();
        if tally.problem == problem {
            return;
        }
        out.push(Effect::Note(match &problem {
            Some(problem) => format!("{server}: {problem}"),
            None => format!("{server}: it works again ({at})"),
        }));
        tally.problem = problem;
    }
}

/// What pre-flight will ask: did this rank have work?
fn work_seen(server: &mut Server, rank: Rank, fields: &Fields, at: Time) {
    let (running, queued) = (fields.get(catalog::RUNNING_REQS), fields.get(catalog::QUEUE_REQS));
    let load = fields.get(catalog::LOAD);
    if running.is_some() || queued.is_some() || load.is_some() {
        let work = running.unwrap_or(0.0) + queued.unwrap_or(0.0) + load.unwrap_or(0.0);
        server.facts.rank_seen(rank, work > 0.0, at);
    }
}

fn profile_line(profile: Profile<'_>) -> ProfileLine {
    match profile {
        Profile::Starts { dir, id, .. } => {
            ProfileLine::Starts { dir: dir.into_owned(), id: (!id.is_empty()).then(|| id.into_owned()) }
        }
        Profile::Stopping { .. } => ProfileLine::Stops,
        Profile::Done { dir } => ProfileLine::Done { dir: dir.into_owned() },
    }
}
