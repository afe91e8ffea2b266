//! The one door of the core: `handle(event, now)` and out come effects.
//!
//! It owns no socket, no file, no clock and no task. What runs live, what replays a recording and
//! what the tests drive is this, byte for byte; they differ only in the shell around it. Nothing
//! here iterates an unordered map or draws a random number, so a recording replays exactly.

mod event;
mod incidents;
mod intake;
mod server;
mod status;
#[cfg(test)]
mod tests;
mod wish;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

pub use self::event::{Asked, Effect, Event, OpenWindow, ServerFact, WindowNews};
pub use self::incidents::Case;
use self::incidents::Incidents;
use self::intake::Intake;
pub use self::intake::Tally;
use self::server::Server;
use crate::decide::capture::admit::Policy;
use crate::decide::capture::governor::Ledger;
use crate::decide::incident::Incident;
use crate::decide::labels::LabelValue;
use crate::decide::rule::Rule;
use crate::decide::rule::change::Change;
use crate::decide::rule::engine::{Engine, Quiet};
use crate::decide::signal::catalog::Catalog;
use crate::decide::signal::log_reader::Arrival;
use crate::decide::signal::metrics::Role;
use crate::decide::signal::observation::{Observation, SourceId};
use crate::decide::signal::sample::TargetId;
use crate::decide::signal::store::{Bounds, Evidence, SignalStore};
use crate::decide::status::Silence;
use crate::decide::time::Time;
use crate::explain::message::Update;

/// How often the shell lets time pass.
pub const TICK: Duration = Duration::from_millis(250);

/// In a recording, a gap of data longer than this is not walked tick by tick to its end.
const WALKED_GAP: Duration = Duration::from_secs(120);

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

/// The core.
#[derive(Debug)]
pub struct Watch {
    store: SignalStore,
    engine: Engine,
    intake: Intake,
    servers: Vec<Server>,
    incidents: Incidents,
    ledger: Ledger,
    policy: Policy,
    mode: Mode,
    silences: Vec<Silence>,
    /// Wishes that wait for their warm-up: the incident, and when to look again.
    warming: BTreeMap<Arc<str>, Time>,
    now: Time,
    changes: Vec<Change>,
}

impl Watch {
    /// A core that has seen nothing yet.
    pub fn new(setup: Setup, now: Time) -> Self {
        let mut store = SignalStore::new(setup.catalog, Bounds::default());
        let mut servers = Vec::new();
        for target in setup.targets {
            store.add_target(target.name.clone(), target.role);
            servers.push(Server::new(target.name, target.group, target.sees_log));
        }
        let engine = Engine::new(setup.rules, &mut store, now);
        Self {
            store,
            engine,
            intake: Intake::new(setup.zone, setup.mode == Mode::Live),
            servers,
            incidents: Incidents::default(),
            ledger: setup.ledger,
            policy: setup.policy,
            mode: setup.mode,
            silences: Vec::new(),
            warming: BTreeMap::new(),
            now,
            changes: Vec::new(),
        }
    }

    /// Takes one event; what is to be done is appended to `out`.
    pub fn handle(&mut self, event: Event, now: Time, out: &mut Vec<Effect>) {
        match event {
            Event::Observed(Observation::Lines { target, source, lines, arrival }) => {
                self.lines(target, source, &lines, arrival, now, out);
            }
            Event::Observed(seen) => self.observed(seen, now, out),
            Event::Tick => self.pass(now, out),
            Event::Server { target, fact } => self.server_fact(target, fact, now),
            Event::Window { incident, news } => self.window_news(&incident, news, now, out),
            Event::Compared { incident, note } => self.compared(&incident, note, out),
            Event::Bundled { incident, path } => {
                if let Some(case) = self.incidents.get_mut(&incident) {
                    case.incident.bundle = Some(path);
                }
            }
            Event::Asked(asked) => self.asked(&asked, now, out),
            Event::Reloaded { rules, catalog } => self.reloaded(rules, catalog, now, out),
            Event::Silenced(silence) => self.silences.push(silence),
        }
    }

    /// The instant up to which it has seen the world.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Lets time pass up to `now`: what time alone changes is looked at.
    fn pass(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.now = now;
        self.hush(now);
        self.engine.tick(&mut self.store, now, &mut self.changes);
        self.tell_changes(now, out);
        self.look_again(now, out);
        self.silences.retain(|s| s.until > now);
    }

    fn observed(&mut self, seen: Observation, now: Time, out: &mut Vec<Effect>) {
        let target = match &seen {
            Observation::Lines { target, .. }
            | Observation::Page { target, .. }
            | Observation::Loads { target, .. }
            | Observation::Samples { target, .. }
            | Observation::State { target, .. } => *target,
        };
        self.walk_to(now, out);
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        self.intake.take(seen, &mut self.store, server, out);
        self.pulse(now, out);
    }

    /// Live lines are looked at when all that came together are in. Recorded ones carry their own
    /// time, and are looked at whenever it moves on, so that how a file was cut into pieces when
    /// it was read changes nothing.
    fn lines(
        &mut self,
        target: TargetId,
        source: SourceId,
        lines: &[u8],
        arrival: Arrival,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        for line in lines.split_inclusive(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
            let at = self.intake.line(target, source, line, arrival, &mut self.store, server, out);
            if arrival == Arrival::Recorded && at > self.now {
                self.walk_to(at, out);
                self.pulse(at, out);
            }
        }
        if arrival != Arrival::Recorded {
            self.pulse(now, out);
        }
    }

    /// Looks at what the last samples touched.
    fn pulse(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.now = now;
        self.hush(now);
        self.engine.on_samples(&mut self.store, now, &mut self.changes);
        self.tell_changes(now, out);
    }

    /// In a recording no clock ticks: the time between two samples is walked here.
    fn walk_to(&mut self, at: Time, out: &mut Vec<Effect>) {
        if self.mode == Mode::Live || self.now == Time::default() {
            return;
        }
        let end = at.min(self.now + WALKED_GAP);
        while end.since(self.now) > TICK {
            self.pass(self.now + TICK, out);
        }
    }

    /// Tells the engine which servers a capture disturbs.
    fn hush(&mut self, now: Time) {
        for server in &mut self.servers {
            let Some(blind) = &server.blind else { continue };
            let quiet = if blind.trusts(now) {
                None
            } else if blind.may_clear(now) {
                Some(Quiet::MayClear)
            } else {
                Some(Quiet::Nothing)
            };
            self.engine.set_quiet(&server.name, quiet);
            if quiet.is_none() {
                server.blind = None;
            }
        }
    }

    fn tell_changes(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.changes.is_empty() {
            return;
        }
        let mut changes = std::mem::take(&mut self.changes);
        for change in changes.drain(..) {
            self.changed(change, now, out);
        }
        self.changes = changes;
    }

    fn server_fact(&mut self, target: TargetId, fact: ServerFact, now: Time) {
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        if let ServerFact::Info(info) = &fact {
            self.store.note_role(target, info.role);
            self.store.expect_ranks(target, info.sizes.dp, now);
        }
        server.seen(fact, now);
    }

    fn reloaded(&mut self, rules: Vec<Rule>, catalog: Arc<Catalog>, now: Time, out: &mut Vec<Effect>) {
        self.store.set_catalog(catalog);
        for rule in self.engine.reload(rules, &mut self.store, now) {
            for case in self.incidents.resolve_rule(&rule, now) {
                out.push(Effect::Cleared { incident: case.incident.id.clone() });
                tell(&case, Update::Resolved, out);
            }
        }
    }

    /// What the store remembers of a group since then: the evidence of a bundle.
    pub fn evidence(&self, incident: &Incident, since: Time) -> Vec<Evidence> {
        let mut labels = incident.group.clone();
        labels.0.insert("target".into(), LabelValue::Text(incident.target.clone()));
        self.store.evidence(&labels, since).collect()
    }

    /// The attempts, for what the shell must know of them.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Lines, samples and drops so far.
    pub fn counts(&self) -> Counts {
        Counts {
            lines: self.intake.lines,
            samples: self.store.recorded(),
            dropped: self.store.dropped() + self.intake.dropped(),
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
}

/// A message about a case, unless it is silenced.
fn tell(case: &Case, update: Update, out: &mut Vec<Effect>) {
    if !case.is_silenced {
        out.push(Effect::Notify {
            incident: case.incident.clone(),
            update,
            receivers: case.rule.notify.clone(),
        });
    }
}
