//! The one door of the core: `handle(event, now)` and out come effects.
//!
//! It owns no socket, no file, no clock and no task. What runs live, what replays a recording and
//! what the tests drive is this, byte for byte; they differ only in the shell around it. Nothing
//! here iterates an unordered map or draws a random number, so a recording replays exactly.

mod axes;
mod core;
mod event;
mod incidents;
mod news;
mod server;
mod silence;
mod sources;
mod status;
mod wish;
mod worse;

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use self::core::Core;
pub use self::event::{Effect, Event, ManualRequest, OpenWindow, ServerFact, WindowNews};
pub use self::incidents::ActiveIncident;
use crate::capture::admit::Policy;
use crate::capture::facts::Facts;
use crate::capture::governor::Ledger;
use crate::incident::Incident;
use crate::rule::Rule;
use crate::signal::catalog::Catalog;
use crate::signal::intake::Intake;
use crate::signal::metrics::Role;
use crate::signal::observation::Observation;
use crate::signal::pattern::Pattern;
use crate::signal::sample::TargetId;
use crate::signal::source::WatchedSource;
use crate::signal::store::{Bounds, SignalStore, StoredSample};
use crate::status::Status;
use skewtrap_trace::time::Time;

/// How often the shell lets time pass.
pub const TICK: Duration = Duration::from_millis(250);

/// Whether windows are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On real servers.
    Live,
    /// On a recording: only the limits can refuse, and nothing is opened.
    Replay,
}

/// A server that is watched.
#[derive(Clone, Debug)]
pub struct WatchedTarget {
    /// Its name.
    pub name: Arc<str>,
    /// Its role, where the operator says it.
    pub role: Option<Role>,
    /// Servers of one group have one window at a time; its own name when it is alone.
    pub group: Arc<str>,
    /// Whether one of its sources is a log.
    pub sees_log: bool,
}

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The rules, checked.
    pub rules: Vec<Rule>,
    /// The signals they may name.
    pub catalog: Arc<Catalog>,
    /// The user's own patterns.
    pub patterns: Vec<Pattern>,
    /// What is read.
    pub sources: Vec<WatchedSource>,
    /// The servers.
    pub targets: Vec<WatchedTarget>,
    /// What captures may cost.
    pub policy: Policy,
    /// Attempts of the last days.
    pub ledger: Ledger,
    /// The zone of log stamps.
    pub zone: TimeZone,
    /// Whether windows are opened.
    pub mode: Mode,
}

/// The core: numbers, the reader that fills them, and everything that is decided on them.
#[derive(Debug)]
pub struct Watch {
    store: SignalStore,
    intake: Intake,
    sources: Vec<WatchedSource>,
    core: Core,
}

impl Watch {
    /// A core that has seen nothing yet.
    pub fn new(setup: Setup, now: Time) -> Self {
        let mut store = SignalStore::new(setup.catalog.clone(), Bounds::default());
        for target in &setup.targets {
            store.add_target(target.name.clone(), target.role);
        }
        let mut intake = Intake::new(setup.zone.clone());
        intake.set_patterns(setup.patterns.clone());
        for source in &setup.sources {
            intake.name_source(source.id, source.name.clone());
        }
        let sources = setup.sources.clone();
        let core = Core::new(setup, &mut store, now);
        Self { store, intake, sources, core }
    }

    /// Takes one event; what is to be done is appended to `out`.
    pub fn handle(&mut self, event: Event, now: Time, out: &mut Vec<Effect>) {
        let Self { store, intake, core, .. } = self;
        match event {
            Event::Observed(seen) => Self::observed(intake, store, core, &seen, now, out),
            Event::Tick => core.pass(store, now, out),
            Event::Server { target, fact } => core.server_fact(store, target, fact, now),
            Event::Window { incident, news } => core.window_news(&incident, news, now, out),
            Event::Compared { incident, window, note } => core.compared(&incident, window, note, now, out),
            Event::NotCompared { incident } => core.asked_over(&incident, now, out),
            Event::Bundled { incident, path } => core.bundled(&incident, path),
            Event::ManualRequest(asked) => core.asked(store, asked, now, out),
            Event::Reloaded { rules, catalog, patterns } => {
                store.set_catalog(catalog);
                intake.set_patterns(patterns);
                core.reloaded(store, rules, now, out);
            }
            Event::Silenced(silence) => core.silenced(silence, now),
            Event::LeftBehind { target, attempt, window } => core.left_behind(target, attempt, window, now),
            Event::Swept(space) => core.policy.bundles = Some(space),
        }
    }

    /// Takes one observation by reference, so that a replay can use its buffer again.
    pub fn observe(&mut self, seen: &Observation, now: Time, out: &mut Vec<Effect>) {
        Self::observed(&mut self.intake, &mut self.store, &mut self.core, seen, now, out);
    }

    /// Live samples are looked at when all that came together are in. Recorded lines carry their
    /// own time, and are looked at whenever it moves on, so that how a file was cut into pieces
    /// when it was read changes nothing.
    fn observed(
        intake: &mut Intake,
        store: &mut SignalStore,
        core: &mut Core,
        seen: &Observation,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        intake.take(seen, store, |store, at, step| core.step(store, at, step, out));
        core.pulse_live(store, now, out);
    }

    /// The instant up to which it has seen the world.
    pub fn now(&self) -> Time {
        self.core.now
    }

    /// When the next [`Event::Tick`] is worth more than the regular ones: samples wait that came too
    /// soon after others of their group.
    pub const fn due(&self) -> Option<Time> {
        self.core.due()
    }

    /// What the store remembers of an incident's group since then: the evidence of its bundle.
    pub fn evidence(&self, incident: &Incident, since: Time) -> Vec<StoredSample> {
        self.store.samples(&incident.group.clone().with_target(&incident.target), since).collect()
    }

    /// Everything that is shown.
    pub fn status(&self, now: Time) -> Status {
        status::status_of(&self.core, &self.store, &sources::standing(self, now), now)
    }

    /// What is known of a server.
    pub fn facts(&self, target: TargetId) -> Option<&Facts> {
        self.core.servers.get(usize::from(target.0)).map(|s| &s.facts)
    }

    /// The names of the rules.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        self.core.engine.rules().map(|rule| &*rule.name)
    }

    /// An incident that is in memory.
    pub fn incident(&self, id: &str) -> Option<&Incident> {
        self.core.incidents.get(id).map(|c| &c.incident)
    }

    /// The numbers.
    pub fn store(&self) -> &SignalStore {
        &self.store
    }

    /// The attempts, for what the shell must know of them.
    pub fn ledger(&self) -> &Ledger {
        self.core.ledger()
    }

    /// Lines, samples and drops so far.
    pub fn counts(&self) -> Counts {
        let taken = self.intake.counts();
        Counts {
            lines: taken.lines,
            samples: self.store.recorded(),
            dropped: self.store.dropped() + taken.bad,
            evaluations: self.core.evaluations(),
        }
    }
}

/// What went through a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Log lines read.
    pub lines: u64,
    /// Samples recorded.
    pub samples: u64,
    /// Lines, pages and samples that could not be read, or had no place.
    pub dropped: u64,
    /// Evaluations of rules.
    pub evaluations: u64,
}
