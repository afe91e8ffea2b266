//! Plays recordings and synthetic series through the core, for the commands that show what rules would
//! have done: `replay`, `test` and `tune`. The core is the one that runs live; no window opens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::tz::TimeZone;

use super::rule_files::RuleSet;
use crate::config::test::Series;
use crate::observe::replay::{Format, Input, Replay};
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::rule::{Change, Rule};
use skewtrap_core::signal::catalog::DERIVED;
use skewtrap_core::signal::metrics::Role;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::{Sample, Signal, Source, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::signal::store::SeriesStatus;
use skewtrap_core::status::Status;
use skewtrap_core::watch::{Effect, Event, Mode, Setup, Watch, WatchedTarget};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Recorded files of one server.
///
/// They may be gzip, and are merged in the order of their times.
#[derive(Clone, Debug, Args)]
pub struct Recordings {
    /// A recorded log; lines may begin with EPOCH and a tab (repeatable; - is standard input)
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// Recorded metrics pages, each after a line `#@ EPOCH` (repeatable)
    #[arg(long, value_name = "FILE")]
    metrics: Vec<PathBuf>,
    /// Recorded answers of /v1/loads, {"t": EPOCH, "body": ANSWER} a line (repeatable)
    #[arg(long, value_name = "FILE")]
    loads: Vec<PathBuf>,
    /// Zone of log stamps that bear none
    #[arg(long, value_name = "NAME", default_value = "UTC")]
    tz: String,
}

impl Recordings {
    /// Every file with its format.
    pub fn files(&self) -> Vec<(Format, PathBuf)> {
        let all = [(Format::Log, &self.log), (Format::Metrics, &self.metrics), (Format::Loads, &self.loads)];
        all.into_iter().flat_map(|(f, paths)| paths.iter().map(move |p| (f, p.clone()))).collect()
    }

    /// The time zone of the stamps.
    ///
    /// # Errors
    /// The zone is unknown.
    pub fn zone(&self) -> anyhow::Result<TimeZone> {
        let unknown = format!("--tz {}: there is no such zone; write it as Europe/Berlin", self.tz);
        TimeZone::get(&self.tz).map_err(|_| super::wrong(&unknown))
    }
}

/// The result of a playback.
#[derive(Debug, Default)]
pub struct Playback {
    /// The time of the first input.
    pub start: Time,
    /// The time of the last input.
    pub end: Time,
    /// Every state change of every rule, in order.
    pub changes: Vec<Change>,
    /// The status of the core at the end.
    pub status: Status,
    /// The series that arrived.
    pub series: Vec<SeriesStatus>,
}

impl Playback {
    /// The groups that a rule formed, each with its server.
    pub fn groups_of(&self, rule: &Rule) -> BTreeSet<(Arc<str>, Labels)> {
        let of_rule = self.status.rules.iter().filter(|r| r.name == rule.name);
        let at_last = of_rule.flat_map(|r| &r.groups).map(|g| (g.target.clone(), g.group.clone()));
        let changed = self.changes.iter().filter(|c| c.rule.name == rule.name);
        let changed = changed.map(|c| (c.target.clone().unwrap_or_default(), c.group.clone()));
        at_last.chain(changed).collect()
    }
}

/// Plays recorded files of one server to their end.
///
/// # Errors
/// A file cannot be read, or has another format.
pub fn recording(files: &[(Format, PathBuf)], rules: RuleSet, zone: TimeZone) -> anyhow::Result<Playback> {
    let inputs = inputs_of(files);
    let mut replay = Replay::open(&inputs, &zone).map_err(|e| super::wrong(&e.to_string()))?;
    let mut player = Player::new(rules, vec![watched("server", None)], sources_of(&inputs), zone);
    while let Some(seen) = replay.next_observation().map_err(|e| super::wrong(&e.to_string()))? {
        player.observe(&seen);
    }
    Ok(player.ended())
}

/// The files as inputs of one server.
pub fn inputs_of(files: &[(Format, PathBuf)]) -> Vec<Input> {
    let input = |(i, (format, path)): (usize, &(Format, PathBuf))| Input {
        format: *format,
        path: path.clone(),
        target: TargetId(0),
        source: SourceId(u16::try_from(i).unwrap_or(u16::MAX)),
    };
    files.iter().enumerate().map(input).collect()
}

/// The inputs as sources, which messages name by their paths.
pub fn sources_of(inputs: &[Input]) -> Vec<WatchedSource> {
    let source = |input: &Input| WatchedSource {
        id: input.source,
        target: input.target,
        kind: match input.format {
            Format::Log => Source::Log,
            Format::Metrics => Source::Metrics,
            Format::Loads => Source::Loads,
        },
        name: input.path.display().to_string().into(),
        zone: None,
    };
    inputs.iter().map(source).collect()
}

/// Plays series whose values lie `interval` apart.
///
/// # Errors
/// The name of a signal that is not in the catalog.
pub fn series(series: &[Series], interval: Duration, rules: RuleSet) -> Result<Playback, String> {
    let mut targets: Vec<WatchedTarget> = Vec::new();
    let mut known = Vec::new();
    for s in series {
        let signal = rules.catalog.signal_named(&s.signal).ok_or_else(|| s.signal.clone())?;
        let place = targets.iter().position(|t| *t.name == *s.target).unwrap_or_else(|| {
            targets.push(watched(&s.target, s.role));
            targets.len() - 1
        });
        known.push((TargetId(place as u16), s, signal));
    }
    let mut player = Player::new(rules, targets, Vec::new(), TimeZone::UTC);
    let length = series.iter().map(|s| s.values.len()).max().unwrap_or(0);
    for step in 0..length {
        let at = origin() + interval * step as u32;
        let mut of_target: BTreeMap<TargetId, Vec<Sample>> = BTreeMap::new();
        for (target, s, signal) in &known {
            if let Some(Some(value)) = s.values.get(step) {
                let sample = Sample { rank: s.rank, signal: *signal, value: *value, at, extra: None };
                of_target.entry(*target).or_default().push(sample);
            }
        }
        if of_target.is_empty() {
            player.tick(at);
        }
        for (target, mut samples) in of_target {
            derive(&mut samples, at);
            player.observe(&Observation::Samples { target, source: SourceId(0), samples, at });
        }
    }
    // One more evaluation, for what the last values lead to.
    let end = player.played.end + Duration::from_secs(1);
    player.tick(end);
    Ok(player.ended())
}

/// The start of synthetic series, far enough from the epoch that no window reaches before it.
fn origin() -> Time {
    Time::from_epoch_s(1_000_000_000.0)
}

/// Adds the signals that are derived from others, as a real source would.
fn derive(samples: &mut Vec<Sample>, at: Time) {
    let by: BTreeMap<(Rank, Signal), f64> = samples.iter().map(|s| ((s.rank, s.signal), s.value)).collect();
    for (&(rank, signal), a) in &by {
        for d in DERIVED.iter().filter(|d| d.a == signal && !by.contains_key(&(rank, d.signal))) {
            if let Some(value) = by.get(&(rank, d.b)).and_then(|b| d.of(*a, *b)) {
                samples.push(Sample { rank, signal: d.signal, value, at, extra: None });
            }
        }
    }
}

/// A server in a group of its own.
pub fn watched(name: &str, role: Option<Role>) -> WatchedTarget {
    WatchedTarget { name: name.into(), role, group: name.into(), sees_log: true }
}

/// A core that opens no window, for recordings whose stamps are in `zone`.
pub fn core_of(
    rules: RuleSet,
    targets: Vec<WatchedTarget>,
    sources: Vec<WatchedSource>,
    zone: TimeZone,
) -> Watch {
    let setup = Setup {
        rules: rules.rules,
        catalog: rules.catalog,
        own: rules.own,
        pages: Vec::new(),
        sources,
        targets,
        policy: Policy::default(),
        ledger: Ledger::default(),
        zone,
        mode: Mode::Replay,
    };
    Watch::new(setup, Time::default())
}

/// A core, and what it has reported so far.
struct Player {
    watch: Watch,
    effects: Vec<Effect>,
    played: Playback,
}

impl Player {
    fn new(rules: RuleSet, targets: Vec<WatchedTarget>, sources: Vec<WatchedSource>, zone: TimeZone) -> Self {
        let watch = core_of(rules, targets, sources, zone);
        Self { watch, effects: Vec::new(), played: Playback::default() }
    }

    fn observe(&mut self, seen: &Observation) {
        self.watch.observe(seen, seen.at().unwrap_or_default(), &mut self.effects);
        self.collect();
    }

    fn tick(&mut self, now: Time) {
        // An empty observation advances the clock of a replay.
        let (target, source) = (TargetId(0), SourceId(0));
        let nothing = Observation::Samples { target, source, samples: Vec::new(), at: now };
        self.watch.observe(&nothing, now, &mut self.effects);
        self.watch.handle(Event::Tick, now, &mut self.effects);
        self.collect();
    }

    fn ended(mut self) -> Playback {
        let end = self.played.end;
        self.played.status = self.watch.status(end);
        self.played.series = self.watch.store().series_status(end);
        self.played
    }

    fn collect(&mut self) {
        let now = self.watch.now();
        if self.played.start == Time::default() {
            self.played.start = now;
        }
        self.played.end = now;
        let changes = self.effects.drain(..).filter_map(|e| match e {
            Effect::Changed { change, .. } if change.is_transition() => Some(*change),
            _ => None,
        });
        self.played.changes.extend(changes);
    }
}
